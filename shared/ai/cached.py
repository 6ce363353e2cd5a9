"""A model whose replies are kept for an hour: the same request is answered without asking, by all instances that share the cache.

The same is a request whose every component that can change the answer is the same, whoever pays and whatever time it had. A hit
costs nothing and is no call. The cache fails open by itself (see shared.guards.fallback): then every request is asked.
"""

import base64
import hashlib
from collections.abc import Sequence
from typing import Any, Final

import orjson

from shared.ai.base import Model, Reply, Request, ToolCall
from shared.ai.sent import to_json
from shared.guards import Cache
from shared.messages import Usage
from shared.telemetry import metrics

TTL_SECONDS: Final = 3600.0
_LARGEST_BYTES: Final = 256 * 1024


class CachedModel:
    """`inner`, asked when the cache does not know the answer. `models` are the names of the chain that it asks."""

    def __init__(self, inner: Model, cache: Cache, *, models: Sequence[str]) -> None:
        self._inner = inner
        self._cache = cache
        self._models = tuple(models)

    async def generate(self, request: Request) -> Reply:
        """Raises what `inner` does; nothing of that is kept."""
        key = self._key(request)
        stored = await self._cache.get(key)
        hit = None if stored is None else _reply(stored)
        if hit is not None:
            metrics.count("ai.cache.hit")
            return hit
        reply = await self._inner.generate(request)
        value = _stored(reply)
        if reply.problem is None and len(value) <= _LARGEST_BYTES:
            await self._cache.put(key, value, ttl_seconds=TTL_SECONDS)
        return reply

    def _key(self, request: Request) -> str:
        determining = {
            "models": self._models,
            "tier": request.tier,
            "prompt_version": request.prompt_version,
            "prompt": request.prompt,
            "schema": request.schema,
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "tools": request.tools,
            "turns": request.turns,
        }
        return f"reply:{hashlib.sha256(to_json(determining)).hexdigest()}"


def _stored(reply: Reply) -> bytes:
    return to_json({"output": reply.output, "model": reply.model, "calls": reply.calls})


def _reply(stored: bytes) -> Reply | None:
    """What was stored; None when it cannot be read, as when another version wrote it."""
    try:
        kept = orjson.loads(stored)
        calls = tuple(_call(**call) for call in kept["calls"])
        return Reply(output=kept["output"], model=str(kept["model"]), usage=Usage(), calls=calls)
    except (ValueError, TypeError, KeyError):
        return None


def _call(*, name: str, arguments: dict[str, Any], id: str | None, signature: str | None) -> ToolCall:
    return ToolCall(name, arguments, id, None if signature is None else base64.b64decode(signature, validate=True))
