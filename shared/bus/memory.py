"""A bus inside one process and one event loop, with Pub/Sub's rules.

- At least once, in no promised order. What is not acknowledged comes again, or becomes a dead letter (shared.bus.policy).
- A handler that has not finished when its acknowledgement deadline passes counts as failed: the message is delivered again while
  that handler still runs, and its place in the subscription's concurrency is free. When it finishes late, its ACK still settles
  the message; its RETRY says nothing new.
- A topic without subscription drops its messages, with one warning per topic.
- Messages live in memory: what is not settled when the bus closes, or the process ends, is gone.

The queue is not bounded: publishers are not slowed down by slow handlers.
"""

import asyncio
import heapq
import itertools
import logging
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextvars import Context, copy_context
from datetime import datetime
from math import inf
from random import Random
from typing import Any

from shared.bus.base import Delivery, Handler, Message, Outcome, Subscription
from shared.bus.chaos import Chaos
from shared.bus.mishaps import deadline_missed, handler_raised
from shared.bus.policy import MAX_DATA_BYTES, Fate, backoff_seconds, check_messages, dead_letter, fate
from shared.clock import Clock
from shared.errors import BusUnavailable, Conflict, NotFound

_log = logging.getLogger(__name__)

_SLACK_SECONDS = 1e-6  # now + (due - now) can round to just before due: a timer that woke then would find nothing to do


class _Stored:
    """A message in one subscription, until it is settled: acknowledged, dead-lettered or expired."""

    __slots__ = ("attempts", "attributes", "data", "message_id", "published_at", "settled")

    def __init__(self, data: bytes, attributes: Mapping[str, str], message_id: str, published_at: datetime) -> None:
        self.data = data
        self.attributes = attributes
        self.message_id = message_id
        self.published_at = published_at
        self.attempts = 0
        self.settled = False


class _Run:
    """One delivery that its handler has not finished."""

    __slots__ = ("deadline", "overdue", "stored")

    def __init__(self, stored: _Stored, deadline: float) -> None:
        self.stored = stored
        self.deadline = deadline
        self.overdue = False


class _Line:
    """One subscription and what it holds."""

    __slots__ = ("context", "depth", "handler", "queue", "running", "subscription")

    def __init__(self, subscription: Subscription, handler: Handler, context: Context) -> None:
        self.subscription = subscription
        self.handler = handler
        self.context = context
        self.queue: deque[_Stored] = deque()
        self.running: dict[_Run, asyncio.Task[None]] = {}
        """In order of their deadlines, since all of one subscription have the same time."""
        self.depth = 0
        """Messages that are not settled: queued, held back or running."""


class MemoryBus:
    """The bus of the local platform and of tests: see the module.

    `grace_seconds` is how long `close` lets running handlers finish before it cancels them.
    """

    published: Counter[str]
    """Messages per topic since the bus was made, dead letters included, copies made by chaos not."""
    dropped: Counter[str]
    """Messages per topic that no subscription wanted."""

    def __init__(
        self, clock: Clock, *, chaos: Chaos | None = None, grace_seconds: float = 10.0, max_bytes: int = MAX_DATA_BYTES
    ) -> None:
        self.published = Counter()
        self.dropped = Counter()
        self._clock = clock
        self._chaos = chaos
        self._random = Random(0 if chaos is None else chaos.seed)
        self._grace_seconds = grace_seconds
        self._max_bytes = max_bytes
        self._lines: dict[str, _Line] = {}
        self._topics: dict[str, list[_Line]] = {}
        self._overdue: dict[_Run, asyncio.Task[None]] = {}
        self._held_back: list[tuple[float, int, _Line, _Stored]] = []
        self._order = itertools.count(1)
        self._timer: asyncio.Task[None] | None = None
        self._wakes_at = inf
        self._waiting_for_idle: list[asyncio.Future[None]] = []
        self._closed = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """Store every message. Raises InputError, storing none, when one is too large; BusUnavailable once closed."""
        self._refuse_when_closed()
        check_messages(messages, max_bytes=self._max_bytes)
        now = self._clock.now()
        for message in messages:
            self._store(message, now)

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        """Hand deliveries to `handler`, each in a task of its own with the context variables of this call.

        Messages published before are not delivered. Raises Conflict when the subscription's name is taken.
        """
        self._refuse_when_closed()
        if subscription.name in self._lines:
            raise Conflict(f"subscription {subscription.name} has a handler already; give each handler a subscription of its own")
        line = _Line(subscription, handler, copy_context())
        self._lines[subscription.name] = line
        self._topics.setdefault(subscription.topic, []).append(line)

    def depth(self, subscription: str) -> int:
        """How many messages the subscription holds that are not settled. Raises NotFound when there is no such subscription."""
        line = self._lines.get(subscription)
        if line is None:
            raise NotFound(f"there is no subscription {subscription} on this bus; subscribe first")
        return line.depth

    async def idle(self) -> None:
        """Return once nothing is queued, held back or running; at once when the bus is closed."""
        while not self._is_idle():
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting_for_idle.append(waiter)
            await waiter

    async def close(self) -> None:
        """Take and deliver no more messages; let running handlers finish for the grace period, then cancel them."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            await asyncio.wait({self._timer})
        self._held_back.clear()
        for line in self._lines.values():
            line.queue.clear()
            line.depth = 0
        await self._finish_running()
        self._wake_idle()

    async def _finish_running(self) -> None:
        running = [*self._overdue.values(), *(task for line in self._lines.values() for task in line.running.values())]
        if not running:
            return
        handlers = asyncio.gather(*running, return_exceptions=True)
        grace = asyncio.create_task(self._clock.sleep(self._grace_seconds))
        either: set[asyncio.Future[Any]] = {handlers, grace}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            grace.cancel()
            handlers.cancel()
            await asyncio.gather(grace, handlers, return_exceptions=True)
            self._overdue.clear()
            for line in self._lines.values():
                line.running.clear()  # a task cancelled before its first step never got to take itself out

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusUnavailable("the memory bus is closed; it takes no more messages or subscriptions")

    def _store(self, message: Message, now: datetime) -> None:
        topic = message.topic
        self.published[topic] += 1
        lines = self._topics.get(topic)
        if lines is None:
            self._drop(topic)
            return
        message_id = str(next(self._order))
        data, attributes, chaos = message.data, dict(message.attributes), self._chaos
        for line in lines:
            if chaos is None:
                self._queue(line, _Stored(data, attributes, message_id, now))
                continue
            for delay in chaos.delays(self._random):
                line.depth += 1
                self._hold_back(line, _Stored(data, attributes, message_id, now), delay)

    def _drop(self, topic: str) -> None:
        self.dropped[topic] += 1
        if self.dropped[topic] == 1:
            _log.warning("topic %s has no subscription: its messages are dropped", topic)

    def _queue(self, line: _Line, stored: _Stored) -> None:
        line.depth += 1
        if line.queue or len(line.running) >= line.subscription.concurrency:
            line.queue.append(stored)
        else:
            self._start(line, stored)

    def _hold_back(self, line: _Line, stored: _Stored, seconds: float) -> None:
        due = self._clock.monotonic() + seconds
        heapq.heappush(self._held_back, (due, next(self._order), line, stored))
        if due < self._wakes_at:
            self._wake_timer_at(due)

    def _start(self, line: _Line, stored: _Stored) -> None:
        subscription = line.subscription
        stored.attempts += 1
        delivery = Delivery(
            subscription.name, subscription.topic, stored.data, stored.attributes, stored.message_id, stored.attempts
        )
        deadline = self._clock.monotonic() + subscription.ack_deadline_seconds
        run = _Run(stored, deadline)
        line.running[run] = asyncio.get_running_loop().create_task(
            self._deliver(line, run, delivery), name=subscription.name, context=line.context.copy()
        )
        if deadline < self._wakes_at:
            self._wake_timer_at(deadline)

    async def _deliver(self, line: _Line, run: _Run, delivery: Delivery) -> None:
        outcome = Outcome.RETRY
        try:
            outcome = await line.handler(delivery)
        except Exception as error:
            handler_raised(delivery, error)
        finally:
            self._finished(line, run, outcome)

    def _finished(self, line: _Line, run: _Run, outcome: Outcome) -> None:
        del (self._overdue if run.overdue else line.running)[run]
        if self._closed:
            return
        if not run.stored.settled:
            if outcome is Outcome.ACK:
                self._settle(line, run.stored)
            elif not run.overdue:
                self._failed(line, run.stored)
        if line.queue:
            self._start_next(line)
        if self._waiting_for_idle and self._is_idle():
            self._wake_idle()

    def _settle(self, line: _Line, stored: _Stored) -> None:
        stored.settled = True
        line.depth -= 1

    def _failed(self, line: _Line, stored: _Stored) -> None:
        subscription, now = line.subscription, self._clock.now()
        what = fate(subscription, attempts=stored.attempts, age_seconds=(now - stored.published_at).total_seconds())
        if what is Fate.RETRY:
            self._hold_back(line, stored, backoff_seconds(subscription, stored.attempts))
            return
        self._settle(line, stored)
        if what is Fate.EXPIRE or subscription.dead_letter_topic is None:
            _log.warning("message %s of %s was never acknowledged and is dropped", stored.message_id, subscription.name)
            return
        letter = dead_letter(
            subscription.dead_letter_topic,
            stored.data,
            stored.attributes,
            subscription=subscription.name,
            attempts=stored.attempts,
            published_at=stored.published_at,
        )
        self._store(letter, now)

    def _start_next(self, line: _Line) -> None:
        queue, running, concurrency = line.queue, line.running, line.subscription.concurrency
        while queue and len(running) < concurrency:
            if self._chaos is not None and self._chaos.reorder:
                queue.rotate(-self._random.randrange(len(queue)))
            stored = queue.popleft()
            if not stored.settled:
                self._start(line, stored)

    def _is_idle(self) -> bool:
        return not self._overdue and all(not line.depth and not line.running for line in self._lines.values())

    def _wake_idle(self) -> None:
        for waiter in self._waiting_for_idle:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting_for_idle.clear()

    def _wake_timer_at(self, due: float) -> None:
        self._wakes_at = due
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().create_task(self._keep_time(), name="memory bus timer")

    async def _keep_time(self) -> None:
        while (due := self._next_due()) < inf:
            self._wakes_at = due
            await self._clock.sleep(due - self._clock.monotonic())
            self._act_on_time()
        self._wakes_at = inf
        self._timer = None

    def _next_due(self) -> float:
        moments = [next(iter(line.running)).deadline for line in self._lines.values() if line.running]
        if self._held_back:
            moments.append(self._held_back[0][0])
        return min(moments, default=inf)

    def _act_on_time(self) -> None:
        now = self._clock.monotonic() + _SLACK_SECONDS
        for line in self._lines.values():
            self._give_up_overdue(line, now)
        while self._held_back and self._held_back[0][0] <= now:
            _, _, line, stored = heapq.heappop(self._held_back)
            line.queue.append(stored)
        for line in self._lines.values():
            self._start_next(line)

    def _give_up_overdue(self, line: _Line, now: float) -> None:
        for run in list(itertools.takewhile(lambda run: run.deadline <= now, line.running)):
            run.overdue = True
            self._overdue[run] = line.running.pop(run)
            if not run.stored.settled:
                deadline_missed(line.subscription.name, run.stored.message_id, run.stored.attempts)
                self._failed(line, run.stored)
