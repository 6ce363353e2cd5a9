"""A model that keeps to its limits, on a clock and guards of the test's own."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai import Model, Prompt, Reply, Request
from shared.ai.catalog import Limit
from shared.ai.limited import LimitedModel, pacific_day, tokens_at_most
from shared.clock import ManualClock
from shared.errors import AgentTeamError, BudgetExceeded, Cancelled, ModelUnavailable, PromptTooLarge, RateLimited
from shared.guards import RateLimiter, Window, open_guards
from shared.guards.memory import MemoryRateLimiter
from shared.messages import StepDeferred, Usage
from shared.runtime.team import AgentWork, ModelSettings, answer_prompt
from shared.telemetry import metrics
from tests.support.doubles import ScriptedModel, Stage, delivery

HOUR = 3600.0
PACIFIC = ZoneInfo("America/Los_Angeles")
ONE_A_SECOND = Limit(qps=1, burst=1)
REQUEST = Request(prompt="x" * 400, max_tokens=900, timeout_seconds=100)
"""By the rule of thumb 1,000 tokens."""


@pytest.fixture
def clock() -> ManualClock:
    """At noon in California, at the beginning of a minute."""
    return ManualClock(datetime(2026, 1, 1, 20, tzinfo=UTC))


@pytest.fixture
def limiter(clock: ManualClock) -> RateLimiter:
    return open_guards("memory", clock).limiter


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: metrics outlive a test."""
    return str(request.node.name)


@pytest.fixture
def inner() -> ScriptedModel:
    return ScriptedModel("answer")


class Notes:
    """A limiter that lets everything through and writes down what it is told."""

    def __init__(self) -> None:
        self.windows: list[tuple[Window, ...]] = []
        self.settled: list[tuple[str, float, float]] = []
        self.penalties: list[float] = []

    async def reserve(self, bucket: str, *, windows: Sequence[Window] = (), **_: Any) -> float:
        self.windows.append(tuple(windows))
        return 0.0

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        self.settled.append((window, cost, age_seconds))

    async def penalise(self, bucket: str, seconds: float) -> None:
        self.penalties.append(seconds)


async def ask_until_refused(model: Model, request: Request = REQUEST) -> tuple[int, RateLimited]:
    """How many calls come through, and the refusal of the next."""
    for passed in range(1000):
        try:
            await model.generate(request)
        except RateLimited as refused:
            return passed, refused
    raise AssertionError("nothing was ever refused")


# When a day ends


@pytest.mark.parametrize(
    ("now", "hours_left", "hours"),
    [
        ("2026-01-01T00:00:00", 8, 24),
        ("2026-07-01T06:00:00", 1, 24),
        ("2026-07-01T07:00:00", 24, 24),
        ("2026-03-08T07:00:00", 1, 24),
        ("2026-03-08T08:00:00", 23, 23),
        ("2026-03-08T09:59:00", 21 + 1 / 60, 23),
        ("2026-03-08T10:00:00", 21, 23),
        ("2026-03-09T07:00:00", 24, 24),
        ("2026-11-01T06:00:00", 1, 24),
        ("2026-11-01T07:00:00", 25, 25),
        ("2026-11-01T08:30:00", 23.5, 25),
        ("2026-11-01T09:30:00", 22.5, 25),
        ("2026-11-02T08:00:00", 24, 24),
    ],
)
def test_a_day_ends_at_midnight_in_california_whatever_the_clocks_do(now: str, hours_left: float, hours: float) -> None:
    left, length = pacific_day(datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert left == pytest.approx(hours_left * HOUR)
    assert length == hours * HOUR


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2037, 1, 1), timezones=st.just(UTC)))
def test_when_the_day_has_ended_it_is_midnight_there(now: datetime) -> None:
    left, length = pacific_day(now)
    assert 0 < left <= length
    assert length in (23 * HOUR, 24 * HOUR, 25 * HOUR)
    there = (now + timedelta(seconds=left)).astimezone(PACIFIC)
    assert abs((there - datetime(there.year, there.month, there.day, tzinfo=PACIFIC)).total_seconds()) < 0.001


# Waiting


async def test_a_short_wait_is_waited_out_and_leaves_the_call_the_rest_of_its_time(
    clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str
) -> None:
    model = LimitedModel(inner, limiter, Limit(qps=0.1, burst=1), clock, name=name)
    await model.generate(REQUEST)
    second = asyncio.create_task(model.generate(REQUEST))
    await clock.advance(9.9)
    assert len(inner.requests) == 1
    await clock.advance(0.1)
    assert (await second).output == "answer"

    assert [request.timeout_seconds for request in inner.requests] == [100, pytest.approx(90)]
    assert metrics.value("ai.rate_limit.wait_ms", model=name) == 2
    assert f'ai_rate_limit_wait_ms_sum{{model="{name}"}} 10000.0' in metrics.text().decode()
    assert metrics.value("ai.rate_limit.denied", model=name) == 0


@pytest.mark.parametrize(("timeout_seconds", "waited"), [(1000, 60), (120, 60), (100, 50), (10, 5)])
async def test_nobody_waits_longer_than_a_minute_or_half_of_the_time_that_there_is(
    clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str, timeout_seconds: float, waited: float
) -> None:
    model = LimitedModel(inner, limiter, ONE_A_SECOND, clock, name=name)
    request = Request(prompt="x", timeout_seconds=timeout_seconds)
    calls = [asyncio.create_task(model.generate(request)) for _ in range(int(waited) + 4)]
    await clock.advance(waited)

    refusals = [call.exception() for call in calls if call.exception() is not None]
    assert len(inner.requests) == waited + 1
    assert [type(refusal) for refusal in refusals] == [RateLimited] * 3
    assert isinstance(refusals[0], RateLimited)
    assert refusals[0].retry_after_seconds == pytest.approx(waited + 1)
    assert metrics.value("ai.rate_limit.denied", model=name) == 3


async def test_who_was_refused_has_taken_nothing(clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str) -> None:
    model = LimitedModel(inner, limiter, Limit(qps=0.01, burst=1, per_day=2), clock, name=name)
    await model.generate(REQUEST)
    for _ in range(5):
        with pytest.raises(RateLimited):
            await model.generate(REQUEST)
    await clock.advance(100)

    assert (await model.generate(REQUEST)).output == "answer"


async def test_a_step_whose_wait_is_long_is_deferred_until_then(inner: ScriptedModel, name: str) -> None:
    stage = Stage()
    model = LimitedModel(inner, stage.guards.limiter, Limit(qps=100, burst=100, per_day=1), stage.clock, name=name)
    work = AgentWork(
        "writer",
        answer_prompt,
        prompt=Prompt(1, "default", 0.2, None, "Say."),
        model=model,
        settings=ModelSettings(temperature=0.2, max_tokens=100),
        sender=stage.sender("writer"),
        clock=stage.clock,
        **stage.for_agents(),
    )
    await model.generate(REQUEST)
    dispatch = stage.sender("orchestrator").dispatch(stage.order(), cause="cause-1", traceparent=None)
    (answer,) = await work(stage.opened(dispatch))

    reply = stage.opened(answer).data
    assert isinstance(reply, StepDeferred)
    assert reply.not_before == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert delivery(answer, "orchestrator").topic == "workflow-events"


@pytest.mark.parametrize("waits_for", ["its turn", "the next minute"])
async def test_a_wait_that_is_cancelled_gives_back_what_it_had_reserved(
    clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str, waits_for: str
) -> None:
    qps = 0.1 if waits_for == "its turn" else 100
    limit = Limit(qps=qps, burst=qps if qps > 1 else 1, per_day=2, tokens_per_minute=2000 if waits_for == "its turn" else 1000)
    unsettled = ScriptedModel("answer", usage=Usage(model_calls=1, input_tokens=1000))
    model = LimitedModel(unsettled, limiter, limit, clock, name=name)
    await clock.advance(15)
    await model.generate(REQUEST)
    waiting = asyncio.create_task(model.generate(REQUEST))
    await clock.advance(5)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert len(unsettled.requests) == 1

    await clock.advance(45)
    await model.generate(REQUEST)
    passed, refused = await ask_until_refused(model)
    assert (passed, len(unsettled.requests)) == (0, 2)
    assert refused.retry_after_seconds == pytest.approx(12 * HOUR - 65)


# Quotas


async def test_a_day_has_so_many_requests_and_the_next_has_them_again(
    clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str
) -> None:
    model = LimitedModel(inner, limiter, Limit(qps=100, burst=100, per_day=3), clock, name=name)
    assert (await ask_until_refused(model))[0] == 3
    await clock.advance(12 * HOUR - 61)
    passed, refused = await ask_until_refused(model)
    assert passed == 0
    assert refused.retry_after_seconds == pytest.approx(61)
    await clock.advance(61)

    assert (await ask_until_refused(model))[0] == 3


async def test_every_call_tells_the_limiter_when_the_day_and_the_minute_end(
    clock: ManualClock, inner: ScriptedModel, name: str
) -> None:
    notes = Notes()
    model = LimitedModel(inner, notes, Limit(qps=3, burst=5, per_day=10, tokens_per_minute=5000), clock, name=name)
    await clock.advance(45)
    await model.generate(REQUEST)

    assert notes.windows == [(Window("day", 10, 1, 12 * HOUR - 45, 24 * HOUR), Window("minute", 5000, 1000, 15, 60))]


async def test_a_model_without_quotas_has_none_reserved_or_settled(clock: ManualClock, inner: ScriptedModel, name: str) -> None:
    notes = Notes()
    await LimitedModel(inner, notes, ONE_A_SECOND, clock, name=name).generate(REQUEST)

    assert (notes.windows, notes.settled) == ([()], [])


@pytest.mark.parametrize(("used", "passes"), [(100, 20), (1000, 2), (1500, 2)])
async def test_tokens_are_settled_with_what_was_used(
    clock: ManualClock, limiter: RateLimiter, name: str, used: int, passes: int
) -> None:
    model = LimitedModel(
        ScriptedModel("answer", usage=Usage(model_calls=1, input_tokens=used - 40, output_tokens=40)),
        limiter,
        Limit(qps=100, burst=100, tokens_per_minute=2900),
        clock,
        name=name,
    )
    assert (await ask_until_refused(model, Request(prompt="x" * 400, max_tokens=900, timeout_seconds=10)))[0] == passes


class Slow:
    """A model that takes its time."""

    def __init__(self, inner: Model, clock: ManualClock, seconds: float) -> None:
        self._inner = inner
        self._clock = clock
        self._seconds = seconds

    async def generate(self, request: Request) -> Reply:
        await self._clock.sleep(self._seconds)
        return await self._inner.generate(request)


async def test_a_settlement_says_how_long_ago_the_call_was_let_through(clock: ManualClock, inner: ScriptedModel, name: str) -> None:
    notes = Notes()
    model = LimitedModel(Slow(inner, clock, 70), notes, Limit(qps=3, burst=5, tokens_per_minute=5000), clock, name=name)
    call = asyncio.create_task(model.generate(REQUEST))
    await clock.advance(70)
    await call

    assert notes.settled == [("minute", 15 - 1000, 70)]


async def test_a_call_that_failed_keeps_its_guess(clock: ManualClock, name: str) -> None:
    notes = Notes()
    inner = ScriptedModel(ModelUnavailable("gone"))
    model = LimitedModel(inner, notes, Limit(qps=3, burst=5, tokens_per_minute=5000), clock, name=name)
    with pytest.raises(ModelUnavailable):
        await model.generate(REQUEST)

    assert notes.settled == []


@pytest.mark.parametrize("error", [BudgetExceeded("spent"), Cancelled("ended"), PromptTooLarge("too large")])
async def test_a_call_that_was_never_made_gives_back_its_request_and_its_tokens(
    clock: ManualClock, limiter: RateLimiter, name: str, error: AgentTeamError
) -> None:
    limit = Limit(qps=100, burst=100, per_day=2, tokens_per_minute=2000)
    for _ in range(5):
        with pytest.raises(type(error)):
            await LimitedModel(ScriptedModel(error), limiter, limit, clock, name=name).generate(REQUEST)
    used = Usage(model_calls=1, input_tokens=1000)
    model = LimitedModel(ScriptedModel("answer", usage=used), limiter, limit, clock, name=name)
    assert (await ask_until_refused(model))[0] == 2


async def test_a_call_larger_than_a_minute_takes_a_whole_one(clock: ManualClock, limiter: RateLimiter, name: str) -> None:
    inner = ScriptedModel("answer", usage=Usage(model_calls=1, input_tokens=1000))
    model = LimitedModel(inner, limiter, Limit(qps=100, burst=100, tokens_per_minute=600), clock, name=name)
    await model.generate(REQUEST)
    assert len(inner.requests) == 1


def test_a_guess_counts_the_prompt_and_all_that_the_answer_may_take() -> None:
    assert tokens_at_most(Request(prompt="", max_tokens=7)) == 7
    assert tokens_at_most(Request(prompt="abcde", max_tokens=7)) == 9
    assert tokens_at_most(Request(prompt="日本語テキスト", max_tokens=0)) == 6
    assert tokens_at_most(Request(prompt="\ud800", max_tokens=0)) == 1
    assert tokens_at_most(Request(prompt="abcde", schema={"type": "string"}, max_tokens=7)) == 6 + 7


# What the provider says


async def test_a_429_of_one_instance_slows_the_others_down(clock: ManualClock, limiter: RateLimiter, name: str) -> None:
    quota = RateLimited("quota used up", retry_after_seconds=30)
    one = LimitedModel(ScriptedModel(quota), limiter, Limit(qps=100, burst=100), clock, name=name)
    answering = ScriptedModel("answer")
    other = LimitedModel(answering, limiter, Limit(qps=100, burst=100), clock, name=name)
    another_model = LimitedModel(ScriptedModel("at once"), limiter, Limit(qps=100, burst=100), clock, name=f"{name}-other")
    with pytest.raises(RateLimited) as raised:
        await one.generate(REQUEST)
    assert raised.value is quota

    call = asyncio.create_task(other.generate(REQUEST))
    await clock.advance(29.9)
    assert answering.requests == []
    await clock.advance(0.1)
    assert (await call).output == "answer"
    assert (await another_model.generate(REQUEST)).output == "at once"


@pytest.mark.parametrize(
    ("error", "penalties"),
    [
        (RateLimited("full", retry_after_seconds=30), [30]),
        (RateLimited("full", retry_after_seconds=1e9), [86_400]),
        (RateLimited("full"), []),
        (ModelUnavailable("gone", retry_after_seconds=30), []),
    ],
)
async def test_only_a_429_that_says_when_to_come_back_is_a_penalty(
    clock: ManualClock, name: str, error: AgentTeamError, penalties: list[float]
) -> None:
    notes = Notes()
    with pytest.raises(type(error)):
        await LimitedModel(ScriptedModel(error), notes, ONE_A_SECOND, clock, name=name).generate(REQUEST)
    assert notes.penalties == penalties


async def test_our_own_refusal_is_no_penalty(clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str) -> None:
    model = LimitedModel(inner, limiter, Limit(qps=0.01, burst=1), clock, name=name)
    await model.generate(REQUEST)
    with pytest.raises(RateLimited) as refused:
        await model.generate(REQUEST)
    assert refused.value.retry_after_seconds == 100
    await clock.advance(100)
    assert (await model.generate(REQUEST)).output == "answer"


# Metrics


async def test_requests_per_second_are_those_of_the_last_second_even_when_nobody_calls_any_more(
    clock: ManualClock, limiter: RateLimiter, inner: ScriptedModel, name: str
) -> None:
    model = LimitedModel(inner, limiter, Limit(qps=100, burst=100), clock, name=name)
    shown = []
    for _ in range(3):
        await model.generate(REQUEST)
        shown.append(metrics.value("ai.requests_per_second", model=name))
        await clock.advance(0.4)
    await clock.advance(0.2)
    shown.append(metrics.value("ai.requests_per_second", model=name))
    await clock.advance(1)
    shown.append(metrics.value("ai.requests_per_second", model=name))

    assert shown == [1, 2, 3, 1, 0]


async def test_what_a_first_call_has_to_load_is_loaded_before_its_turn_is_reserved() -> None:
    told: list[str] = []

    class Told(MemoryRateLimiter):
        async def reserve(self, *args: Any, **options: Any) -> float:
            told.append("reserved")
            return await super().reserve(*args, **options)

    clock = ManualClock()
    model = LimitedModel(
        ScriptedModel("answer"), Told(clock), Limit(1, 1), clock, name="gemini-a", prepare=lambda: told.append("loaded")
    )
    await model.generate(Request(prompt="x"))
    assert told == ["loaded", "reserved"]
