"""Hands the messages of one subscription in Redis to its handler.

One loop reads on a connection of its own, blocked until a message comes. It asks for as many as there are free places, so that
what this process cannot work on yet is left to others. Twice a second, or when something that is held back is due, it also looks
for what has to come again. What became of deliveries is written down together: while one call is under way, the next batch gathers.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from redis.asyncio.connection import AbstractConnection

from shared.bus.base import Delivery, Handler, Message, Outcome, Subscription
from shared.bus.mishaps import deadline_missed, handler_raised
from shared.bus.policy import Fate, dead_letter, fate
from shared.bus.redis_group import Entry, Failed, Group, Held, published_milliseconds
from shared.clock import Clock
from shared.errors import AgentTeamError
from shared.telemetry import describe_error, metrics

_log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.5
_SHORTEST_LOOK_SECONDS: Final = 0.05
_MEASURE_SECONDS: Final = 5.0
_MOST_AT_ONCE: Final = 100  # of the largest messages, more than these take too long for one answer
_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_STOP_SECONDS: Final = 3.0
_CANCEL_SECONDS: Final = 0.5
_LEAVE_SECONDS: Final = 1.0

Bury = Callable[[Message, str], Awaitable[None]]
"""Stores a dead letter under the id that it is given."""


class Outages:
    """Says once that Redis fails, and how, and once that it works again, for all subscriptions of a bus."""

    def __init__(self) -> None:
        self._failing: set[str] = set()
        self._said: set[str] = set()

    def began(self, subscription: str, error: AgentTeamError) -> None:
        """A call for the subscription failed."""
        self._failing.add(subscription)
        if str(error) not in self._said:
            self._said.add(str(error))
            _log.warning("the bus waits: %s", error, extra={"error": describe_error(error)})

    def ended(self, subscription: str) -> None:
        """A call for the subscription succeeded."""
        if subscription in self._failing:
            self._failing.discard(subscription)
            if not self._failing:
                self._said.clear()
                _log.warning("the bus works again")


class _Run:
    """One delivery that its handler has not finished."""

    __slots__ = ("attempt", "deadline", "id", "overdue", "task")
    task: asyncio.Task[None]

    def __init__(self, id: str, attempt: int, deadline: float) -> None:
        self.id = id
        self.attempt = attempt
        self.deadline = deadline
        self.overdue = False


class Subscriber:
    """Works from `start` to `close`, in the context of the call that made it."""

    def __init__(
        self, subscription: Subscription, handler: Handler, group: Group, *, bury: Bury, clock: Clock, outages: Outages
    ) -> None:
        self._subscription = subscription
        self._handler = handler
        self._group = group
        self._bury = bury
        self._clock = clock
        self._outages = outages
        self._context = copy_context()
        self._running: dict[str, _Run] = {}
        """By entry, in order of their deadlines, since all have the same time."""
        self._overdue: set[_Run] = set()
        self._settled: list[str] = []
        self._failed: list[Failed] = []
        self._noting: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._place = asyncio.Event()
        self._abandoned = False
        # Who waits for a message to come again does not wait much longer than its backoff.
        self._look_seconds = max(_SHORTEST_LOOK_SECONDS, min(_LOOK_SECONDS, subscription.min_backoff_seconds))
        self._look_at = self._measure_at = clock.monotonic()
        self._owes = False
        """More is due than there were places for: the next place is for that."""

    async def start(self) -> None:
        """Join the group and begin to read. Raises BusUnavailable or ConfigurationError when Redis does not let us."""
        connection = await self._group.join(())
        self._reading = self._task(self._read_for_ever(connection))

    async def close(self, *, grace_seconds: float) -> None:
        """Read no more; let handlers finish for the grace period, then cancel them, and hand back what is not settled."""
        self._closing.set()
        self._place.set()
        end = self._clock.monotonic() + grace_seconds
        if self._reading is not None:
            await _end(self._reading, _STOP_SECONDS)
        tasks = [run.task for run in (*self._running.values(), *self._overdue)]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.0, end - self._clock.monotonic()))
        started = self._begun()
        self._abandoned = True
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CANCEL_SECONDS)
        await self._leave(started)

    async def _leave(self, started: set[str]) -> None:
        """`started` are those that had begun when the grace period was over."""
        try:
            async with asyncio.timeout(_LEAVE_SECONDS):
                if self._noting is not None:
                    await asyncio.shield(self._noting)
                await self._group.leave(started.union(self._begun()))
        except (AgentTeamError, TimeoutError) as error:
            # Whoever else reads takes over what is left once the acknowledgement deadline has passed.
            _log.warning("%s is left without a word", self._subscription.name, extra={"error": describe_error(error)})
        if self._noting is not None:
            await _end(self._noting, 0.0)

    async def _read_for_ever(self, connection: AbstractConnection | None) -> None:
        while connection is not None:
            try:
                await self._read_on(connection)
                return
            except Exception as error:
                self._fails(error)
            finally:
                await connection.disconnect(nowait=True)
            connection = await self._rejoin()

    async def _rejoin(self) -> AbstractConnection | None:
        """A new connection as soon as Redis gives one; None when the bus is closed before."""
        pause = _PAUSE_SECONDS
        while not await _happens_within(self._closing, pause):
            try:
                return await self._group.join(self._begun())
            except Exception as error:
                self._fails(error)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return None

    async def _read_on(self, connection: AbstractConnection) -> None:
        while not self._closing.is_set():
            await self._look()
            free = self._free_places()
            if self._owes and free > 0:
                continue  # a place that came free while we looked is for what is due, too
            seconds = max(0.0, self._look_at - self._clock.monotonic())
            if free <= 0:
                self._place.clear()
                await _happens_within(self._place, seconds)
                continue
            entries = await self._group.read(connection, min(free, _MOST_AT_ONCE), block_seconds=seconds)
            if self._closing.is_set():
                return  # leaving hands back what has not begun
            for entry in entries:
                self._begin(entry, 1, self._handler)
            self._outages.ended(self._subscription.name)

    async def _look(self) -> None:
        """Find what has to come again, where it is time to."""
        now, free = self._clock.monotonic(), self._free_places()
        if now >= self._look_at or (self._owes and free > 0):
            self._give_up_overdue(now)
            taken = await self._group.take(max(0, min(self._free_places(), _MOST_AT_ONCE)))
            if taken.overdue:
                _log.warning("%d deliveries of %s were not acknowledged in time", taken.overdue, self._subscription.name)
            self._owes = taken.due_seconds == 0
            self._look_at = now + self._look_seconds
            if not self._owes:
                self._look_within(taken.due_seconds)
            for held in taken.held:
                self._come_again(held, taken.now_milliseconds)
        if now >= self._measure_at:
            self._measure_at = now + _MEASURE_SECONDS
            backlog, oldest = await self._group.lag()
            metrics.gauge("bus.backlog", backlog, subscription=self._subscription.name)
            metrics.gauge("bus.oldest_unacked_seconds", oldest, subscription=self._subscription.name)

    def _look_within(self, seconds: float | None) -> None:
        if seconds is not None:
            self._look_at = min(self._look_at, self._clock.monotonic() + seconds)

    def _come_again(self, held: Held, now_milliseconds: int) -> None:
        subscription, entry = self._subscription, held.entry
        age = (now_milliseconds - published_milliseconds(held.id)) / 1000
        what = fate(subscription, attempts=held.attempts, age_seconds=age)
        if entry is None or what is Fate.EXPIRE:
            _log.warning("message %s of %s was never acknowledged and is dropped", held.id, subscription.name)
            if entry is not None:
                self._settle(held.id)
        elif what is Fate.DEAD_LETTER:
            self._begin(entry, held.attempts, partial(self._make_dead_letter, entry))
        else:
            self._begin(entry, held.attempts + 1, self._handler)

    async def _make_dead_letter(self, entry: Entry, delivery: Delivery) -> Outcome:
        topic, attempts = self._subscription.dead_letter_topic, delivery.attempt
        assert topic is not None
        assert attempts is not None
        letter = dead_letter(
            topic,
            entry.data,
            entry.attributes,
            subscription=delivery.subscription,
            attempts=attempts,
            published_at=entry.published_at,
        )
        # Stored first and settled then, in another hash slot perhaps: after a crash in between there are two, with one id.
        await self._bury(letter, f"{delivery.subscription}/{delivery.message_id}")
        return Outcome.ACK

    def _begin(self, entry: Entry, attempt: int, handler: Handler) -> None:
        subscription = self._subscription
        earlier = self._running.pop(entry.id, None)
        if earlier is not None:
            self._give_up(earlier)
        run = _Run(entry.id, attempt, self._clock.monotonic() + subscription.ack_deadline_seconds)
        delivery = Delivery(subscription.name, subscription.topic, entry.data, entry.attributes, entry.message_id, attempt)
        self._running[entry.id] = run
        run.task = self._task(self._deliver(run, delivery, handler))

    async def _deliver(self, run: _Run, delivery: Delivery, handler: Handler) -> None:
        outcome = Outcome.RETRY
        try:
            outcome = await handler(delivery)
        except Exception as error:
            handler_raised(delivery, error)
        finally:
            self._finished(run, outcome)

    def _finished(self, run: _Run, outcome: Outcome) -> None:
        if run.overdue:
            self._overdue.discard(run)
        else:
            del self._running[run.id]
            self._place.set()
        if outcome is Outcome.ACK:
            self._settle(run.id)
        elif not run.overdue and not self._abandoned:
            self._failed.append(Failed(run.id, run.attempt))
            self._write_down()

    def _give_up_overdue(self, now: float) -> None:
        for run in list(itertools.takewhile(lambda run: run.deadline <= now, self._running.values())):
            del self._running[run.id]
            self._give_up(run)

    def _give_up(self, run: _Run) -> None:
        run.overdue = True
        self._overdue.add(run)
        deadline_missed(self._subscription.name, run.id, run.attempt)

    def _settle(self, id: str) -> None:
        self._settled.append(id)
        self._write_down()

    def _write_down(self) -> None:
        if self._noting is None:
            self._noting = self._task(self._note_all())

    async def _note_all(self) -> None:
        pause = _PAUSE_SECONDS
        try:
            while self._settled or self._failed:
                settled, failed = self._settled.copy(), self._failed.copy()
                try:
                    self._look_within(await self._group.note(settled, failed))
                except Exception as error:
                    # Given up, all of these messages would come again for nothing.
                    self._fails(error)
                    await self._clock.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
                else:
                    del self._settled[: len(settled)], self._failed[: len(failed)]
        finally:
            self._noting = None

    def _begun(self) -> set[str]:
        """Entries whose handlers have begun and whose outcome is not written down yet."""
        return {*self._running, *(run.id for run in self._overdue), *self._settled, *(one.id for one in self._failed)}

    def _fails(self, error: Exception) -> None:
        self._outages.began(self._subscription.name, self._group.translated(error))

    def _free_places(self) -> int:
        return self._subscription.concurrency - len(self._running)

    def _task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(work, name=self._subscription.name, context=self._context.copy())


async def _happens_within(event: asyncio.Event, seconds: float) -> bool:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def _end(task: asyncio.Task[None], seconds: float) -> None:
    """Let the task end in time, else cancel it."""
    await asyncio.wait({task}, timeout=seconds)
    task.cancel()
    await asyncio.wait({task}, timeout=_CANCEL_SECONDS)
