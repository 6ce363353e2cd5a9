"""Models and prompts: what agents ask, whom they ask, and in what form the answer comes."""

from shared.ai.base import JsonSchema, Model, Price, Reply, Request
from shared.ai.prompts import Prompt, load_prompt
from shared.ai.schema import check, check_schema
from shared.clock import Clock

__all__ = ["JsonSchema", "Model", "Price", "Prompt", "Reply", "Request", "check", "check_schema", "load_prompt", "open_model"]


def open_model(*, gemini_api_key: str | None, model: str, clock: Clock | None = None) -> Model:
    """The Gemini model called `model` where there is a key, else the offline model. Nothing is connected before the first call.

    Raises ConfigurationError when the key cannot be one.
    """
    if gemini_api_key is None:
        from shared.ai.offline import OfflineModel

        return OfflineModel()
    from shared.ai.gemini import GeminiModel

    return GeminiModel(gemini_api_key, model, clock=clock)
