"""What the suites know of a back end: how to open it, and how time passes there.

A back end joins by adding itself to BUSES or GUARDS. Its abilities are declared, never detected.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

from shared.bus import Bus, Handler, Subscription, open_bus
from shared.bus.memory import MemoryBus
from shared.bus.policy import MAX_DATA_BYTES
from shared.clock import Clock, ManualClock, SystemClock
from shared.guards import Guards, open_guards
from shared.guards.fallback import with_fallbacks
from shared.guards.redis import guards_over
from tests.support import firestore, pubsub
from tests.support.redis_clock import ClockedStore
from tests.support.servers import RedisServer, redis_server


@dataclass(frozen=True)
class Abilities:
    """What a back end can do in a test."""

    name: str
    moves_clock: bool
    """Time passes when the suite says so and is exact; otherwise the suite waits for real."""
    second: float = 1.0
    """How long a second of the suite lasts, in seconds of the back end: short where waiting is real."""
    examples: int | None = None
    """How many examples of a property are enough, where each one is slow."""
    least_ack_deadline_seconds: float = 0.0
    """The shortest deadline that a subscription can have, in seconds of the back end."""
    keeps_backoff: bool = True
    """Whether a delivery comes again no earlier than its subscription's backoff says."""
    slack_seconds: float = 0.0
    """How much longer than in the suite's own time anything may take, in seconds of the back end."""


class Time:
    """The back end's time, counted in seconds of the suite."""

    def __init__(self, abilities: Abilities) -> None:
        self.clock: Clock = ManualClock() if abilities.moves_clock else SystemClock()
        self._second = abilities.second
        self._slack = abilities.slack_seconds

    def of(self, seconds: float) -> float:
        """What to tell the back end to mean `seconds` of the suite."""
        return seconds * self._second

    def now(self) -> float:
        return self.clock.monotonic() / self._second

    async def pass_by(self, seconds: float) -> None:
        if isinstance(self.clock, ManualClock):
            await self.clock.advance(self.of(seconds))
        else:
            await self.clock.sleep(self.of(seconds))

    async def until(self, condition: Callable[[], bool], *, within: float = 60.0) -> None:
        """Let time pass, half a second at a time, until the condition holds; fail when it doesn't `within` so many seconds."""
        await settle()
        end = self.now() + within + self._slack / self._second
        while not condition():
            if self.now() >= end:
                raise AssertionError(f"did not happen within {within} s")
            await self.pass_by(0.5)


async def settle() -> None:
    """Let everything run that can run without time passing."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass(frozen=True)
class BusRig:
    bus: Bus
    time: Time
    abilities: Abilities
    prepare: Callable[[Subscription], Awaitable[None]]

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        """Subscribe, once the back end has topic and subscription."""
        await self.prepare(subscription)
        await self.bus.subscribe(subscription, handler)


@dataclass(frozen=True)
class GuardsRig:
    guards: Guards
    time: Time
    abilities: Abilities


async def _nothing_to_prepare(bus: Bus, subscription: Subscription) -> None:
    pass


@dataclass(frozen=True)
class BusBackend:
    abilities: Abilities
    open: Callable[[Clock], AbstractAsyncContextManager[Bus]]
    serving: Callable[[], AbstractContextManager[object]] = nullcontext
    """Runs what the back end needs for as long as the suite runs."""
    prepare: Callable[[Bus, Subscription], Awaitable[None]] = _nothing_to_prepare
    """Makes what must be there before one subscribes."""

    @asynccontextmanager
    async def rig(self) -> AsyncIterator[BusRig]:
        time = Time(self.abilities)
        async with self.open(time.clock) as bus:
            yield BusRig(bus, time, self.abilities, partial(self.prepare, bus))


@dataclass(frozen=True)
class GuardsBackend:
    abilities: Abilities
    open: Callable[[Clock], AbstractAsyncContextManager[Guards]]
    serving: Callable[[], AbstractContextManager[object]] = nullcontext
    """Runs what the back end needs for as long as the suite runs."""
    tried: Counter[str] = field(default_factory=Counter)

    def enough(self, examples_of: str) -> bool:
        """Whether a property was tried often enough on this back end; asking counts as trying."""
        self.tried[examples_of] += 1
        return self.abilities.examples is not None and self.tried[examples_of] > self.abilities.examples

    @asynccontextmanager
    async def rig(self) -> AsyncIterator[GuardsRig]:
        """Empty guards: nothing of an earlier test is known to them."""
        time = Time(self.abilities)
        async with self.open(time.clock) as guards:
            yield GuardsRig(guards, time, self.abilities)


@asynccontextmanager
async def _memory_bus(clock: Clock) -> AsyncIterator[Bus]:
    bus = MemoryBus(clock)
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def _memory_guards(clock: Clock) -> AsyncIterator[Guards]:
    yield open_guards("memory", clock)


class _Redis:
    """One server for a suite, emptied for each rig."""

    server: RedisServer

    @contextmanager
    def serving(self) -> Iterator[None]:
        with redis_server() as self.server:
            yield

    @asynccontextmanager
    async def bus(self, clock: Clock) -> AsyncIterator[Bus]:
        self.server.execute("FLUSHALL")
        bus = open_bus("redis", clock, max_bytes=MAX_DATA_BYTES, redis_url=self.server.url)
        try:
            yield bus
        finally:
            await bus.close()

    @asynccontextmanager
    async def guards(self, clock: Clock) -> AsyncIterator[Guards]:
        self.server.execute("FLUSHALL")
        guards = with_fallbacks(guards_over(ClockedStore(self.server.url, clock), clock), clock, instances=10)
        try:
            yield guards
        finally:
            await guards.close()


class _Firestore:
    """One emulator for the suite, a project of its own for each rig."""

    address: str
    projects = itertools.count()

    @contextmanager
    def serving(self) -> Iterator[None]:
        firestore.require()
        with firestore.emulator() as self.address:
            yield

    @asynccontextmanager
    async def guards(self, clock: Clock) -> AsyncIterator[Guards]:
        from shared.guards.firestore import open_firestore

        # Without spacing: leases and gathering follow the real time, and have tests of their own.
        guards = open_firestore(f"rig-{next(self.projects)}", clock, emulator=self.address, spacing_seconds=0)
        try:
            yield guards
        finally:
            await guards.close()


class _PubSub:
    """One emulator for the suite, a project of its own for each rig."""

    address: str
    projects = itertools.count()

    @contextmanager
    def serving(self) -> Iterator[None]:
        pubsub.require()
        with pubsub.emulator() as self.address:
            yield

    @asynccontextmanager
    async def bus(self, clock: Clock) -> AsyncIterator[Bus]:
        from shared.bus.pubsub import PubSubBus

        bus = PubSubBus(f"rig-{next(self.projects)}", clock, emulator=self.address)
        try:
            yield bus
        finally:
            await bus.close()

    async def prepare(self, bus: Bus, subscription: Subscription) -> None:
        from shared.bus.pubsub import PubSubBus, create

        assert isinstance(bus, PubSubBus)
        await create(bus.project, [subscription], emulator=self.address)


_redis_bus, _redis_guards = _Redis(), _Redis()
_firestore = _Firestore()
_pubsub = _PubSub()

BUSES = [
    BusBackend(Abilities("memory", moves_clock=True), _memory_bus),
    BusBackend(Abilities("redis", moves_clock=False, second=0.05, slack_seconds=10), _redis_bus.bus, _redis_bus.serving),
    BusBackend(
        # The emulator looks for what to deliver again every 2 s, and its first backoff is none.
        Abilities("pubsub", moves_clock=False, second=0.04, least_ack_deadline_seconds=10, keeps_backoff=False, slack_seconds=30),
        _pubsub.bus,
        _pubsub.serving,
        _pubsub.prepare,
    ),
]
GUARDS = [
    GuardsBackend(Abilities("memory", moves_clock=True), _memory_guards),
    GuardsBackend(Abilities("redis", moves_clock=True), _redis_guards.guards, _redis_guards.serving),
    GuardsBackend(Abilities("firestore", moves_clock=True, examples=12), _firestore.guards, _firestore.serving),
]
