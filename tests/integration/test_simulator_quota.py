"""The simulated Gemini's quotas: what is above them is refused and counted, exactly; what is within them never is."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from google.genai import errors

from shared.ai import Request
from shared.ai.catalog import Limit
from shared.ai.gemini import GeminiModel
from shared.ai.limited import LimitedModel
from shared.clock import ManualClock
from shared.guards import open_guards
from shared.local.simulator import Fault, Kind, Simulator, SimulatorSettings, open_simulator
from tests.support.simulated import NEWER, PRO, google

NOON = datetime(2026, 5, 1, 19, tzinfo=UTC)  # in California


@asynccontextmanager
async def limited(
    limit: Limit, *, tolerance: float = 0.0, at: datetime = NOON, **given: Any
) -> AsyncIterator[tuple[Simulator, Any, ManualClock]]:
    clock = ManualClock(at)
    settings = SimulatorSettings(models={PRO: limit, NEWER: limit}, tolerance_seconds=tolerance, **given)
    async with open_simulator(settings, clock=clock) as simulator, google(simulator.url) as models:
        yield simulator, models, clock


async def ask(models: Any, *, model: str = PRO, contents: str = "x", **given: Any) -> Mapping[str, Any] | None:
    """None for an answer, the error for a full quota."""
    try:
        await models.generate_content(model=model, contents=contents, **given)
    except errors.ClientError as error:
        if (error.code, error.status) != (429, "RESOURCE_EXHAUSTED"):
            raise
        return dict(error.details["error"])
    return None


def delay(error: Mapping[str, Any] | None) -> float:
    """The retryDelay."""
    assert error is not None
    (info,) = [one for one in error["details"] if one["@type"].endswith("RetryInfo")]
    return float(info["retryDelay"].removesuffix("s"))


def violated(error: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What QuotaFailure says."""
    assert error is not None
    (failure,) = [one for one in error["details"] if one["@type"].endswith("QuotaFailure")]
    (violation,) = failure["violations"]
    return dict(violation)


async def test_calls_beyond_the_burst_are_refused_until_the_bucket_has_filled() -> None:
    async with limited(Limit(qps=4, burst=3)) as (simulator, models, clock):
        at_once = [await ask(models) for _ in range(5)]
        await clock.advance(delay(at_once[-1]))
        later = [await ask(models) for _ in range(2)]
        entry = simulator.ledger[PRO]

    assert [error is None for error in at_once] == [True, True, True, False, False]
    assert delay(at_once[3]) == 0.25
    assert violated(at_once[3])["quotaId"] == "GenerateRequestsPerSecondPerProjectPerModel"
    assert violated(at_once[3])["quotaDimensions"]["model"] == PRO
    assert [error is None for error in later] == [True, False]
    assert (entry.calls, entry.answered, entry.violations) == (7, 4, 3)
    assert list(entry.arrivals) == [0, 0, 0, 0, 0, 0.25, 0.25]


async def test_a_call_that_is_early_by_no_more_than_the_tolerance_is_let_in() -> None:
    async with limited(Limit(qps=4, burst=1), tolerance=0.25) as (simulator, models, clock):
        outcomes = [await ask(models), await ask(models), await ask(models)]
        await clock.advance(1)
        after = [await ask(models), await ask(models), await ask(models)]

    assert [error is None for error in outcomes] == [True, True, False]
    assert [error is None for error in after] == [True, True, False]
    assert simulator.ledger.violations == 2


async def test_all_callers_share_a_model_s_quota_and_none_another_model_s() -> None:
    async with limited(Limit(qps=1, burst=1)) as (simulator, models, _), google(simulator.url, key="AIza-other") as others:
        mine, theirs, another = await ask(models), await ask(others), await ask(others, model=NEWER)

    assert (mine is None, theirs is None, another is None) == (True, False, True)


async def test_a_day_s_requests_come_back_at_midnight_in_california() -> None:
    async with limited(Limit(qps=100, burst=100, per_day=2)) as (simulator, models, clock):
        first = [await ask(models) for _ in range(3)]
        await clock.advance(12 * 3600 - 1)
        before = await ask(models)
        await clock.advance(1)
        after = [await ask(models) for _ in range(3)]

    assert [error is None for error in first] == [True, True, False]
    assert delay(first[2]) == 12 * 3600
    assert violated(first[2])["quotaId"] == "GenerateRequestsPerDayPerProjectPerModel"
    assert delay(before) == 1
    assert [error is None for error in after] == [True, True, False]
    assert simulator.ledger.violations == 3


async def test_tokens_of_input_and_output_and_thinking_share_a_minute() -> None:
    # One call: 101 of input, 20 of output, 30 of thinking.
    async with limited(Limit(qps=100, burst=100, tokens_per_minute=400), thinking_tokens=30) as (simulator, models, clock):
        given: dict[str, Any] = {"contents": "x" * 400, "config": {"max_output_tokens": 50}}
        first = [await ask(models, **given) for _ in range(3)]
        await clock.advance(15)
        still = await ask(models, **given)
        await clock.advance(45)
        after = await ask(models, **given)
        entry = simulator.ledger[PRO]

    assert [error is None for error in first] == [True, True, False]
    assert (delay(first[2]), delay(still)) == (60, 45)
    assert violated(first[2])["quotaId"] == "GenerateContentTokensPerModelPerMinute"
    assert after is None
    assert (entry.input_tokens, entry.output_tokens, entry.thinking_tokens, entry.violations) == (303, 60, 90, 2)


async def test_a_call_that_arrives_just_after_its_window_may_count_for_it() -> None:
    just_before_midnight = datetime(2026, 5, 2, 6, 59, 59, 900_000, tzinfo=UTC)
    limit = Limit(qps=1000, burst=1000, per_day=2, tokens_per_minute=1000)
    async with limited(limit, tolerance=0.25, at=just_before_midnight) as (simulator, models, clock):
        first = await ask(models)
        await clock.advance(0.2)
        late = [await ask(models) for _ in range(3)]
        await clock.advance(0.2)
        beyond = await ask(models)

    assert first is None
    # One for the day that has just ended, two for the new one.
    assert late == [None, None, None]
    assert delay(beyond) > 80_000
    assert simulator.ledger.violations == 1


async def test_a_call_that_arrives_just_after_its_minute_may_count_for_it() -> None:
    just_before = NOON.replace(second=59, microsecond=900_000)
    # Two calls of 101 and 2 tokens fit into a minute, three do not.
    limit = Limit(qps=1000, burst=1000, tokens_per_minute=250)
    given: dict[str, Any] = {"contents": "x" * 400, "config": {"max_output_tokens": 2}}
    async with limited(limit, tolerance=0.25, at=just_before) as (simulator, models, clock):
        first = await ask(models, **given)
        await clock.advance(0.2)
        late = [await ask(models, **given) for _ in range(3)]
        beyond = await ask(models, **given)

    assert first is None
    assert late == [None, None, None]
    assert beyond is not None
    assert simulator.ledger.violations == 1


async def test_a_call_that_is_refused_takes_nothing() -> None:
    async with limited(Limit(qps=1, burst=1, per_day=2, tokens_per_minute=1000)) as (simulator, models, clock):
        outcomes = [await ask(models), await ask(models), await ask(models)]
        await clock.advance(1)
        outcomes.append(await ask(models))

    assert [error is None for error in outcomes] == [True, False, False, True]
    assert simulator.ledger.violations == 2


async def test_counting_tokens_and_failing_on_purpose_are_no_violations() -> None:
    async with limited(Limit(qps=1, burst=1)) as (simulator, models, _):
        simulator.fail(Fault(kind=Kind.RATE_LIMITED, next=1))
        injected = await ask(models)
        for _ in range(3):
            await models.count_tokens(model=PRO, contents="x")
        over = await ask(models)

    assert injected is not None
    assert over is not None
    entry = simulator.ledger[PRO]
    assert (entry.calls, entry.violations, entry.faults, entry.counted) == (2, 1, {Kind.RATE_LIMITED: 1}, 3)


async def test_parallel_calls_above_the_burst_are_counted_one_by_one() -> None:
    async with limited(Limit(qps=1, burst=10)) as (simulator, models, _):
        outcomes = await asyncio.gather(*(ask(models) for _ in range(25)))
        entry = simulator.ledger[PRO]

    assert sum(error is None for error in outcomes) == 10
    assert (entry.calls, entry.answered, entry.violations) == (25, 10, 15)


async def test_a_reset_gives_the_whole_quota_back() -> None:
    async with limited(Limit(qps=1, burst=1)) as (simulator, models, _):
        assert await ask(models) is None
        simulator.reset()
        assert await ask(models) is None
        assert (simulator.ledger.calls, simulator.ledger.violations) == (1, 0)


@pytest.mark.parametrize(
    "limit",
    [
        Limit(qps=3, burst=5),
        Limit(qps=50, burst=50, per_day=30),
        Limit(qps=50, burst=50, tokens_per_minute=2000),
    ],
)
async def test_a_platform_that_keeps_the_same_limit_never_violates_it(limit: Limit) -> None:
    """40 calls at once, as fast as the limiter lets them through, without any tolerance of the server's."""
    clock = ManualClock(NOON)
    guards = open_guards("memory", clock)
    async with open_simulator(SimulatorSettings(models={PRO: limit}, tolerance_seconds=0), clock=clock) as simulator:
        provider = GeminiModel("AIza-some-key", PRO, clock=clock, base_url=simulator.url)
        model = LimitedModel(provider, guards.limiter, limit, clock, name=PRO)
        request = Request(prompt="The ferry was late on Monday.", max_tokens=200, timeout_seconds=30)
        asking = [asyncio.create_task(model.generate(request)) for _ in range(40)]
        entry = simulator.ledger[PRO]
        while not all(task.done() for task in asking):
            # Until nobody is on the way any more: time stands still while the calls travel.
            await settled(asking, clock)
            await clock.advance(1 / 6)
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        await provider.close()

    assert entry.violations == 0
    assert entry.answered == sum(not isinstance(outcome, BaseException) for outcome in outcomes) >= 5


async def settled(tasks: list["asyncio.Task[Any]"], clock: ManualClock) -> None:
    """Return once every task is done or sleeps on the clock."""
    async with asyncio.timeout(10):
        while sum(not task.done() for task in tasks) > clock.sleepers:  # noqa: ASYNC110 - what is awaited happens on sockets
            await asyncio.sleep(0.001)
