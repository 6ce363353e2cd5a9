"""What an error of a call to Gemini means, above all: whether the call may have been carried out and is to be paid.

- A certain no: the service answered with an error status (Google charges no tokens for those:
  https://ai.google.dev/gemini-api/docs/billing), or no connection was made.
- Unknown: whatever went wrong once the request may have been on its way. A timeout, a connection that dropped, a response that
  cannot be read, an error in the middle of a stream; and any exception that nobody expected.

Errors: https://ai.google.dev/gemini-api/docs/troubleshooting, https://google.aip.dev/193. No message repeats what the service says
in its own words: they may repeat the input.
"""

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from shared.clock import Clock
from shared.errors import (
    AgentTeamError,
    ConfigurationError,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    RateLimited,
)

if TYPE_CHECKING:
    from google.genai import errors

_CODE_WORD = re.compile(r"[A-Z][A-Z0-9_]{1,60}")
_WENT_AWAY = frozenset({408, 499})
"""Statuses of the 4xx that tell of time, not of the request."""


def translated(model: str, exc: Exception, clock: Clock, timeout_seconds: float, *, begun: bool = False) -> AgentTeamError:
    """Our error for whatever the client raised. `begun`: part of the answer had come."""
    import httpx2
    from google.genai import errors

    if isinstance(exc, errors.APIError) and not begun:
        return _refusal(model, exc, clock)
    if isinstance(exc, errors.APIError):
        return OutcomeUnknown(f"{model} broke off its answer ({exc.code})", retry_after_seconds=_retry_after(exc, clock))
    if isinstance(exc, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return ConfigurationError(f"{model}: the base URL for Gemini is not an http or https address; mend GEMINI_BASE_URL")
    # Raised before anything was sent, and only then.
    if isinstance(exc, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError):
        return ModelUnavailable(f"{model} cannot be reached ({type(exc).__name__})")
    if isinstance(exc, TimeoutError | httpx2.TimeoutException):
        return timed_out(model, timeout_seconds)
    if isinstance(exc, OSError | httpx2.TransportError | httpx2.StreamError):
        return OutcomeUnknown(f"{model}: the connection broke before the answer was complete ({type(exc).__name__})")
    return OutcomeUnknown(f"{model} sent a response that cannot be read ({type(exc).__name__})")


def timed_out(model: str, timeout_seconds: float) -> OutcomeUnknown:
    """The error of a call that took too long."""
    return OutcomeUnknown(f"{model} did not answer within {timeout_seconds:g} s")


def code_word(said: object) -> str:
    """`said`, if it is a word such as RESOURCE_EXHAUSTED and not prose, which may repeat the input; else nothing."""
    return said if isinstance(said, str) and _CODE_WORD.fullmatch(said) else ""


def _refusal(model: str, exc: "errors.APIError", clock: Clock) -> AgentTeamError:
    """The error that an HTTP status means."""
    reasons = (code_word(one.get("reason")) for one in _details(exc))
    reason = next(filter(None, reasons), code_word(exc.status))
    said = f"{exc.code} {reason}" if reason else f"{exc.code}"
    if exc.code < 300:
        return OutcomeUnknown(f"{model} sent a response that cannot be read ({said})")
    if exc.code == 429:
        return RateLimited(f"{model}: quota used up ({said})", retry_after_seconds=_retry_after(exc, clock))
    if exc.code == 404:
        return ModelUnknown(
            f"{model}: no such model ({said}); set AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS to models that Google serves"
        )
    if exc.code in (401, 403) or reason.startswith("API_KEY"):
        return ModelRefused(f"{model}: the key is refused ({said}); check that GEMINI_API_KEY is valid and may use the Gemini API")
    if reason == "FAILED_PRECONDITION":
        return ModelRefused(f"{model}: the key's project may not use it ({said}); check the project's billing and region")
    if 400 <= exc.code < 500 and exc.code not in _WENT_AWAY:
        return ModelRefused(
            f"{model}: the request is refused ({said}); check the prompt's schema and length against what it supports"
        )
    return ModelUnavailable(f"{model}: the service failed ({said})", retry_after_seconds=_retry_after(exc, clock))


def _details(exc: "errors.APIError") -> list[Mapping[str, Any]]:
    body = exc.details
    error = body.get("error") if isinstance(body, Mapping) else None
    listed = error.get("details") if isinstance(error, Mapping) else None
    return [one for one in listed if isinstance(one, Mapping)] if isinstance(listed, list) else []


def _retry_after(exc: "errors.APIError", clock: Clock) -> float | None:
    """Seconds until the server wants to be asked again, from RetryInfo or the Retry-After header; None when it does not say."""
    for one in _details(exc):
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
