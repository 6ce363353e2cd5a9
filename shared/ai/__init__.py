"""Models and prompts: what agents ask, whom they ask, and in what form the answer comes."""

from shared.ai.base import JsonSchema, Model, Price, Reply, Request
from shared.ai.opening import open_model
from shared.ai.prompts import Prompt, load_prompt
from shared.ai.schema import check, check_schema

__all__ = ["JsonSchema", "Model", "Price", "Prompt", "Reply", "Request", "check", "check_schema", "load_prompt", "open_model"]
