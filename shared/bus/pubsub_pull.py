"""Pulling one Pub/Sub subscription.

One pull at a time asks for as many messages as there are free places: measured against the emulator it hands over 7,700 messages/s
to 8 places, where a stream got 2,000, and the service never counts for us what is outstanding. The emulator looks for messages
20 times a second, so one that arrives at an idle subscription waits up to 50 ms.

A handler that has not finished at the deadline loses its place, as its message is delivered again; a late ACK still counts.
Until then the service's own deadline is extended, as Google's clients do. It may be a short one, so that what was handed to a
pull that was cut off comes again soon.
"""

import asyncio
import logging
from asyncio import TimerHandle
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC
from math import ceil
from random import uniform
from typing import Any, Final

from shared.bus.base import Delivery, Handler, Outcome, Subscription
from shared.bus.mishaps import deadline_missed, handler_raised
from shared.bus.pubsub_service import PubSubService, ack_deadline_seconds
from shared.clock import Clock
from shared.errors import AgentTeamError

_log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_ACK_IDS: Final = 1_000
"""In one request, which may hold 512 KB."""
LEASE_SECONDS: Final = 20
"""For how long a delivery is extended at a time."""


class _Answers:
    """Answers to deliveries of one kind. While one request is on its way the next gathers; nothing waits for a timer."""

    def __init__(self, what: str, send: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        self._what = what
        self._send = send
        self._waiting: list[str] = []
        self._sending: asyncio.Task[None] | None = None

    def add(self, ack_id: str) -> None:
        self._waiting.append(ack_id)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().create_task(self._send_all(), name=f"Pub/Sub {self._what}")

    async def sent(self) -> None:
        """Return once nothing waits."""
        if self._sending is not None:
            await asyncio.wait({self._sending})

    async def _send_all(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:_ACK_IDS], self._waiting[_ACK_IDS:]
                try:
                    await self._send(batch)
                except AgentTeamError as error:
                    _log.warning("%d deliveries could not be %s and come again: %s", len(batch), self._what, error)
        finally:
            self._sending = None


class _Run:
    """One delivery that its handler has not finished."""

    __slots__ = ("ack_id", "deadline", "overdue", "task", "timer")

    task: "asyncio.Task[None]"
    timer: TimerHandle

    def __init__(self, ack_id: str, deadline: float) -> None:
        self.ack_id = ack_id
        self.deadline = deadline
        self.overdue = False


class Puller:
    """Hands the messages of one subscription to its handler, from `start` to `close`."""

    def __init__(self, service: PubSubService, subscription: Subscription, handler: Handler, clock: Clock) -> None:
        name = subscription.name
        self._service = service
        self._subscription = subscription
        self._handler = handler
        self._clock = clock
        self._deadline_seconds = ack_deadline_seconds(subscription)
        self._acks = _Answers("acknowledged", lambda ids: service.acknowledge(name, ids))
        self._nacks = _Answers("given back", lambda ids: service.give_back(name, ids))
        self._running: set[_Run] = set()
        self._in_time = 0
        """Those of the running that hold a place."""
        self._freed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to pull."""
        loop, name = asyncio.get_running_loop(), self._subscription.name
        self._tasks.add(loop.create_task(self._pull(), name=f"pull {name}"))
        if self._deadline_seconds > LEASE_SECONDS:
            self._tasks.add(loop.create_task(self._extend(), name=f"extend {name}"))

    async def close(self, grace_seconds: float) -> None:
        """Stop pulling, let running handlers finish for the grace period, cancel the rest and give back their messages."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        tasks = [run.task for run in self._running]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await asyncio.gather(self._acks.sent(), self._nacks.sent())

    async def _pull(self) -> None:
        name, pause = self._subscription.name, 0.0
        while True:
            places = self._subscription.concurrency - self._in_time
            if places <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                received = await self._service.pull(name, places)
            except AgentTeamError as error:
                if not pause:
                    _log.warning("%s; pulling is tried until it works", error)
                pause = min(max(2 * pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
                await self._clock.sleep(pause * uniform(0.5, 1.0))
                continue
            if pause:
                _log.info("subscription %s is pulled again", name)
                pause = 0.0
            for one in received:
                self._start(one)

    async def _extend(self) -> None:
        """Keep the service from delivering again what is being worked on."""
        loop = asyncio.get_running_loop()
        while True:
            await self._clock.sleep(LEASE_SECONDS / 3)
            by_seconds: defaultdict[int, list[str]] = defaultdict(list)
            for run in self._running:
                left = ceil(run.deadline - loop.time())
                if not run.overdue and left > 0:
                    by_seconds[min(left, LEASE_SECONDS)].append(run.ack_id)
            for seconds, ids in by_seconds.items():
                for start in range(0, len(ids), _ACK_IDS):
                    try:
                        await self._service.extend(self._subscription.name, ids[start : start + _ACK_IDS], seconds)
                    except AgentTeamError as error:
                        _log.warning("%d deliveries could not be extended and may come again: %s", len(ids), error)

    def _start(self, received: Any) -> None:
        subscription, message = self._subscription, received.message
        delivery = Delivery(
            subscription.name,
            subscription.topic,
            message.data,
            dict(message.attributes),
            message.message_id,
            received.delivery_attempt or None,
            message.publish_time.ToDatetime(UTC),
        )
        loop = asyncio.get_running_loop()
        run = _Run(received.ack_id, loop.time() + self._deadline_seconds)
        self._running.add(run)
        self._in_time += 1
        run.timer = loop.call_later(self._deadline_seconds, self._give_up, run, delivery)
        run.task = loop.create_task(self._deliver(run, delivery), name=subscription.name)
        run.task.add_done_callback(lambda _: self._finished(run))

    async def _deliver(self, run: _Run, delivery: Delivery) -> None:
        outcome = Outcome.RETRY
        try:
            outcome = await self._handler(delivery)
        except Exception as error:
            handler_raised(delivery, error)
        finally:
            if outcome is Outcome.ACK:
                self._acks.add(run.ack_id)
            elif not run.overdue:
                self._nacks.add(run.ack_id)

    def _give_up(self, run: _Run, delivery: Delivery) -> None:
        run.overdue = True
        self._free_place()
        deadline_missed(delivery.subscription, delivery.message_id, delivery.attempt)

    def _finished(self, run: _Run) -> None:
        self._running.discard(run)
        if not run.overdue:
            run.timer.cancel()
            self._free_place()

    def _free_place(self) -> None:
        self._in_time -= 1
        self._freed.set()
