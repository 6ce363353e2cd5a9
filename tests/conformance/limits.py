"""Calls of the rate limiter in seconds of the suite, and models of what they must answer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from shared.guards import Window

from .harness import GuardsRig


async def reserve(
    rig: GuardsRig,
    bucket: str = "b",
    *,
    rate: float = 1.0,
    burst: float = 5.0,
    cost: float = 1.0,
    windows: Sequence[Window] = (),
    max_wait: float | None = None,
) -> float:
    """The wait in seconds of the suite; `rate` is per such second, and so are the windows' times."""
    wait = await rig.guards.limiter.reserve(
        bucket,
        rate=rate / rig.time.of(1),
        burst=burst,
        cost=cost,
        windows=[
            replace(one, ends_in_seconds=rig.time.of(one.ends_in_seconds), length_seconds=rig.time.of(one.length_seconds))
            for one in windows
        ],
        max_wait_seconds=None if max_wait is None else rig.time.of(max_wait),
    )
    return wait / rig.time.of(1)


def about(rig: GuardsRig, seconds: float) -> object:
    """Equal where time stands still between two calls, near otherwise."""
    return pytest.approx(seconds, abs=1e-5 if rig.abilities.moves_clock else 0.5)


class Calendar:
    """Windows as a caller sees them: a minute and a day whose ends are known from when the test began."""

    def __init__(self, rig: GuardsRig, *, minute_ends: float = 40.0, day_ends: float = 500.0) -> None:
        self._rig, self._began = rig, rig.time.now()
        self._minute_ends, self._day_ends = minute_ends, day_ends

    def minute(self, cost: float, *, limit: float = 100.0) -> Window:
        return Window("minute", limit, cost, self._left(self._minute_ends, 60.0), 60.0)

    def day(self, cost: float = 1.0, *, limit: float = 10.0) -> Window:
        return Window("day", limit, cost, self._left(self._day_ends, 1000.0), 1000.0)

    def _left(self, first_end: float, length: float) -> float:
        return length - (self._rig.time.now() - self._began - first_end) % length


async def settle(rig: GuardsRig, cost: float, *, age: float = 0.0, window: str = "minute", bucket: str = "b") -> None:
    await rig.guards.limiter.settle(bucket, window=window, cost=cost, age_seconds=rig.time.of(age))


ENDS = {"minute": (6.91, 7.01), "day": (29.83, 30.03)}
"""The first end and the length of windows that never end when anything else happens."""
LIMITS = {"minute": 9.0, "day": 20.0}


class ModelBucket:
    """A level that is filled up whenever somebody looks: what a virtual schedule must be equal to. Penalties left out."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.level = rate, burst, burst

    def pass_by(self, seconds: float) -> None:
        self.level = min(self.burst, self.level + seconds * self.rate)

    def wait(self, cost: float) -> float:
        return max(0.0, (cost - self.level) / self.rate)

    def take(self, cost: float, wait: float) -> None:
        """Who waits for something else takes from the level as it will be then."""
        longer = wait - self.wait(cost)
        if longer > 1e-6:
            self.level = min(self.burst, self.level + wait * self.rate) - wait * self.rate
        self.level -= cost


class ModelWindows:
    """Windows by number: the last that anybody took from, and how much."""

    def __init__(self) -> None:
        self.now = 0.0
        self.last: dict[str, tuple[int, float]] = {}

    def number(self, name: str, at: float) -> int:
        first_end, length = ENDS[name]
        return math.floor((at - first_end) / length + 1e-9) + 1

    def begins(self, name: str, number: int) -> float:
        first_end, length = ENDS[name]
        return first_end + (number - 1) * length

    def window(self, name: str, cost: float) -> Window:
        _, length = ENDS[name]
        ends = self.begins(name, self.number(name, self.now) + 1)
        return Window(name, LIMITS[name], cost, ends - self.now, length)

    def earliest(self, costs: dict[str, float], at: float) -> float:
        """Try moment after moment: each is the begin of a window."""
        for name, cost in costs.items():
            last, used = self.last.get(name, (-1, 0.0))
            number = self.number(name, at)
            if number < last:
                return self.earliest(costs, self.begins(name, last))
            if number == last and used + cost > LIMITS[name]:
                return self.earliest(costs, self.begins(name, last + 1))
        return at

    def take(self, costs: dict[str, float], at: float) -> None:
        for name, cost in costs.items():
            number = self.number(name, at)
            last, used = self.last.get(name, (-1, 0.0))
            self.last[name] = (number, cost + (used if number == last else 0.0))

    def settle(self, name: str, cost: float, age: float) -> None:
        last, used = self.last.get(name, (-1, 0.0))
        number = self.number(name, self.now - age)
        if number == last or (number < last and cost > 0):
            self.last[name] = (last, max(0.0, used + cost))
