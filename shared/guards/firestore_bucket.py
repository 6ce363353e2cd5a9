"""One bucket in Firestore as one instance knows it: who waits, what it holds by lease, and the one document behind both.

Everything about the shared document is one compare-and-set write. See firestore_limiter for how often.
"""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, NamedTuple, TypedDict

from shared.clock import Clock
from shared.errors import AgentTeamError, RateLimited, StoreUnavailable
from shared.guards import firestore_schedule, policy
from shared.guards.base import Window
from shared.guards.firestore_document import Stored, decode, encode
from shared.guards.firestore_schedule import Lease, Schedule
from shared.guards.firestore_store import FirestoreStore, seconds
from shared.guards.policy import Bucket

_LONGEST_SPACING: Final = 10.0  # times the spacing that was asked for
_REMEMBERED_SPACINGS: Final = 2.0
_MARGIN_SECONDS: Final = 0.2
"""For the write itself, at the end of a wait."""
_HEADROOM: Final = 2.0
"""Calls come unevenly: so much more is leased than is used on average."""


class _Costs(TypedDict):
    rate: float
    burst: float
    cost: float
    windows: Sequence[Window]


class _Caller(NamedTuple):
    rate: float
    burst: float
    cost: float
    windows: tuple[Window, ...]
    max_wait_seconds: float | None
    asked_at: float
    answer: "asyncio.Future[float]"

    def costs(self, now: float) -> _Costs:
        """What the call takes of which limits, told at a moment after it was made."""
        passed = now - self.asked_at
        windows = [replace(window, ends_in_seconds=window.ends_in_seconds - passed) for window in self.windows]
        return {"rate": self.rate, "burst": self.burst, "cost": self.cost, "windows": windows}


class _Correction(NamedTuple):
    window: str
    cost: float
    used_at: float


class _Decision(NamedTuple):
    schedule: Schedule
    answers: Sequence[tuple[float, bool]]
    taken: Sequence[_Caller]
    corrections: int
    """How many of those that waited are part of it."""
    changes: bool
    """Whether it must be written."""


class SharedBucket:
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
        self._corrections: list[_Correction] = []
        """Of windows; not written yet."""
        self._correcting: asyncio.Task[None] | None = None
        self._known = Stored()
        self._unlent = Schedule()
        """What the schedule is if nobody else has written since: every token that was used of a lease taken in its turn."""
        self._held = Lease()
        self._held_until = 0.0
        self._wrote_at = float("-inf")
        self._used = 0.0
        """Tokens given out since the last write."""
        self._usage = 0.0
        self._others_write = False

    @property
    def idle(self) -> bool:
        return self._serving is None and self._correcting is None

    async def reserve(
        self, rate: float, burst: float, cost: float, windows: Sequence[Window], max_wait_seconds: float | None
    ) -> float:
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        caller = _Caller(rate, burst, cost, tuple(windows), max_wait_seconds, self._now(), answer)
        if not self._waiting and self._use(caller):
            return 0.0
        self._waiting.append(caller)
        if self._serving is None:
            self._serving = asyncio.get_running_loop().create_task(self._serve())
        return await answer

    async def settle(self, window: str, cost: float, age_seconds: float) -> None:
        now = self._now()
        self._corrections.append(_Correction(window, cost, now - age_seconds))
        if now >= self._held_until:
            await self._correct()
        elif self._correcting is None:
            self._correcting = asyncio.get_running_loop().create_task(self._correct_after(self._held_until - now))

    async def penalise(self, duration_seconds: float) -> None:
        async with self._changing:
            for pause in self._store.pauses():
                stored = await self._read()
                now = self._now()
                freed = firestore_schedule.give_back(stored.schedule, now, self._held)
                bucket = policy.penalise(Bucket(freed.full_at, freed.blocked_until), now, duration_seconds)
                if bucket.blocked_until == stored.schedule.blocked_until:
                    return
                blocked = freed._replace(blocked_until=bucket.blocked_until)
                self._held = Lease()  # from here on nobody is served of it, whoever wins the race
                if await self._write(stored, blocked, blocked, now):
                    return
                await self._clock.sleep(pause)
            raise self._store.crowded(f"rate limit {self._name}")

    async def close(self) -> None:
        for task in (self._serving, self._correcting):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))

    def _now(self) -> float:
        return seconds(self._clock.now())

    def _use(self, caller: _Caller) -> bool:
        """Serve one caller of what is held."""
        now = self._now()
        if not self._held.stretches or now >= self._held_until:
            return False
        costs = caller.costs(now)
        left = firestore_schedule.use(self._held, now, **costs)
        if left is None:
            return False
        self._held = left
        self._used += caller.cost
        _, self._unlent = firestore_schedule.reserve(self._unlent, now, **costs)
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
                if not self._use(caller):
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

    async def _correct_after(self, pause_seconds: float) -> None:
        await self._clock.sleep(pause_seconds)
        self._correcting = None
        with suppress(AgentTeamError):  # nobody waits for it; what could not be written is tried again with the next write
            await self._correct()

    async def _correct(self) -> None:
        async with self._changing:
            await self._settle(())

    async def _settle(self, batch: Sequence[_Caller]) -> None:
        """Reserve for all of a batch, and correct, by one write. Who would wait too long is refused, which needs no write."""
        if not batch and not self._corrections:
            return
        # What is given back by the write that follows must not be used up meanwhile; if the write fails it is lost.
        held, self._held = self._held, Lease()
        fresh = self._others_write
        for pause in self._store.pauses():
            stored = await self._read() if fresh else self._known
            now = self._now()
            decision = self._decide(stored, held, batch, now)
            written = decision.changes and await self._write_with_lease(stored, decision, now)
            if written or (fresh and not decision.changes):
                self._held = self._held if written else held
                del self._corrections[: decision.corrections]
                self._answer(batch, decision.answers, now)
                return
            if decision.changes and fresh:
                await self._clock.sleep(pause)
            fresh = True
        raise self._store.crowded(f"rate limit {self._name}")

    def _decide(self, stored: Stored, held: Lease, batch: Sequence[_Caller], now: float) -> _Decision:
        """The schedule after the batch; and for each caller the wait and whether it was granted."""
        if stored.version == self._known.version:
            schedule = self._unlent
        else:
            schedule = firestore_schedule.give_back(stored.schedule, now, held)
        before = records = schedule.windows
        for one in self._corrections:
            records = policy.settle(records, used_at=one.used_at, window=one.window, cost=one.cost)
        schedule = schedule._replace(windows=records)
        answers, taken = [], []
        for caller in batch:
            wait, after = firestore_schedule.reserve(schedule, now, **caller.costs(now))
            granted = caller.max_wait_seconds is None or wait <= caller.max_wait_seconds
            answers.append((wait, granted))
            if granted:
                schedule = after
                taken.append(caller)
        return _Decision(schedule, answers, taken, len(self._corrections), bool(taken) or records is not before)

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

    async def _write_with_lease(self, stored: Stored, decision: _Decision, now: float) -> bool:
        """Write the schedule, less a lease for who may come next. False when somebody else was faster."""
        cost = sum(caller.cost for caller in decision.taken)
        elapsed = now - self._wrote_at
        self._watch(stored, elapsed)
        each_second = self._each_second(elapsed, self._used + cost)
        lent, rest = self._lease(decision, cost, each_second, now)
        used = self._used
        if not await self._write(stored, rest, decision.schedule, now):
            return False
        self._used -= used
        self._usage = each_second
        self._held = lent
        self._held_until = now + _HEADROOM * self._spacing
        return True

    def _lease(self, decision: _Decision, cost: float, each_second: float, now: float) -> tuple[Lease, Schedule]:
        """What is worth lending to callers like those of the batch."""
        taken, tokens = decision.taken, _HEADROOM * self._spacing * each_second
        if not taken or not tokens >= cost / len(taken) > 0:
            return Lease(), decision.schedule
        wanted = []
        for window in taken[-1].costs(now)["windows"]:
            asked = sum(one.cost for caller in taken for one in caller.windows if one.name == window.name)
            wanted.append(replace(window, cost=asked / cost * tokens))
        return firestore_schedule.lease(
            decision.schedule,
            now,
            rate=taken[-1].rate,
            burst=taken[-1].burst,
            tokens=tokens,
            seconds=self._spacing,
            windows=wanted,
        )

    def _each_second(self, elapsed: float, used: float) -> float:
        """How many tokens callers of late asked for in a second, `used` of them in the last `elapsed` seconds."""
        if not self._least_spacing:
            return 0.0
        memory = _REMEMBERED_SPACINGS * self._least_spacing
        return self._usage * math.exp(-elapsed / memory) + used / max(memory, min(elapsed, 2 * memory))

    def _watch(self, stored: Stored, elapsed: float) -> None:
        """Stretch the spacing until all who write to this document do so about once in the least spacing."""
        if not self._spacing:
            return
        others = stored.writes - self._known.writes if self._known.version else 0
        in_a_spacing = others * self._spacing / max(elapsed, self._spacing)
        self._spacing = min(self._least_spacing * (1 + in_a_spacing), self._least_spacing * _LONGEST_SPACING)

    async def _read(self) -> Stored:
        stored = decode(await self._store.read(self._path))
        self._others_write = stored.version != self._known.version
        return stored

    async def _write(self, stored: Stored, schedule: Schedule, unlent: Schedule, now: float) -> bool:
        fields = encode(schedule, stored.writes + 1)
        if stored.version is None:
            version = await self._store.create(self._path, fields)
        else:
            version = await self._store.replace(self._path, fields, stored.version)
        if version is None:
            self._others_write = True
            return False
        self._known = Stored(schedule, stored.writes + 1, version)
        self._unlent = unlent
        self._wrote_at = now
        return True
