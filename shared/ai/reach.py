"""Whether Gemini would answer, asked without asking a model: what it says of one is free, and uses up no quota.

`GET /v1beta/models/{model}` (https://ai.google.dev/api/models#method:-models.get) reads metadata with the same key, over the same
way, from the same service as a call would. It tells of a service that is away, a key that is refused and a model that is not
there; not of one that is slow or overloaded: that the circuit breakers tell, from real calls.
"""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from shared.config import redact_url
from shared.errors import AgentTeamError, ConfigurationError, ModelRefused, ModelUnavailable, ModelUnknown

if TYPE_CHECKING:
    import httpx

_BASE_URL = "https://generativelanguage.googleapis.com"


class Reach:
    """The way to Gemini. Nothing is opened before the first question."""

    def __init__(self, api_key: str, *, base_url: str | None = None) -> None:
        self._api_key = api_key.strip()
        self._base_url = (_BASE_URL if base_url is None else base_url).rstrip("/")
        self._where = redact_url(self._base_url)
        self._client: httpx.AsyncClient | None = None

    async def ask(self, models: Sequence[str], *, timeout_seconds: float) -> None:
        """Return when one of `models` is there for this key. Raises what the first of them says otherwise.

        A quota that is used up is no failure: whoever says so is there.
        """
        wrong: AgentTeamError | None = None
        try:
            async with asyncio.timeout(timeout_seconds):
                for model in models:
                    error = await self._asked(model)
                    if error is None:
                        return
                    wrong = wrong or error
                    if not isinstance(error, ModelUnknown):
                        break  # the key and the service are the same for all
        except TimeoutError:
            seconds = round(timeout_seconds, 1)
            wrong = wrong or ModelUnavailable(f"{self._where} did not answer within {seconds:g} s; is it reachable from here?")
        if wrong is not None:
            raise wrong

    async def close(self) -> None:
        """Close the connections; a later question opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _asked(self, model: str) -> AgentTeamError | None:
        import httpx

        if self._client is None:
            self._client = httpx.AsyncClient(headers={"x-goog-api-key": self._api_key}, timeout=None)
        try:
            answer = await self._client.get(f"{self._base_url}/v1beta/models/{quote(model, safe='')}")
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            return ConfigurationError("the base URL for Gemini is not an http or https address; mend GEMINI_BASE_URL")
        except httpx.HTTPError as error:
            return ModelUnavailable(f"{self._where} cannot be reached ({type(error).__name__}); is the network there?")
        return _meaning(model, answer.status_code)


def _meaning(model: str, status: int) -> AgentTeamError | None:
    if status == 404:
        return ModelUnknown(f"{model}: no such model; set AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS to models that Google serves")
    if status in (400, 401, 403):
        return ModelRefused(f"the key is refused ({status}); check that GEMINI_API_KEY is valid and may use the Gemini API")
    if status == 429 or status < 400:
        return None
    return ModelUnavailable(f"the Gemini API fails ({status}); calls fail as well until Google has mended it")
