"""What shared.guards.base.RateLimiter promises of its token buckets, of every back end; see test_guards_windows for the rest."""

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigurationError, RateLimited

from .harness import GuardsBackend, GuardsRig
from .limits import about, reserve


async def test_a_burst_passes_at_once_and_then_everybody_waits_one_interval_longer(guards_rig: GuardsRig) -> None:
    waits = [await reserve(guards_rig, rate=2, burst=3) for _ in range(6)]

    assert waits == [0, 0, 0, about(guards_rig, 0.5), about(guards_rig, 1.0), about(guards_rig, 1.5)]


async def test_fifty_callers_at_once_get_one_place_each_in_the_schedule(guards_rig: GuardsRig) -> None:
    waits = sorted(await asyncio.gather(*(reserve(guards_rig, rate=1, burst=5) for _ in range(50))))

    assert waits[:5] == [0] * 5
    assert waits[5:] == [about(guards_rig, n) for n in range(1, 46)]


async def test_the_bucket_refills_at_its_rate_and_never_above_its_burst(guards_rig: GuardsRig) -> None:
    for _ in range(5):
        await reserve(guards_rig)
    await guards_rig.time.pass_by(2)
    assert [await reserve(guards_rig) for _ in range(3)] == [0, 0, about(guards_rig, 1)]

    await guards_rig.time.pass_by(1000)
    assert [await reserve(guards_rig) for _ in range(6)] == [0] * 5 + [about(guards_rig, 1)]


async def test_whoever_waited_as_told_is_through(guards_rig: GuardsRig) -> None:
    for _ in range(5):
        await reserve(guards_rig, rate=3)
    with pytest.raises(RateLimited) as refused:
        await reserve(guards_rig, rate=3, max_wait=0)
    assert refused.value.retry_after_seconds is not None

    await guards_rig.time.pass_by(refused.value.retry_after_seconds / guards_rig.time.of(1))

    assert await reserve(guards_rig, rate=3, max_wait=0) == 0


async def test_a_refusal_takes_nothing_and_says_when(guards_rig: GuardsRig) -> None:
    await reserve(guards_rig, cost=5)
    for _ in range(10):
        with pytest.raises(RateLimited, match="rate limit b") as refused:
            await reserve(guards_rig, cost=4, max_wait=3)
        assert refused.value.retry_after_seconds == about(guards_rig, guards_rig.time.of(4))

    assert await reserve(guards_rig, cost=1, max_wait=3) == about(guards_rig, 1)


async def test_a_wait_as_long_as_allowed_is_allowed(guards_rig: GuardsRig) -> None:
    await reserve(guards_rig, cost=5)

    assert await reserve(guards_rig, cost=3, max_wait=3) == about(guards_rig, 3)


async def test_first_come_first_served_small_costs_do_not_overtake(guards_rig: GuardsRig) -> None:
    waits = [await reserve(guards_rig, cost=cost) for cost in (5, 4, 1, 0, 3)]

    assert waits == [0, *(about(guards_rig, n) for n in (4, 5, 5, 8))]


async def test_a_cost_above_the_burst_waits_until_as_much_has_flowed_in(guards_rig: GuardsRig) -> None:
    assert await reserve(guards_rig, burst=5, cost=12) == about(guards_rig, 7)
    assert await reserve(guards_rig, burst=5, cost=1) == about(guards_rig, 8)


async def test_a_penalty_holds_everybody_back_and_ends_without_a_burst(guards_rig: GuardsRig) -> None:
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(10))

    assert [await reserve(guards_rig) for _ in range(3)] == [about(guards_rig, n) for n in (10, 11, 12)]
    with pytest.raises(RateLimited):
        await reserve(guards_rig, max_wait=5)


async def test_a_penalty_that_nobody_felt_is_forgotten_when_it_ends(guards_rig: GuardsRig) -> None:
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(3))
    await guards_rig.time.pass_by(4)

    assert [await reserve(guards_rig) for _ in range(5)] == [0] * 5


async def test_a_shorter_penalty_does_not_end_a_longer_one(guards_rig: GuardsRig) -> None:
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(10))
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(2))

    assert await reserve(guards_rig) == about(guards_rig, 10)


async def test_a_penalty_does_not_shorten_the_wait_that_is_due_anyway(guards_rig: GuardsRig) -> None:
    await reserve(guards_rig, cost=25)
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(3))

    assert await reserve(guards_rig) == about(guards_rig, 21)


async def test_what_was_taken_is_remembered_beyond_a_penalty(guards_rig: GuardsRig) -> None:
    await reserve(guards_rig, cost=25)
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(3))
    await guards_rig.time.pass_by(8)

    assert await reserve(guards_rig) == about(guards_rig, 13)


async def test_what_happens_to_one_bucket_leaves_the_others_untouched(guards_rig: GuardsRig) -> None:
    await reserve(guards_rig, "b", cost=100)
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(100))

    assert await reserve(guards_rig, "other") == 0


@pytest.mark.parametrize(("rate", "burst", "cost"), [(0, 5, 1), (-1, 5, 1), (1, 0, 1), (1, 5, -1), (float("nan"), 5, 1)])
async def test_a_limit_that_cannot_be_kept_is_refused(guards_rig: GuardsRig, rate: float, burst: float, cost: float) -> None:
    with pytest.raises(ConfigurationError, match="rate"):
        await reserve(guards_rig, rate=rate, burst=burst, cost=cost)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 4)), min_size=2, max_size=30))
async def test_nobody_is_served_before_an_earlier_caller_or_within_a_penalty(
    guards_backend: GuardsBackend, steps: list[tuple[int, int, int]]
) -> None:
    if guards_backend.enough("limiter order"):
        return
    async with guards_backend.rig() as rig:
        served: list[float] = []
        penalty_until = rig.time.now()
        for cost, pause, penalty in steps:
            if rig.abilities.moves_clock:
                await rig.time.pass_by(pause)
            if penalty == 4:
                await rig.guards.limiter.penalise("b", rig.time.of(pause + 1))
                penalty_until = max(penalty_until, rig.time.now() + pause + 1)
            served.append(rig.time.now() + await reserve(rig, cost=cost))
            assert served[-1] >= penalty_until - 0.5 * (not rig.abilities.moves_clock) - 1e-5
        assert all(later >= earlier - 1e-5 for earlier, later in pairwise(served))
