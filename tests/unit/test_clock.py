import asyncio
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clock import ManualClock, SystemClock


def test_the_system_clock_is_aware_and_utc() -> None:
    now = SystemClock().now()
    assert now.utcoffset() == timedelta(0)
    assert abs((datetime.now(UTC) - now).total_seconds()) < 60


async def test_the_system_clock_sleeps_at_least_as_long_as_asked() -> None:
    clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(0.005)
    assert clock.monotonic() - before >= 0.004


@pytest.mark.parametrize("seconds", [0, -3600])
async def test_no_clock_sleeps_for_no_time(seconds: float) -> None:
    before = time.monotonic()
    await SystemClock().sleep(seconds)
    await ManualClock().sleep(seconds)
    assert time.monotonic() - before < 10


async def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    start = datetime(2030, 6, 1, tzinfo=UTC)
    clock = ManualClock(start)
    assert (clock.now(), clock.monotonic()) == (start, 0.0)
    await clock.advance(90)
    assert (clock.now(), clock.monotonic()) == (start + timedelta(seconds=90), 90.0)


async def test_a_sleeper_wakes_at_its_moment_and_not_before() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(10))
    await clock.advance(0)
    assert clock.sleepers == 1
    await clock.advance(9.999)
    assert not sleeper.done()
    await clock.advance(0.001)
    assert sleeper.done()
    assert clock.sleepers == 0


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=10))
def test_sleepers_wake_in_order_each_at_its_own_moment(naps: list[float]) -> None:
    async def scenario() -> list[float]:
        clock = ManualClock()
        woken: list[float] = []

        async def nap(seconds: float) -> None:
            await clock.sleep(seconds)
            woken.append(clock.monotonic())

        async with asyncio.TaskGroup() as group:
            for seconds in naps:
                group.create_task(nap(seconds))
            await asyncio.sleep(0)
            await clock.advance(1000)
        return woken

    assert asyncio.run(scenario()) == sorted(naps)


async def test_one_move_wakes_a_sleeper_that_sleeps_again() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def ticks() -> None:
        for _ in range(3):
            await clock.sleep(1)
            woken.append(clock.monotonic())

    ticking = asyncio.create_task(ticks())
    await clock.advance(0)
    await clock.advance(5)
    assert woken == [1.0, 2.0, 3.0]
    await ticking


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(10))
    await clock.advance(0)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    assert clock.sleepers == 0
    await clock.advance(20)
    assert clock.monotonic() == 20.0


async def test_a_manual_clock_never_goes_back() -> None:
    clock = ManualClock()
    sleeper = asyncio.create_task(clock.sleep(8))
    await clock.advance(0)
    # The second move begins when the first has come to the sleeper's moment, and ends later than the first.
    await asyncio.gather(clock.advance(10), clock.advance(5), sleeper)
    assert clock.monotonic() == 13.0
    await clock.advance(-3)
    assert clock.monotonic() == 13.0
