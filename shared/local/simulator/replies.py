"""The service's answers and errors on the wire: one JSON document, or a stream of parts of it.

Shapes: https://ai.google.dev/api/generate-content#v1beta.GenerateContentResponse and https://google.aip.dev/193.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from shared.local.simulator.asked import BYTES_PER_TOKEN, Refused, tokens_of
from shared.local.simulator.quota import Excess

_CHUNKS: Final = 8
_SHORTEST_CHUNK: Final = 40
_GOOGLE: Final = "type.googleapis.com/google.rpc."
_RATINGS: Final = [{"category": "HARM_CATEGORY_DANGEROUS_CONTENT", "probability": "HIGH", "blocked": True}]
_QUOTAS: Final = {
    "second": ("generate_content_requests", "GenerateRequestsPerSecondPerProjectPerModel"),
    "day": ("generate_content_requests", "GenerateRequestsPerDayPerProjectPerModel"),
    "minute": ("generate_content_token_count", "GenerateContentTokensPerModelPerMinute"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the model came to: text or calls, why it ended, and the tokens that it took."""

    model: str
    id: str
    text: str = ""
    calls: Sequence[dict[str, Any]] = ()
    finish: str = "STOP"
    """SAFETY shows no content, whatever was written."""
    blocked_prompt: bool = False
    no_candidates: bool = False
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    thinking_tokens: int

    def document(self) -> dict[str, Any]:
        """The whole answer."""
        content = [*self.calls] if self.calls else [{"text": self.text}] if self.text else []
        return self._response(content, finish=self.finish, output_tokens=self.output_tokens)

    def chunks(self) -> list[dict[str, Any]]:
        """The answer as a stream gives it: the text piece by piece, usage as it grows, the end of it in the last."""
        if self.calls or not self.text or self.finish == "SAFETY" or self.blocked_prompt or self.no_candidates:
            return [self.document()]
        size = max(_SHORTEST_CHUNK, -(-len(self.text) // _CHUNKS))
        pieces = [self.text[start : start + size] for start in range(0, len(self.text), size)]
        made = []
        for place, piece in enumerate(pieces):
            last = place == len(pieces) - 1
            share = self.output_tokens if last else math.floor(self.output_tokens * (place + 1) / len(pieces))
            made.append(self._response([{"text": piece}], finish=self.finish if last else None, output_tokens=share))
        return made

    def _response(self, content: list[dict[str, Any]], *, finish: str | None, output_tokens: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if self.blocked_prompt:
            made["promptFeedback"] = {"blockReason": "SAFETY", "safetyRatings": _RATINGS}
        elif not self.no_candidates:
            candidate: dict[str, Any] = {"index": 0}
            if finish == "SAFETY":
                candidate["safetyRatings"] = _RATINGS
            else:
                candidate["content"] = {"parts": content, "role": "model"} if content else {"role": "model"}
            if finish is not None:
                candidate["finishReason"] = finish
            made["candidates"] = [candidate]
        return made | {"usageMetadata": self._usage(output_tokens), "modelVersion": self.model, "responseId": self.id}

    def _usage(self, output_tokens: int) -> dict[str, Any]:
        usage: dict[str, Any] = {
            "promptTokenCount": self.input_tokens,
            "totalTokenCount": self.input_tokens + output_tokens + self.thinking_tokens,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": self.input_tokens}],
        }
        # As in protocol buffers, what is nothing is not said.
        counts = {
            "candidatesTokenCount": output_tokens,
            "thoughtsTokenCount": self.thinking_tokens,
            "cachedContentTokenCount": self.cached_tokens,
        }
        return usage | {name: count for name, count in counts.items() if count}


def output_tokens(text: str, calls: Sequence[dict[str, Any]]) -> int:
    """How many tokens an answer is."""
    return sum(tokens_of(orjson.dumps(call["functionCall"]).decode()) for call in calls) if calls else tokens_of(text)


def cut(text: str, tokens: int) -> str:
    """The beginning of `text` that has so many tokens."""
    return text.encode()[: max(0, tokens) * BYTES_PER_TOKEN].decode(errors="ignore")


def over_quota(model: str, excess: Excess) -> Refused:
    """429, with what was exceeded and when to come back."""
    metric, quota = _QUOTAS[excess.dimension]
    metric = f"generativelanguage.googleapis.com/{metric}"
    violation = {
        "quotaMetric": metric,
        "quotaId": quota,
        "quotaDimensions": {"location": "global", "model": model},
        "quotaValue": f"{excess.limit:g}",
    }
    return Refused(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details."
        f"\n* Quota exceeded for metric: {metric}, limit: {excess.limit:g}, model: {model}"
        f"\nPlease retry in {excess.retry_after_seconds:.3f}s.",
        {"@type": f"{_GOOGLE}QuotaFailure", "violations": [violation]},
        retry_info(excess.retry_after_seconds),
    )


def retry_info(seconds: float) -> dict[str, Any]:
    """When to come back, rounded up: who comes then is not early."""
    return {"@type": f"{_GOOGLE}RetryInfo", "retryDelay": f"{math.ceil(seconds * 1000) / 1000:g}s"}


def wrong_key(key: str | None) -> Refused:
    """What is said of no key, and of a wrong one."""
    if not key:
        return Refused(
            403,
            "PERMISSION_DENIED",
            "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other form of"
            " API consumer identity to call this API.",
        )
    info = {
        "@type": f"{_GOOGLE}ErrorInfo",
        "reason": "API_KEY_INVALID",
        "domain": "googleapis.com",
        "metadata": {"service": "generativelanguage.googleapis.com"},
    }
    said = {"@type": f"{_GOOGLE}LocalizedMessage", "locale": "en-US", "message": "API key not valid. Please pass a valid API key."}
    return Refused(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", info, said)


def unknown_model(version: str, model: str, method: str) -> Refused:
    """404 for a model that was never there, or is no longer."""
    return Refused(
        404,
        "NOT_FOUND",
        f"models/{model} is not found for API version {version}, or is not supported for {method}."
        " Call ModelService.ListModels to see the list of available models and their supported methods.",
    )
