"""What shared.guards.base.RateLimiter promises of windows, alone and beside a token bucket, of every back end."""

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import ConfigurationError, RateLimited
from shared.guards import Window

from .harness import GuardsBackend, GuardsRig
from .limits import Calendar, ModelBucket, ModelWindows, about, reserve, settle


async def test_who_does_not_fit_in_a_window_waits_for_the_next(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    waits = [await reserve(guards_rig, windows=[calendar.minute(cost)]) for cost in (60, 40, 70, 30, 100)]

    assert waits == [0, 0, *(about(guards_rig, n) for n in (40, 40, 100))]


async def test_a_window_begins_anew_when_its_time_is_over(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.time.pass_by(39)
    with pytest.raises(RateLimited):
        await reserve(guards_rig, windows=[calendar.minute(1)], max_wait=0)
    await guards_rig.time.pass_by(1)
    assert await reserve(guards_rig, windows=[calendar.minute(99)], max_wait=0) == 0
    await guards_rig.time.pass_by(59)
    assert await reserve(guards_rig, windows=[calendar.minute(2)]) == about(guards_rig, 1)


async def test_a_window_that_nobody_used_for_long_begins_anew_where_the_caller_sees_it(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.time.pass_by(250)
    await reserve(guards_rig, windows=[calendar.minute(100)])

    assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 30)


async def test_the_longest_wait_of_all_dimensions_counts(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)

    def both(minute: float, day: float = 1.0) -> list[Window]:
        return [calendar.minute(minute), calendar.day(day)]

    assert await reserve(guards_rig, cost=5, windows=both(50)) == 0
    assert await reserve(guards_rig, cost=2, windows=both(10)) == about(guards_rig, 2), "the tokens"
    assert await reserve(guards_rig, cost=1, windows=both(50)) == about(guards_rig, 40), "the minute"
    assert await reserve(guards_rig, cost=1, windows=both(50, 8)) == about(guards_rig, 500), "the day"
    assert await reserve(guards_rig, cost=1, windows=both(50, 1)) == about(guards_rig, 500), "never before an earlier caller"
    assert await reserve(guards_rig, cost=1, windows=both(50, 1)) == about(guards_rig, 520), "the minute of the next day"


async def test_a_wait_for_tokens_may_lead_into_another_window(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, cost=5, windows=[calendar.minute(100)])

    assert await reserve(guards_rig, cost=50, windows=[calendar.minute(60)]) == about(guards_rig, 50)
    assert await reserve(guards_rig, cost=1, windows=[calendar.minute(40)]) == about(guards_rig, 51)
    assert await reserve(guards_rig, cost=1, windows=[calendar.minute(1)]) == about(guards_rig, 100)


async def test_tokens_that_wait_for_a_window_are_not_there_twice_when_it_begins(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    for _ in range(5):
        assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 40)

    assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 41)
    await guards_rig.time.pass_by(40)
    assert await reserve(guards_rig) == about(guards_rig, 2)


@pytest.mark.parametrize("dimension", ["tokens", "minute", "day"])
async def test_a_refusal_in_one_dimension_takes_nothing_of_any(guards_rig: GuardsRig, dimension: str) -> None:
    calendar = Calendar(guards_rig)
    costs = {"tokens": 1.0, "minute": 1.0, "day": 1.0}
    await reserve(guards_rig, cost=2, windows=[calendar.minute(60), calendar.day(7)])
    for _ in range(5):
        too_much = costs | {dimension: {"tokens": 5.0, "minute": 41.0, "day": 4.0}[dimension]}
        with pytest.raises(RateLimited) as refused:
            await reserve(
                guards_rig,
                cost=too_much["tokens"],
                windows=[calendar.minute(too_much["minute"]), calendar.day(too_much["day"])],
                max_wait=1.5,
            )
        expected = {"tokens": 2, "minute": 40, "day": 500}[dimension]
        assert refused.value.retry_after_seconds == about(guards_rig, guards_rig.time.of(expected))

    assert await reserve(guards_rig, cost=3, windows=[calendar.minute(40), calendar.day(3)], max_wait=1.5) == 0


async def test_whoever_waited_for_a_window_as_told_is_through(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig, minute_ends=13.7)
    await guards_rig.time.pass_by(0.3)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    with pytest.raises(RateLimited) as refused:
        await reserve(guards_rig, windows=[calendar.minute(100)], max_wait=0)
    assert refused.value.retry_after_seconds is not None

    await guards_rig.time.pass_by(refused.value.retry_after_seconds / guards_rig.time.of(1))

    assert await reserve(guards_rig, windows=[calendar.minute(100)], max_wait=0) == 0


async def test_fifty_callers_at_once_never_pass_a_windows_limit(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    call = (reserve(guards_rig, rate=1000, burst=1000, windows=[calendar.minute(10), calendar.day(limit=30)]) for _ in range(50))
    waits = sorted(await asyncio.gather(*call))

    assert waits[:10] == [0] * 10
    assert waits[10:] == [about(guards_rig, n) for n in [40] * 10 + [100] * 10 + [500] * 10 + [520] * 10]


async def test_small_costs_do_not_overtake_into_an_earlier_window(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    waits = [await reserve(guards_rig, windows=[calendar.minute(cost)]) for cost in (90, 20, 5, 0)]

    assert waits == [0, *(about(guards_rig, 40) for _ in range(3))]


async def test_a_day_goes_by_while_callers_come(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig, day_ends=95)
    through = []
    for _ in range(20):
        try:
            await reserve(guards_rig, windows=[calendar.minute(1), calendar.day(limit=5)], max_wait=5)
        except RateLimited as refused:
            through.append((refused.retry_after_seconds or 0) / guards_rig.time.of(1))
        else:
            through.append(0)
        await guards_rig.time.pass_by(10)

    assert through == [0] * 5 + [about(guards_rig, n) for n in (45, 35, 25, 15)] + [0] * 5 + [
        about(guards_rig, 1095 - 10 * n) for n in range(14, 20)
    ], "the one at 90 s waits 5 s, into the next day"


async def test_a_clock_a_little_behind_makes_no_window_between_two(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.time.pass_by(40)
    behind = replace(calendar.minute(100), ends_in_seconds=0.25)
    assert await reserve(guards_rig, windows=[behind]) == 0
    await guards_rig.time.pass_by(1)

    assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 59.25)


async def test_a_correction_downwards_gives_back(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.time.pass_by(10)
    await settle(guards_rig, -30, age=10)

    assert await reserve(guards_rig, windows=[calendar.minute(30)], max_wait=0) == 0
    with pytest.raises(RateLimited):
        await reserve(guards_rig, windows=[calendar.minute(1)], max_wait=0)


async def test_a_correction_upwards_counts_even_beyond_the_limit(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(50)])
    await settle(guards_rig, 60)

    assert await reserve(guards_rig, windows=[calendar.minute(0)]) == about(guards_rig, 40)


async def test_no_correction_gives_back_more_than_was_taken(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(10)])
    await settle(guards_rig, -90)
    await reserve(guards_rig, windows=[calendar.minute(100)], max_wait=0)

    with pytest.raises(RateLimited):
        await reserve(guards_rig, windows=[calendar.minute(1)], max_wait=0)


async def test_a_correction_of_a_window_that_is_over_counts_upwards_alone(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.time.pass_by(45)
    await settle(guards_rig, 5, age=45)
    await reserve(guards_rig, windows=[calendar.minute(90)], max_wait=0)
    await settle(guards_rig, -50, age=45)
    with pytest.raises(RateLimited):
        await reserve(guards_rig, windows=[calendar.minute(11)], max_wait=0)
    await settle(guards_rig, 5, age=45)

    assert await reserve(guards_rig, windows=[calendar.minute(5)], max_wait=0) == 0
    with pytest.raises(RateLimited):
        await reserve(guards_rig, windows=[calendar.minute(1)], max_wait=0)


async def test_a_correction_changes_neither_other_windows_nor_tokens_nor_other_buckets(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)

    def both() -> list[Window]:
        return [calendar.minute(50), calendar.day(5)]

    await reserve(guards_rig, "b", cost=4, windows=both())
    await reserve(guards_rig, "other", cost=4, windows=both())
    await settle(guards_rig, -50, window="minute")
    await settle(guards_rig, -50, window="week")
    await settle(guards_rig, -50, bucket="unknown")

    assert await reserve(guards_rig, cost=1, windows=[calendar.minute(50), calendar.day(5)]) == 0
    assert await reserve(guards_rig, cost=1, windows=[calendar.minute(50), calendar.day(0)]) == about(guards_rig, 1)
    assert await reserve(guards_rig, cost=1, windows=[calendar.minute(0), calendar.day(1)]) == about(guards_rig, 500)
    assert await reserve(guards_rig, "other", cost=1, windows=[calendar.minute(51)]) == about(guards_rig, 40)


async def test_a_penalty_and_a_window_are_both_waited_for(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(100)])
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(50))

    assert await reserve(guards_rig, windows=[calendar.minute(99)]) == about(guards_rig, 50)
    assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 51)
    assert await reserve(guards_rig, windows=[calendar.minute(1)]) == about(guards_rig, 100)


async def test_what_a_window_holds_is_remembered_beyond_the_bucket(guards_rig: GuardsRig) -> None:
    calendar = Calendar(guards_rig)
    await reserve(guards_rig, windows=[calendar.minute(1), calendar.day(10)])
    await guards_rig.time.pass_by(300)
    await reserve(guards_rig)
    await guards_rig.guards.limiter.penalise("b", guards_rig.time.of(1))
    await guards_rig.time.pass_by(100)

    assert await reserve(guards_rig, windows=[calendar.day(1)]) == about(guards_rig, 100)


async def test_a_cost_that_no_window_can_hold_is_a_mistake(guards_rig: GuardsRig) -> None:
    with pytest.raises(ConfigurationError, match="a cost of 101 can never be served: the limit of a minute is 100"):
        await reserve(guards_rig, windows=[Calendar(guards_rig).minute(101)])
    assert await reserve(guards_rig, windows=[Calendar(guards_rig).minute(100)]) == 0


@pytest.mark.parametrize(
    "window",
    [
        Window("minute", 0, 0, 60, 60),
        Window("minute", float("nan"), 1, 60, 60),
        Window("minute", 100, -1, 60, 60),
        Window("minute", 100, 1, float("nan"), 60),
        Window("minute", 100, 1, 60, 0),
    ],
    ids=str,
)
async def test_a_window_that_cannot_be_kept_is_refused(guards_rig: GuardsRig, window: Window) -> None:
    with pytest.raises(ConfigurationError, match="window"):
        await reserve(guards_rig, windows=[window])


WINDOWS = st.dictionaries(st.sampled_from(["minute", "day"]), st.integers(0, 9).map(float))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 8), st.sampled_from([None, 0, 1, 3, 10, 30]), WINDOWS),
        st.tuples(st.just("reserve"), st.integers(0, 2), st.none(), st.just({"minute": 4.0, "day": 1.0})),
        st.tuples(st.just("wait"), st.integers(1, 10), st.none(), st.just({})),
        st.tuples(
            st.just("settle"),
            st.integers(0, 12),
            st.none(),
            st.dictionaries(st.sampled_from(["minute", "day"]), st.integers(-9, 9).map(float), max_size=1),
        ),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([0.25, 1.0, 4.0]), st.integers(1, 6), STEPS)
async def test_any_sequence_of_calls_waits_as_the_model_does(
    guards_backend: GuardsBackend, rate: float, burst: int, steps: list[tuple[str, int, float | None, dict[str, float]]]
) -> None:
    if guards_backend.enough("limiter waits"):
        return
    async with guards_backend.rig() as rig:
        bucket, windows = ModelBucket(rate, burst), ModelWindows()
        for what, number, max_wait, costs in steps:
            if what == "wait":
                await rig.time.pass_by(number)
                bucket.pass_by(number)
                windows.now += number
            elif what == "settle":
                for name, cost in costs.items():
                    await settle(rig, cost, window=name, age=number)
                    windows.settle(name, cost, number)
            else:
                named = [windows.window(name, cost) for name, cost in costs.items()]
                expected = windows.earliest(costs, windows.now + bucket.wait(number)) - windows.now
                if max_wait is not None and expected > max_wait + 1e-6:
                    with pytest.raises(RateLimited) as refused:
                        await reserve(rig, rate=rate, burst=burst, cost=number, windows=named, max_wait=max_wait)
                    assert refused.value.retry_after_seconds == about(rig, expected)
                else:
                    wait = await reserve(rig, rate=rate, burst=burst, cost=number, windows=named, max_wait=max_wait)
                    assert wait == about(rig, expected)
                    bucket.take(number, expected)
                    windows.take(costs, windows.now + expected)
