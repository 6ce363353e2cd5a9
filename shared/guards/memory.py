"""Guards in the memory of one process, for one event loop.

They decide by shared.guards.policy. No operation awaits anything between reading and writing, so each is atomic. What is stored is
bounded: records are forgotten a few at a time once their time is over, and the cache evicts what was least recently used.
"""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from shared.clock import Clock
from shared.errors import CircuitOpen, RateLimited
from shared.guards import policy
from shared.guards.base import Claim, Guards, Window
from shared.guards.policy import NEW_BUCKET, BreakerRules, Bucket, Circuit, ClaimRecord


class _Mortal(Protocol):
    @property
    def expires_at(self) -> float: ...


_R = TypeVar("_R", bound=_Mortal)

_FORGOTTEN_PER_WRITE = 2  # more than the one record that a write can add: what has expired shrinks


class _Shelf(Generic[_R]):
    """Records by key, forgotten when their time is over: a little at every write, so no single call pays for many."""

    __slots__ = ("_due", "_records")

    def __init__(self) -> None:
        self._records: dict[str, _R] = {}
        self._due: list[tuple[float, str]] = []
        """A heap with one entry per record; a record that was prolonged since is looked at early and put back."""

    def __len__(self) -> int:
        return len(self._records)

    def get(self, key: str) -> _R | None:
        """The record, which may have expired."""
        return self._records.get(key)

    def put(self, key: str, record: _R, now: float) -> None:
        if key not in self._records:
            heapq.heappush(self._due, (record.expires_at, key))
        self._records[key] = record
        due = self._due
        for _ in range(_FORGOTTEN_PER_WRITE):
            if not due or due[0][0] > now:
                return
            self._forget_or_keep(due[0][1], now)

    def _forget_or_keep(self, key: str, now: float) -> None:
        record = self._records[key]
        if record.expires_at > now:
            heapq.heapreplace(self._due, (record.expires_at, key))
        else:
            heapq.heappop(self._due)
            del self._records[key]


class MemoryIdempotency:
    """Claims. `len()` is the number of records held."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._tokens = itertools.count(1)
        self._records: _Shelf[ClaimRecord] = _Shelf()

    def __len__(self) -> int:
        return len(self._records)

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        now = self._now()
        answer, record = policy.claim(
            self._records.get(key), now, token=str(next(self._tokens)), lease_seconds=lease_seconds, ttl_seconds=ttl_seconds
        )
        if record is not None:
            self._records.put(key, record, now)
        return answer

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        now = self._now()
        return self._store(key, policy.renew(self._records.get(key), now, token=token, lease_seconds=lease_seconds), now)

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        now = self._now()
        return self._store(key, policy.complete(self._records.get(key), now, token=token, result=result), now)

    async def release(self, key: str, *, token: str) -> bool:
        now = self._now()
        return self._store(key, policy.release(self._records.get(key), now, token=token), now)

    def _store(self, key: str, record: ClaimRecord | None, now: float) -> bool:
        if record is None:
            return False
        self._records.put(key, record, now)
        return True


class MemoryRateLimiter:
    """Buckets. `len()` is the number of those that are not known to be full."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._buckets: _Shelf[Bucket] = _Shelf()

    def __len__(self) -> int:
        return len(self._buckets)

    async def reserve(
        self,
        bucket: str,
        *,
        rate: float,
        burst: float,
        cost: float = 1.0,
        windows: Sequence[Window] = (),
        max_wait_seconds: float | None = None,
    ) -> float:
        now = self._now()
        wait, after = policy.reserve(self._known(bucket), now, rate=rate, burst=burst, cost=cost, windows=windows)
        if max_wait_seconds is not None and wait > max_wait_seconds:
            raise RateLimited(policy.refusal(bucket, wait, max_wait_seconds), retry_after_seconds=wait)
        self._buckets.put(bucket, after, now)
        return wait

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        now, known = self._now(), self._known(bucket)
        records = policy.settle(known.windows, used_at=now - age_seconds, window=window, cost=cost)
        if records is not known.windows:
            self._buckets.put(bucket, known._replace(windows=records), now)

    async def penalise(self, bucket: str, seconds: float) -> None:
        now = self._now()
        self._buckets.put(bucket, policy.penalise(self._known(bucket), now, seconds), now)

    def _known(self, bucket: str) -> Bucket:
        known = self._buckets.get(bucket)
        return NEW_BUCKET if known is None else known


class MemoryBreaker:
    """Circuit breakers by name. A name stays known: use few, such as the models'."""

    def __init__(self, clock: Clock, rules: BreakerRules | None = None) -> None:
        self._now = clock.monotonic
        self._rules = BreakerRules() if rules is None else rules
        self._circuits: dict[str, Circuit] = {}

    async def before(self, name: str) -> None:
        refused_for, circuit = policy.permit(self._circuit(name), self._now(), self._rules)
        if refused_for is not None:
            raise CircuitOpen(policy.open_message(name, circuit.state, refused_for), retry_after_seconds=refused_for)
        self._circuits[name] = circuit

    async def after(self, name: str, *, success: bool) -> None:
        self._circuits[name] = policy.report(self._circuit(name), self._now(), self._rules, success=success)

    async def state(self, name: str) -> str:
        return policy.state(self._circuit(name), self._now())

    def _circuit(self, name: str) -> Circuit:
        return self._circuits.get(name, Circuit())


class MemoryCache:
    """Values by key, the least recently used evicted first. Keys and values together stay within `max_bytes`.

    A value that alone is larger is not kept. `len()` is the number of entries, expired ones that nobody asked for included.
    """

    def __init__(self, clock: Clock, *, max_entries: int = 10_000, max_bytes: int = 64 * 1024 * 1024) -> None:
        self._now = clock.monotonic
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        value, expires_at = entry
        if expires_at <= self._now():
            self._remove(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if key in self._entries:
            self._remove(key)
        size = len(key) + len(value)
        if size > self._max_bytes:
            return
        self._entries[key] = (value, self._now() + ttl_seconds)
        self._bytes += size
        while self._bytes > self._max_bytes or len(self._entries) > self._max_entries:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: str) -> None:
        value, _ = self._entries.pop(key)
        self._bytes -= len(key) + len(value)


def open_memory(clock: Clock) -> Guards:
    """Guards that this process shares with nobody, all empty."""
    return Guards(MemoryIdempotency(clock), MemoryRateLimiter(clock), MemoryBreaker(clock), MemoryCache(clock))
