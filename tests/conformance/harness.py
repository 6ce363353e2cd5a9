"""What the suites know of a back end: how to open it, and how time passes there.

A back end joins by adding itself to BUSES or GUARDS. Its abilities are declared, never detected.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

from shared.bus import Bus
from shared.bus.memory import MemoryBus
from shared.clock import Clock, ManualClock, SystemClock
from shared.guards import Guards, open_guards


@dataclass(frozen=True)
class Abilities:
    """What a back end can do in a test."""

    name: str
    moves_clock: bool
    """Time passes when the suite says so and is exact; otherwise the suite waits for real."""
    second: float = 1.0
    """How long a second of the suite lasts, in seconds of the back end: short where waiting is real."""


class Time:
    """The back end's time, counted in seconds of the suite."""

    def __init__(self, abilities: Abilities) -> None:
        self.clock: Clock = ManualClock() if abilities.moves_clock else SystemClock()
        self._second = abilities.second

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
        end = self.now() + within
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


@dataclass(frozen=True)
class GuardsRig:
    guards: Guards
    time: Time
    abilities: Abilities


@dataclass(frozen=True)
class BusBackend:
    abilities: Abilities
    open: Callable[[Clock], AbstractAsyncContextManager[Bus]]

    @asynccontextmanager
    async def rig(self) -> AsyncIterator[BusRig]:
        time = Time(self.abilities)
        async with self.open(time.clock) as bus:
            yield BusRig(bus, time, self.abilities)


@dataclass(frozen=True)
class GuardsBackend:
    abilities: Abilities
    open: Callable[[Clock], AbstractAsyncContextManager[Guards]]

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


BUSES = [BusBackend(Abilities("memory", moves_clock=True), _memory_bus)]
GUARDS = [GuardsBackend(Abilities("memory", moves_clock=True), _memory_guards)]
