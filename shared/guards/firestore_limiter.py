"""Token buckets in Firestore, where one document bears about one write a second for long.

- Callers of one instance who come while a write is under way share the next one, first come, first served.
- Who has to wait anyway lets up to `spacing_seconds` of that wait pass before being written, so that others can join.
- Who calls often gets a lease of tokens along with the write, and uses it up without writing. It counts as taken meanwhile: the
  limit holds whatever becomes of it (firestore_schedule says why), and what is left is given back with the next write.

Each instance counts the others' writes and stretches its own spacing until all together write about once in `spacing_seconds`.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, cast

from shared.clock import Clock
from shared.errors import AgentTeamError, RateLimited, StoreUnavailable
from shared.guards import firestore_schedule, policy
from shared.guards.firestore_schedule import Schedule, Stretch
from shared.guards.firestore_store import Document, Fields, FirestoreStore, Version, moment, seconds
from shared.guards.policy import Bucket

_LONGEST_SPACING: Final = 10.0  # times the spacing that was asked for
_REMEMBERED_SPACINGS: Final = 2.0
_MARGIN_SECONDS: Final = 0.2
"""For the write itself, at the end of a wait."""
_HEADROOM: Final = 2.0
"""Calls come unevenly: so much more is leased than is used on average."""
_KNOWN_BUCKETS: Final = 1024


class _Caller(NamedTuple):
    rate: float
    burst: float
    cost: float
    max_wait_seconds: float | None
    answer: "asyncio.Future[float]"


class _Stored(NamedTuple):
    """What the document said, and when it said so."""

    schedule: Schedule
    writes: int
    version: Version | None


class FirestoreRateLimiter:
    """Token buckets. With `spacing_seconds` 0 every batch of callers is written at once and nothing is leased."""

    def __init__(self, store: FirestoreStore, clock: Clock, *, spacing_seconds: float = 1.0) -> None:
        self._store = store
        self._clock = clock
        self._spacing_seconds = spacing_seconds
        self._buckets: OrderedDict[str, _SharedBucket] = OrderedDict()

    async def reserve(
        self, bucket: str, *, rate: float, burst: float, cost: float = 1.0, max_wait_seconds: float | None = None
    ) -> float:
        policy.check_limit(rate=rate, burst=burst, cost=cost)
        return await self._bucket(bucket).reserve(rate, burst, cost, max_wait_seconds)

    async def penalise(self, bucket: str, seconds: float) -> None:
        """As promised, but for tokens that other instances hold by lease: those they may use up, for one spacing at most."""
        await self._bucket(bucket).penalise(seconds)

    async def close(self) -> None:
        """Refuse whoever still waits for an answer."""
        for bucket in self._buckets.values():
            await bucket.close()

    def _bucket(self, name: str) -> "_SharedBucket":
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _SharedBucket(name, self._store, self._clock, self._spacing_seconds)
            oldest = next(iter(self._buckets))
            if len(self._buckets) > _KNOWN_BUCKETS and self._buckets[oldest].idle:
                del self._buckets[oldest]  # its lease, if any, is lost
        self._buckets.move_to_end(name)
        return bucket


class _SharedBucket:
    """One bucket as one instance knows it."""

    def __init__(self, name: str, store: FirestoreStore, clock: Clock, spacing_seconds: float) -> None:
        self._name = name
        self._store = store
        self._path = store.path("buckets", name)
        self._clock = clock
        self._least_spacing = self._spacing = spacing_seconds
        self._waiting: list[_Caller] = []
        self._serving: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._known = _Stored(Schedule(), 0, None)
        self._unlent = Schedule()
        """What the schedule is if nobody else has written since: every token that was used of a lease taken in its turn."""
        self._held: tuple[Stretch, ...] = ()
        self._held_until = 0.0
        self._wrote_at = float("-inf")
        self._used = 0.0
        """Tokens given out since the last write."""
        self._usage = 0.0
        self._others_write = False

    @property
    def idle(self) -> bool:
        return self._serving is None

    async def reserve(self, rate: float, burst: float, cost: float, max_wait_seconds: float | None) -> float:
        if self._held and not self._waiting and self._use(rate, burst, cost):
            return 0.0
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Caller(rate, burst, cost, max_wait_seconds, answer))
        if self._serving is None:
            self._serving = asyncio.get_running_loop().create_task(self._serve())
        return await answer

    async def penalise(self, duration_seconds: float) -> None:
        async with self._changing:
            for pause in self._store.pauses():
                stored = await self._read()
                now = self._now()
                freed = firestore_schedule.give_back(stored.schedule, now, self._held)
                bucket = policy.penalise(Bucket(freed.full_at, freed.blocked_until), now, duration_seconds)
                if bucket.blocked_until == stored.schedule.blocked_until:
                    return
                blocked = Schedule(bucket.full_at, bucket.blocked_until, freed.holes)
                self._held = ()  # from here on nobody is served of it, whoever wins the race
                if await self._write(stored, blocked, blocked, now):
                    return
                await self._clock.sleep(pause)
            raise self._store.crowded(f"rate limit {self._name}")

    async def close(self) -> None:
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait((self._serving,))

    def _now(self) -> float:
        return seconds(self._clock.now())

    def _use(self, rate: float, burst: float, cost: float) -> bool:
        """Serve one caller of what is held."""
        now = self._now()
        if now >= self._held_until:
            return False
        left = firestore_schedule.use(self._held, now, rate=rate, burst=burst, cost=cost)
        if left is None:
            return False
        self._held = left
        self._used += cost
        _, self._unlent = firestore_schedule.reserve(self._unlent, now, rate=rate, burst=burst, cost=cost)
        return True

    async def _serve(self) -> None:
        """Answer whoever waits, until nobody does."""
        batch: list[_Caller] = []
        error: Exception = StoreUnavailable(f"rate limit {self._name}: the guards were closed meanwhile")
        try:
            while self._waiting:
                pause = self._linger()
                if pause > 0:
                    await self._clock.sleep(pause)
                async with self._changing:
                    batch, self._waiting = self._waiting, []
                    await self._settle([caller for caller in batch if not caller.answer.done()])
                self._serve_of_lease()
        except AgentTeamError as refused:
            error = refused
        finally:
            self._serving = None
            unanswered, self._waiting = [*batch, *self._waiting], []
            for caller in unanswered:
                if not caller.answer.done():
                    caller.answer.set_exception(error)

    def _serve_of_lease(self) -> None:
        """Answer those who came during a write as far as its lease goes."""
        served = 0
        for caller in self._waiting:
            if not caller.answer.done():
                if not self._use(caller.rate, caller.burst, caller.cost):
                    break
                caller.answer.set_result(0.0)
            served += 1
        del self._waiting[:served]

    def _linger(self) -> float:
        """How long whoever waits can be left unwritten without losing anything by it."""
        if not self._spacing:
            return 0.0
        now = self._now()
        due = self._wrote_at + self._spacing - now
        for caller in self._waiting:
            wait, _ = firestore_schedule.reserve(self._known.schedule, now, rate=caller.rate, burst=caller.burst, cost=0.0)
            if caller.max_wait_seconds is not None and wait > caller.max_wait_seconds:
                return 0.0
            due = min(due, wait - _MARGIN_SECONDS)
        return due

    async def _settle(self, batch: Sequence[_Caller]) -> None:
        """Reserve for all of a batch by one write. Who would wait too long is refused, which needs no write."""
        if not batch:
            return
        # What is given back by the write that follows must not be used up meanwhile; if the write fails it is lost.
        held, self._held = self._held, ()
        fresh = self._others_write
        for pause in self._store.pauses():
            stored = await self._read() if fresh else self._known
            now = self._now()
            schedule, answers = self._decide(stored, held, batch, now)
            taken = [caller for caller, (_, granted) in zip(batch, answers, strict=True) if granted]
            if not taken and fresh:
                self._held = held
                self._answer(batch, answers, now)
                return
            if taken and await self._write_with_lease(stored, schedule, taken, now):
                self._answer(batch, answers, now)
                return
            if taken and fresh:
                await self._clock.sleep(pause)
            fresh = True
        raise self._store.crowded(f"rate limit {self._name}")

    def _decide(
        self, stored: _Stored, held: Iterable[Stretch], batch: Sequence[_Caller], now: float
    ) -> tuple[Schedule, list[tuple[float, bool]]]:
        """The schedule after the batch; and for each caller the wait and whether it was granted."""
        if stored.version == self._known.version:
            schedule = self._unlent
        else:
            schedule = firestore_schedule.give_back(stored.schedule, now, held)
        answers = []
        for caller in batch:
            wait, after = firestore_schedule.reserve(schedule, now, rate=caller.rate, burst=caller.burst, cost=caller.cost)
            granted = caller.max_wait_seconds is None or wait <= caller.max_wait_seconds
            answers.append((wait, granted))
            schedule = after if granted else schedule
        return schedule, answers

    def _answer(self, batch: Sequence[_Caller], answers: Sequence[tuple[float, bool]], decided_at: float) -> None:
        passed = self._now() - decided_at
        for caller, (wait, granted) in zip(batch, answers, strict=True):
            if caller.answer.done():
                continue
            if granted:
                caller.answer.set_result(max(0.0, wait - passed))
            else:
                message = policy.refusal(self._name, wait, caller.max_wait_seconds or 0.0)
                caller.answer.set_exception(RateLimited(message, retry_after_seconds=wait))

    async def _write_with_lease(self, stored: _Stored, schedule: Schedule, taken: Sequence[_Caller], now: float) -> bool:
        """Write the schedule, less a lease for who may come next. False when somebody else was faster."""
        cost = sum(caller.cost for caller in taken)
        elapsed = now - self._wrote_at
        self._watch(stored, elapsed)
        lent: tuple[Stretch, ...] = ()
        rest = schedule
        each_second = self._each_second(elapsed, self._used + cost)
        tokens = _HEADROOM * self._spacing * each_second
        if tokens >= cost / len(taken) > 0:
            limit = taken[-1]
            lent, rest = firestore_schedule.lease(
                schedule, now, rate=limit.rate, burst=limit.burst, tokens=tokens, seconds=self._spacing
            )
        used = self._used
        if not await self._write(stored, rest, schedule, now):
            return False
        self._used -= used
        self._usage = each_second
        self._held = lent
        self._held_until = now + _HEADROOM * self._spacing
        return True

    def _each_second(self, elapsed: float, used: float) -> float:
        """How many tokens callers of late asked for in a second, `used` of them in the last `elapsed` seconds."""
        if not self._least_spacing:
            return 0.0
        memory = _REMEMBERED_SPACINGS * self._least_spacing
        return self._usage * math.exp(-elapsed / memory) + used / max(memory, min(elapsed, 2 * memory))

    def _watch(self, stored: _Stored, elapsed: float) -> None:
        """Stretch the spacing until all who write to this document do so about once in the least spacing."""
        if not self._spacing:
            return
        others = stored.writes - self._known.writes if self._known.version else 0
        in_a_spacing = others * self._spacing / max(elapsed, self._spacing)
        self._spacing = min(self._least_spacing * (1 + in_a_spacing), self._least_spacing * _LONGEST_SPACING)

    async def _read(self) -> _Stored:
        document = await self._store.read(self._path)
        stored = _Stored(Schedule(), 0, None) if document is None else _decode(document)
        self._others_write = stored.version != self._known.version
        return stored

    async def _write(self, stored: _Stored, schedule: Schedule, unlent: Schedule, now: float) -> bool:
        fields = _encode(schedule, stored.writes + 1)
        if stored.version is None:
            version = await self._store.create(self._path, fields)
        else:
            version = await self._store.replace(self._path, fields, stored.version)
        if version is None:
            self._others_write = True
            return False
        self._known = _Stored(schedule, stored.writes + 1, version)
        self._unlent = unlent
        self._wrote_at = now
        return True


def _encode(schedule: Schedule, writes: int) -> Fields:
    holes = tuple(edge for hole in schedule.holes for edge in hole)
    return {
        "full_at": schedule.full_at,
        "blocked_until": schedule.blocked_until,
        "holes": holes,
        "writes": writes,
        "expire_at": moment(max(schedule.full_at, schedule.blocked_until)),
    }


def _decode(document: Document) -> _Stored:
    fields = document.fields
    edges = cast("tuple[float, ...]", fields["holes"])
    holes = tuple(Stretch(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True))
    schedule = Schedule(cast(float, fields["full_at"]), cast(float, fields["blocked_until"]), holes)
    return _Stored(schedule, cast(int, fields["writes"]), document.version)
