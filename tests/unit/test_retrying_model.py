"""A model that is asked again when it fails in passing."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai import Reply, Request
from shared.ai.catalog import Limit
from shared.ai.limited import LimitedModel
from shared.ai.retrying import RetryingModel, time_for_one
from shared.errors import (
    BudgetExceeded,
    Cancelled,
    CircuitOpen,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    OutputInvalid,
    RateLimited,
    Transient,
)
from shared.guards import open_guards
from tests.support.doubles import ScriptedModel, SkippingClock

REQUEST = Request(prompt="x", timeout_seconds=300)


@pytest.fixture
def clock() -> SkippingClock:
    return SkippingClock()


class Hanging:
    """Never answers: takes all the time it is given."""

    def __init__(self, clock: SkippingClock) -> None:
        self.given: list[float] = []
        self._clock = clock

    async def generate(self, request: Request) -> Reply:
        self.given.append(request.timeout_seconds)
        await self._clock.advance(request.timeout_seconds)
        raise OutcomeUnknown("no answer")


@pytest.mark.parametrize("error", [ModelUnavailable("gone"), RateLimited("full"), OutcomeUnknown("no answer")])
async def test_a_transient_error_is_tried_four_times_with_exact_pauses(clock: SkippingClock, error: Exception) -> None:
    inner = ScriptedModel(error)
    with pytest.raises(type(error)) as caught:
        await RetryingModel(inner, clock).generate(REQUEST)
    assert caught.value is error
    assert len(inner.requests) == 4
    assert clock.slept == [0.2, 0.4, 0.8]


async def test_it_stops_when_an_answer_comes(clock: SkippingClock) -> None:
    inner = ScriptedModel(ModelUnavailable("gone"), RateLimited("full"), "answer")
    assert (await RetryingModel(inner, clock).generate(REQUEST)).output == "answer"
    assert (len(inner.requests), clock.slept) == (3, [0.2, 0.4])


@pytest.mark.parametrize(
    "error",
    [
        ModelRefused("key"),
        ModelUnknown("404"),
        ContentBlocked("blocked"),
        OutputInvalid("no JSON"),
        BudgetExceeded("spent"),
        Cancelled("ended"),
        CircuitOpen("open", retry_after_seconds=0.1),
        ZeroDivisionError(),
    ],
)
async def test_what_another_call_cannot_mend_is_raised_at_once(clock: SkippingClock, error: Exception) -> None:
    inner = ScriptedModel(error)
    with pytest.raises(type(error)):
        await RetryingModel(inner, clock).generate(REQUEST)
    assert (len(inner.requests), clock.slept) == (1, [])


async def test_a_circuit_that_opens_in_between_ends_it(clock: SkippingClock) -> None:
    inner = ScriptedModel(ModelUnavailable("gone"), CircuitOpen("open"), "answer")
    with pytest.raises(CircuitOpen):
        await RetryingModel(inner, clock).generate(REQUEST)
    assert clock.slept == [0.2]


async def test_the_servers_own_pause_counts_where_it_is_longer(clock: SkippingClock) -> None:
    inner = ScriptedModel(
        ModelUnavailable("gone", retry_after_seconds=0.1),
        RateLimited("full", retry_after_seconds=7),
        RateLimited("full", retry_after_seconds=0.5),
        "answer",
    )
    await RetryingModel(inner, clock).generate(REQUEST)
    assert clock.slept == [0.2, 7, 0.8]


@pytest.mark.parametrize(
    ("timeout_seconds", "pause", "waits"),
    [(100, 50, True), (100, 50.1, False), (300, 60, True), (300, 60.1, False), (0.4, None, True), (0.39, None, False)],
)
async def test_a_pause_leaves_half_of_the_time_and_is_no_longer_than_a_minute(
    clock: SkippingClock, timeout_seconds: float, pause: float | None, waits: bool
) -> None:
    inner = ScriptedModel(ModelUnavailable("gone", retry_after_seconds=pause), "answer")
    request = Request(prompt="x", timeout_seconds=timeout_seconds)
    if waits:
        await RetryingModel(inner, clock).generate(request)
        assert clock.slept == [0.2 if pause is None else pause]
    else:
        with pytest.raises(ModelUnavailable) as caught:
            await RetryingModel(inner, clock).generate(request)
        assert caught.value.retry_after_seconds == pause
        assert (len(inner.requests), clock.slept) == (1, [])


@pytest.mark.parametrize(("pause", "calls"), [(30, 2), (30.1, 1)])
async def test_a_full_quota_is_waited_for_as_long_as_its_call_might_have_waited_for_ours(
    clock: SkippingClock, pause: float, calls: int
) -> None:
    inner = ScriptedModel(RateLimited("full", retry_after_seconds=pause), RateLimited("full", retry_after_seconds=1e9))
    with pytest.raises(RateLimited):
        await RetryingModel(inner, clock).generate(Request(prompt="x", timeout_seconds=200))
    assert len(inner.requests) == calls


@pytest.mark.parametrize("timeout_seconds", [2, 60, 100, 300, 3600])
async def test_our_own_limit_that_was_too_far_away_is_not_waited_for_again(clock: SkippingClock, timeout_seconds: float) -> None:
    guards = open_guards("memory", clock)
    inner = ScriptedModel("answer")
    # The next place is just beyond what the limit waits out.
    wait = min(60.0, time_for_one(timeout_seconds, 4) / 2) + 0.001
    limited = LimitedModel(inner, guards.limiter, Limit(qps=1 / wait, burst=1), clock, name=f"far-{timeout_seconds}")
    request = Request(prompt="x", timeout_seconds=timeout_seconds)
    await limited.generate(request)
    with pytest.raises(RateLimited):
        await RetryingModel(limited, clock).generate(request)
    assert (len(inner.requests), clock.slept) == (1, [])


@pytest.mark.parametrize(
    ("left", "calls_left", "seconds"), [(30, 4, 30), (100, 4, 60), (300, 4, 75), (300, 1, 300), (-1, 2, 0.001), (0, 1, 0.001)]
)
def test_a_call_gets_its_share_but_a_minute_where_there_is_one(left: float, calls_left: int, seconds: float) -> None:
    assert time_for_one(left, calls_left) == seconds


async def test_a_call_that_hangs_leaves_time_for_another(clock: SkippingClock) -> None:
    inner = Hanging(clock)
    with pytest.raises(OutcomeUnknown):
        await RetryingModel(inner, clock).generate(REQUEST)
    left = 300 - 75 - 0.2
    second = left / 3
    third = max((left - second - 0.4) / 2, 60)
    fourth = left - second - 0.4 - third - 0.8
    assert inner.given == [75, pytest.approx(second), pytest.approx(third), pytest.approx(fourth)]
    assert clock.monotonic() == pytest.approx(300)


async def test_a_short_call_that_hangs_has_all_of_its_time_and_is_not_repeated(clock: SkippingClock) -> None:
    inner = Hanging(clock)
    with pytest.raises(OutcomeUnknown):
        await RetryingModel(inner, clock).generate(Request(prompt="x", timeout_seconds=60))
    assert inner.given == [60]


_FAILURES = st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1000), st.sampled_from([ModelUnavailable, RateLimited]))


@given(st.floats(0.01, 4000), st.lists(_FAILURES, min_size=4, max_size=4))
def test_whatever_happens_there_are_four_calls_at_most_and_all_within_the_time(
    timeout_seconds: float, failures: list[tuple[float, float | None, type[Transient]]]
) -> None:
    clock = SkippingClock()
    given_times: list[tuple[float, float]] = []

    class Failing:
        async def generate(self, request: Request) -> Reply:
            share, retry_after, kind = failures[len(given_times)]
            given_times.append((request.timeout_seconds, timeout_seconds - clock.monotonic()))
            await clock.advance(request.timeout_seconds * share)
            raise kind("again", retry_after_seconds=retry_after)

    with pytest.raises(Transient):
        asyncio.run(RetryingModel(Failing(), clock).generate(Request(prompt="x", timeout_seconds=timeout_seconds)))
    assert 1 <= len(given_times) <= 4
    assert all(0 < seconds <= left + 1e-6 for seconds, left in given_times)
    assert all(0.2 <= slept <= 60 for slept in clock.slept)
    assert clock.monotonic() <= timeout_seconds + 1e-6


async def test_all_else_of_the_request_stays(clock: SkippingClock) -> None:
    seen: list[str] = []
    request = Request(prompt="x", schema={"type": "object"}, max_tokens=7, timeout_seconds=60, on_text=seen.append)
    inner = ScriptedModel("answer")
    await RetryingModel(inner, clock).generate(request)
    (asked,) = inner.requests
    assert asked == request
    assert asked.on_text is not None
    asked.on_text("so far")
    assert seen == ["so far"]


async def test_an_account_stays_with_its_request(clock: SkippingClock) -> None:
    account: Any = object()
    inner = ScriptedModel(ModelUnavailable("gone"), "answer")
    await RetryingModel(inner, clock).generate(Request(prompt="x", account=account))
    assert [asked.account for asked in inner.requests] == [account, account]
