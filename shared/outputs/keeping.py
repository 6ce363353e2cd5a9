"""What is kept apart and what stands where it is used: the rules, whatever the store.

A value of more than 64 KB of JSON is put under its hash and replaced by a reference. What is read is checked against the hash: it
is what was put, or it is refused. A store that does not answer is asked again a few times: the answer of a model may hang on it.
What was read or written last stays at hand, up to 64 MB of it.
"""

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from math import inf
from typing import Any, Final, TypeVar

import orjson

from shared.clock import Clock
from shared.errors import ConfigurationError, InputError, NotFound, OutputDamaged, Transient
from shared.outputs.base import INLINE_BYTES, LARGEST_BYTES, OutputStore
from shared.references import Reference, may_refer, reference, references, replaced

_log = logging.getLogger(__name__)
_PAUSES_SECONDS: Final = (0.2, 0.4, 0.8)
_CACHE_BYTES: Final = LARGEST_BYTES
_LARGE_TO_HASH: Final = 1024 * 1024
"""From here on hashing takes longer than the way to another thread."""
_BATCH: Final = 500
_LOOK_SECONDS: Final = 3600.0
_DEPTH: Final = 2
"""How deep large parts of a value are looked for before the whole is put: an item of a list, and what is in it."""

_Answer = TypeVar("_Answer")
InUse = Callable[[list[str]], Awaitable[Iterable[str]]]
"""Which of these hashes somebody refers to."""


class Outputs:
    """Keeps values and reads them again. Without a store everything stands where it is used, as far as that goes."""

    def __init__(self, store: OutputStore | None, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache: OrderedDict[str, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._looked_at = -inf

    @property
    def opened(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    async def keep(self, value: Any, *, encoded: bytes | None = None) -> Any:
        """`value`, or the reference to it when it is large. `encoded` is its JSON, where that is at hand.

        Raises InputError for a value that is no JSON or too large for the store, and what the store raises.
        """
        data = _json(value) if encoded is None else encoded
        return value if len(data) <= INLINE_BYTES or self._store is None else (await self._put(data)).as_json()

    async def keep_parts(self, value: Any, known: dict[int, Any] | None = None) -> Any:
        """The same, with as small a part of a mapping as possible: what several values share is kept once.

        `known` is for values that live on together: what is one object in several of them is put once, too.
        """
        return await self._keep_parts(value, _DEPTH, {} if known is None else known)

    async def whole(self, value: Any) -> Any:
        """`value` with everything in place that is stored apart. Errors as `read`."""
        values: dict[Reference, Any] = {}
        for one in references(value):
            data = await self.read(one)
            stored = orjson.loads(data)
            # What was put in parts refers to its parts. To look for them in what is large would copy it.
            values[one] = await self.whole(stored) if may_refer(data) else stored
        return replaced(value, values) if values else value

    async def whole_json(self, value: Any) -> bytes:
        """The JSON of `value` whole; of what is one stored value the very bytes that were stored."""
        stored = reference(value)
        data = await self.read(stored) if stored is not None else _json(value)
        return data if not may_refer(data) else _json(await self.whole(value))

    async def load(self, wanted: Iterable[Reference]) -> dict[Reference, Any]:
        """What is stored, by reference. Errors as `read`."""
        return {one: orjson.loads(await self.read(one)) for one in wanted}

    async def read(self, wanted: Reference) -> bytes:
        """The JSON that is stored.

        Raises NotFound when it is not there (any more), OutputDamaged when it is not what was stored, ConfigurationError without a
        store, StoreUnavailable.
        """
        known = self._cache.get(wanted.sha256)
        if known is not None:
            self._cache.move_to_end(wanted.sha256)
            return known
        store = self._store
        if store is None:
            raise ConfigurationError(f"output {wanted.sha256} is stored apart; set OUTPUTS_URL to where that is")
        data = await self._patiently(lambda: store.get(wanted.sha256))
        if data is None:
            raise NotFound(
                f"output {wanted.sha256} is not where OUTPUTS_URL says; correct that, or run the workflow again if it was deleted"
            )
        if await _hash(data) != wanted.sha256:
            raise OutputDamaged(
                f"output {wanted.sha256} is damaged: the {len(data)} bytes in the store are others than were put there; "
                "delete it there and run the workflow again"
            )
        self._remember(wanted.sha256, data)
        return data

    def is_due(self) -> bool:
        """Whether it is time to look for what may go: once an hour."""
        now = self._clock.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return False
        self._looked_at = now
        return True

    async def expire(self, older_than: timedelta, in_use: InUse) -> int:
        """Delete what was put longer ago and is not in use; how many there were."""
        if self._store is None:
            return 0
        stale, gone = await self._store.stale(older_than), 0
        for start in range(0, len(stale), _BATCH):
            batch = stale[start : start + _BATCH]
            kept = set(await in_use(batch))
            gone += await self._store.remove([id for id in batch if id not in kept], older_than)
        return gone

    async def close(self) -> None:
        """Free what is held."""
        if self._store is not None:
            await self._store.close()

    async def _keep_parts(self, value: Any, depth: int, known: dict[int, Any]) -> Any:
        if id(value) in known:
            return known[id(value)]
        data = _json(value)
        if len(data) <= INLINE_BYTES or self._store is None:
            return value
        kept: Any = None
        if depth and isinstance(value, Mapping):
            parts = {key: await self._keep_parts(one, depth - 1, known) for key, one in value.items()}
            data = _json(parts)
            kept = parts if len(data) <= INLINE_BYTES else None
        if kept is None:
            kept = (await self._put(data)).as_json()
        known[id(value)] = kept
        return kept

    async def _put(self, data: bytes) -> Reference:
        store = self._store
        assert store is not None
        if len(data) > LARGEST_BYTES:
            raise InputError(f"an output of {len(data)} bytes is over the {LARGEST_BYTES} that are kept; give less at once")
        if _holds_nul(data):
            raise InputError("an output holds a NUL character, which cannot be stored; remove it")
        id = await _hash(data)
        # Put even where it is at hand: the store learns that it is in use again.
        await self._patiently(lambda: store.put(id, data))
        self._remember(id, data)
        return Reference(id, len(data))

    async def _patiently(self, call: Callable[[], Awaitable[_Answer]]) -> _Answer:
        for pause in _PAUSES_SECONDS:
            try:
                return await call()
            except Transient as error:
                _log.warning("the store of outputs: %s; asking again in %g s", error, pause)
            await self._clock.sleep(pause)
        return await call()

    def _remember(self, id: str, data: bytes) -> None:
        if id in self._cache:
            self._cache.move_to_end(id)
            return
        self._cache[id] = data
        self._cached_bytes += len(data)
        while self._cached_bytes > _CACHE_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])


async def _hash(data: bytes) -> str:
    if len(data) < _LARGE_TO_HASH:
        return hashlib.sha256(data).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise InputError(f"an output cannot be written as JSON: {error}") from error


def _holds_nul(data: bytes) -> bool:
    # Escaped backslashes go first, because a text about NUL looks like one behind them.
    return b"\\u0000" in data and b"\\u0000" in data.replace(b"\\\\", b"  ")
