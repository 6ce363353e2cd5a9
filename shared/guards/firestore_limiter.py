"""Rate limits in Firestore, where one document bears about one write a second for long.

- Callers of one instance who come while a write is under way share the next one, first come, first served.
- Who has to wait anyway lets up to `spacing_seconds` of that wait pass before being written, so that others can join.
- Who calls often gets a lease along with the write, of tokens and of each window, and uses it up without writing. It counts as
  taken meanwhile: the limit holds whatever becomes of it (firestore_schedule says why). What is left is given back with the next
  write.
- Corrections of windows go along with the next write, or get one of their own when the lease has ended.

Each instance counts the others' writes and stretches its own spacing until all together write about once in `spacing_seconds`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from shared.clock import Clock
from shared.guards import policy
from shared.guards.base import Window
from shared.guards.firestore_bucket import SharedBucket
from shared.guards.firestore_store import FirestoreStore

_KNOWN_BUCKETS: Final = 1024


class FirestoreRateLimiter:
    """Buckets. With `spacing_seconds` 0 every batch of callers is written at once and nothing is leased."""

    def __init__(self, store: FirestoreStore, clock: Clock, *, spacing_seconds: float = 1.0) -> None:
        self._store = store
        self._clock = clock
        self._spacing_seconds = spacing_seconds
        self._buckets: OrderedDict[str, SharedBucket] = OrderedDict()

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
        policy.check_limit(rate=rate, burst=burst, cost=cost, windows=windows)
        return await self._bucket(bucket).reserve(rate, burst, cost, windows, max_wait_seconds)

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        """As promised, but for other instances and what this one holds by lease: those learn it two spacings later at most."""
        await self._bucket(bucket).settle(window, cost, age_seconds)

    async def penalise(self, bucket: str, seconds: float) -> None:
        """As promised, but for tokens that other instances hold by lease: those they may use up, for one spacing at most."""
        await self._bucket(bucket).penalise(seconds)

    async def close(self) -> None:
        """Refuse whoever still waits for an answer."""
        for bucket in self._buckets.values():
            await bucket.close()

    def _bucket(self, name: str) -> SharedBucket:
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = SharedBucket(name, self._store, self._clock, self._spacing_seconds)
            oldest = next(iter(self._buckets))
            if len(self._buckets) > _KNOWN_BUCKETS and self._buckets[oldest].idle:
                del self._buckets[oldest]  # its lease, if any, is lost
        self._buckets.move_to_end(name)
        return bucket
