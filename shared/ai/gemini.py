"""Gemini, by Google's own client (google-genai 3.4).

What this module adds, because the client does not do it: a deadline for the whole call (its own timeout is per read, and absent by
default), one HTTP backend whatever else is installed (with aiohttp it sends a request twice when a connection drops), the server's
retry delay, and an error whenever the answer is blocked, cut off or not the JSON that was asked for (its `.parsed` is just None).
It never retries: that is the caller's business.

Errors: https://ai.google.dev/gemini-api/docs/troubleshooting, https://google.aip.dev/193.
"""

import asyncio
import math
import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import orjson

from shared.ai.base import JsonSchema, Price, Reply, Request
from shared.ai.schema import check
from shared.clock import Clock, SystemClock
from shared.errors import (
    AgentTeamError,
    ConfigurationError,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutputInvalid,
    RateLimited,
)
from shared.messages import Usage

if TYPE_CHECKING:
    import httpx2
    from google.genai import Client, errors, types

BASE_URL = "https://generativelanguage.googleapis.com/"
_NOT_SENT = ("minLength", "maxLength")
"""Keywords of our schemas that Gemini does not take; they are checked on what comes back."""
_CODE_WORD = re.compile(r"[A-Z][A-Z0-9_]{1,60}")
_CUT_OFF = frozenset({"MAX_TOKENS", "CONTINUATION"})
_FAILED = frozenset({"OTHER", "MALFORMED_RESPONSE", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"})


class GeminiModel:
    """One Gemini model. Nothing is imported or opened before the first call; it then belongs to the loop of that call."""

    def __init__(
        self,
        api_key: str,
        model: str,
        *,
        clock: Clock | None = None,
        base_url: str | None = None,
        price: Price | None = None,
    ) -> None:
        """Raises ConfigurationError when the key cannot be one: then no request could even be written."""
        self._api_key = api_key.strip()
        if not self._api_key or not self._api_key.isascii() or not self._api_key.isprintable():
            raise ConfigurationError(
                "GEMINI_API_KEY is empty or holds characters that no key has; copy it again from where it was made"
            )
        self._model = model
        self._clock = SystemClock() if clock is None else clock
        self._base_url = BASE_URL if base_url is None else base_url
        self._price = Price() if price is None else price
        self._http: httpx2.AsyncClient | None = None
        self._client: Client | None = None

    def __repr__(self) -> str:
        return f"GeminiModel({self._model!r})"

    async def generate(self, request: Request) -> Reply:
        """Ask once. Raises what `Model.generate` may raise, and ModelUnknown when there is no such model (any more)."""
        client = self._opened()
        import httpx2
        from google.genai import errors

        try:
            async with asyncio.timeout(request.timeout_seconds):
                response = await client.aio.models.generate_content(
                    model=self._model, contents=request.prompt, config=_config(request)
                )
        except errors.APIError as exc:
            raise _refusal(self._model, exc, self._clock) from exc
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as exc:
            raise ConfigurationError(f"{self._model}: the base URL for Gemini is not an http or https address") from exc
        except (TimeoutError, httpx2.TimeoutException) as exc:
            raise ModelUnavailable(f"{self._model} did not answer within {request.timeout_seconds:g} s") from exc
        except (httpx2.HTTPError, httpx2.StreamError, OSError) as exc:
            raise ModelUnavailable(f"{self._model} cannot be reached ({type(exc).__name__})") from exc
        except (ValueError, TypeError, AttributeError) as exc:
            # What the client raises over a response that is not JSON or not of the shape that it takes for granted.
            raise ModelUnavailable(f"{self._model} sent a response that cannot be read ({type(exc).__name__})") from exc
        return Reply(output=_output(self._model, response, request), model=self._model, usage=_usage(response, self._price))

    async def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    def _opened(self) -> "Client":
        if self._client is None:
            # Imported here: 0.8 s that only a function which does ask a model shall pay.
            import httpx2
            from google.genai import Client, types

            # A client of our own keeps google-genai from choosing aiohttp, and its environment variables from redirecting calls.
            self._http = httpx2.AsyncClient()
            options = types.HttpOptions(base_url=self._base_url, httpx_async_client=self._http)
            self._client = Client(api_key=self._api_key, vertexai=False, http_options=options)
        return self._client


def _config(request: Request) -> "types.GenerateContentConfig":
    from google.genai import types

    return types.GenerateContentConfig(
        temperature=request.temperature,
        max_output_tokens=request.max_tokens,
        response_mime_type=None if request.schema is None else "application/json",
        response_json_schema=None if request.schema is None else _sent(request.schema),
        # Both would make further calls behind our back, outside limits, budget and deadline.
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        automatic_continuation=False,
        http_options=types.HttpOptions(timeout=max(1, math.ceil(request.timeout_seconds * 1000))),
    )


def _sent(schema: JsonSchema) -> dict[str, Any]:
    """`schema` as Gemini takes it."""
    sent: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "properties":
            sent[keyword] = {name: _sent(child) for name, child in value.items()}
        elif keyword == "items":
            sent[keyword] = _sent(value)
        elif keyword not in _NOT_SENT:
            sent[keyword] = value
    return sent


def _output(model: str, response: "types.GenerateContentResponse", request: Request) -> Any:
    """The answer, or the error that says why there is none."""
    feedback = response.prompt_feedback
    if feedback is not None and feedback.block_reason is not None:
        raise ModelRefused(f"{model} will not answer: the prompt was blocked ({feedback.block_reason.value}); change the input")
    if not response.candidates:
        raise OutputInvalid(f"{model} gave no answer: its response holds no candidate")
    finish = response.candidates[0].finish_reason
    reason = "STOP" if finish is None else str(finish.value)
    if reason in _CUT_OFF:
        raise OutputInvalid(f"{model} was cut off at {request.max_tokens} output tokens (thinking included); raise AI_MAX_TOKENS")
    if reason in _FAILED:
        raise ModelUnavailable(f"{model} broke off its answer ({reason})")
    if reason not in ("STOP", "FINISH_REASON_UNSPECIFIED"):
        raise ModelRefused(f"{model} will not answer: the answer was withheld ({reason}); change the input")
    text = response.text
    if not text:
        raise OutputInvalid(f"{model} gave no answer: its response holds no text")
    if request.schema is None:
        return text
    try:
        output = orjson.loads(text)
    except orjson.JSONDecodeError as exc:
        raise OutputInvalid(f"{model} was asked for JSON and answered with something else") from exc
    check(output, request.schema)
    return output


def _usage(response: "types.GenerateContentResponse", price: Price) -> Usage:
    counted = response.usage_metadata
    if counted is None:
        return Usage(model_calls=1)
    input_tokens = (counted.prompt_token_count or 0) + (counted.tool_use_prompt_token_count or 0)
    output_tokens = (counted.candidates_token_count or 0) + (counted.thoughts_token_count or 0)
    cost = price.microdollars(
        input_tokens=input_tokens, output_tokens=output_tokens, cached_tokens=counted.cached_content_token_count or 0
    )
    return Usage(model_calls=1, input_tokens=input_tokens, output_tokens=output_tokens, cost_microdollars=cost)


def _refusal(model: str, exc: "errors.APIError", clock: Clock) -> AgentTeamError:
    """The error that an HTTP status means. The provider's own text is left out: it may repeat the input."""
    details = _details(exc)
    reason = next((str(one["reason"]) for one in details if _CODE_WORD.fullmatch(str(one.get("reason")))), exc.status or "")
    said = f"{exc.code} {reason}" if _CODE_WORD.fullmatch(reason) else f"{exc.code}"
    if exc.code == 429:
        return RateLimited(f"{model}: quota used up ({said})", retry_after_seconds=_retry_after(exc, details, clock))
    if exc.code == 404:
        return ModelUnknown(
            f"{model}: no such model ({said}); set AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS to models that Google serves"
        )
    if exc.code in (401, 403) or reason.startswith("API_KEY"):
        return ModelRefused(f"{model}: the key is refused ({said}); check that GEMINI_API_KEY is valid and may use the Gemini API")
    if 400 <= exc.code < 500 and exc.code not in (408, 499):
        return ModelRefused(
            f"{model}: the request is refused ({said}); check the prompt's schema and length against what it supports"
        )
    return ModelUnavailable(f"{model}: the service failed ({said})", retry_after_seconds=_retry_after(exc, details, clock))


def _details(exc: "errors.APIError") -> list[Mapping[str, Any]]:
    body = exc.details
    error = body.get("error") if isinstance(body, Mapping) else None
    listed = error.get("details") if isinstance(error, Mapping) else None
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def _retry_after(exc: "errors.APIError", details: list[Mapping[str, Any]], clock: Clock) -> float | None:
    """Seconds until the server wants to be asked again, from RetryInfo or the Retry-After header; None when it does not say."""
    for one in details:
        delay = re.fullmatch(r"(\d+(?:\.\d+)?)s", str(one.get("retryDelay")))
        if delay:
            return float(delay[1])
    header = str(getattr(exc.response, "headers", {}).get("retry-after", ""))
    if header.isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - clock.now()).total_seconds())
    except (ValueError, TypeError):
        return None
