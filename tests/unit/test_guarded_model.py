"""A model behind a circuit breaker, on a clock and guards of the test's own."""

import asyncio
from typing import Any

import pytest

from shared.ai import Reply, Request
from shared.ai.guarded import BreakerModel, breaker_of, breaker_state
from shared.clock import ManualClock
from shared.errors import (
    AgentTeamError,
    BudgetExceeded,
    Cancelled,
    CircuitOpen,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    OutputEmpty,
    OutputInvalid,
    PromptTooLarge,
    RateLimited,
)
from shared.guards import Breaker, open_guards
from shared.telemetry import metrics
from tests.support.doubles import ScriptedModel

REQUEST = Request(prompt="x", timeout_seconds=100)
GONE = ModelUnavailable("gone")
ANSWERS = [
    ModelRefused("no permission"),
    ModelUnknown("no such model"),
    ContentBlocked("blocked"),
    OutputInvalid("cut off"),
    OutputEmpty("nothing"),
]
UNASKED = [BudgetExceeded("spent"), Cancelled("ended"), PromptTooLarge("too large")]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def breaker(clock: ManualClock) -> Breaker:
    return open_guards("memory", clock).breaker


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: metrics outlive a test."""
    return str(request.node.name)


class Bench:
    """One model, whose next answers the test chooses; None never comes."""

    def __init__(self, breaker: Breaker, clock: ManualClock, name: str) -> None:
        self.breaker = breaker
        self.clock = clock
        self.name = name
        self.answers: list[Any] = []
        self.asked = 0
        self.model = BreakerModel(self, breaker, clock, name=name)

    async def generate(self, request: Request) -> Reply:
        self.asked += 1
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        return await ScriptedModel(answer).generate(request)

    async def call(self, answer: Any) -> None:
        """One call. Whatever the answer is, it comes out as it went in."""
        self.answers = [answer]
        (outcome,) = await asyncio.gather(self.model.generate(REQUEST), return_exceptions=True)
        assert (outcome.output if isinstance(outcome, Reply) else outcome) is answer

    async def cancelled(self, *, after_seconds: float) -> None:
        self.answers = [None]
        call = asyncio.create_task(self.model.generate(REQUEST))
        await self.clock.advance(after_seconds)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    async def refused(self) -> CircuitOpen:
        before = self.asked
        with pytest.raises(CircuitOpen) as refused:
            await self.model.generate(REQUEST)
        assert self.asked == before
        return refused.value

    async def open(self) -> None:
        for _ in range(5):
            await self.call(GONE)

    async def state(self) -> str:
        return await self.breaker.state(breaker_of(self.name))

    @property
    def gauge(self) -> float:
        return metrics.value("ai.breaker.state", model=self.name)


@pytest.fixture
def bench(breaker: Breaker, clock: ManualClock, name: str) -> Bench:
    return Bench(breaker, clock, name)


async def test_it_opens_after_five_failures_in_a_row_and_closes_after_two_successes(bench: Bench) -> None:
    await bench.open()
    assert (await bench.state(), bench.gauge) == ("OPEN", 2)
    assert (await bench.refused()).retry_after_seconds == 30
    await bench.clock.advance(30)
    await bench.call("answer")
    assert (await bench.state(), bench.gauge) == ("HALF_OPEN", 1)
    await bench.call("answer")
    assert (await bench.state(), bench.gauge) == ("CLOSED", 0)
    await bench.call("answer")


@pytest.mark.parametrize("error", [GONE, OutcomeUnknown("no answer"), TimeoutError(), ZeroDivisionError()])
async def test_what_is_down_and_what_nobody_expected_are_failures(bench: Bench, error: Exception) -> None:
    for _ in range(5):
        await bench.call(error)
    assert await bench.state() == "OPEN"


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_service_that_refuses_or_answers_badly_is_not_down(bench: Bench, answer: AgentTeamError) -> None:
    for _ in range(4):
        await bench.call(GONE)
    await bench.call(answer)
    for _ in range(4):
        await bench.call(GONE)
    assert await bench.state() == "CLOSED"


@pytest.mark.parametrize("answer", ANSWERS)
async def test_a_probe_that_is_refused_or_answered_badly_is_a_success(bench: Bench, answer: AgentTeamError) -> None:
    await bench.open()
    await bench.clock.advance(30)
    await bench.call(answer)
    await bench.call(answer)
    assert await bench.state() == "CLOSED"


async def test_a_full_quota_says_nothing_of_the_service(bench: Bench) -> None:
    for _ in range(10):
        await bench.call(RateLimited("full", retry_after_seconds=1))
    assert await bench.state() == "CLOSED"
    for _ in range(4):
        await bench.call(GONE)
        await bench.call(RateLimited("full"))
    assert await bench.state() == "CLOSED"
    await bench.call(GONE)
    assert await bench.state() == "OPEN"


async def test_a_probe_that_finds_the_quota_full_makes_room_for_another(bench: Bench) -> None:
    await bench.open()
    await bench.clock.advance(30)
    await bench.call(RateLimited("full", retry_after_seconds=90))
    assert (await bench.state(), bench.gauge) == ("OPEN", 2)
    assert (await bench.refused()).retry_after_seconds == 30
    await bench.clock.advance(30)
    await bench.call("answer")
    assert await bench.state() == "HALF_OPEN"


@pytest.mark.parametrize("error", UNASKED)
async def test_a_call_that_was_never_made_says_nothing_of_the_service(bench: Bench, error: AgentTeamError) -> None:
    for _ in range(10):
        await bench.call(error)
    assert await bench.state() == "CLOSED"
    for _ in range(4):
        await bench.call(GONE)
        await bench.call(error)
    await bench.call(GONE)
    assert await bench.state() == "OPEN"

    await bench.clock.advance(30)
    await bench.call(error)
    assert (await bench.state(), bench.gauge) == ("OPEN", 2)
    await bench.clock.advance(30)
    await bench.call("answer")
    await bench.call("answer")
    assert await bench.state() == "CLOSED"


async def test_a_probe_that_is_cancelled_makes_room_for_another(bench: Bench) -> None:
    await bench.open()
    await bench.clock.advance(30)
    await bench.cancelled(after_seconds=1)
    assert (await bench.state(), bench.gauge) == ("OPEN", 2)
    await bench.clock.advance(30)
    await bench.call("answer")
    await bench.call("answer")
    assert await bench.state() == "CLOSED"


async def test_a_cancelled_call_says_nothing_of_the_service(bench: Bench) -> None:
    for _ in range(10):
        await bench.cancelled(after_seconds=94)
    assert await bench.state() == "CLOSED"


async def test_a_call_that_is_cancelled_when_its_time_is_up_has_failed(bench: Bench) -> None:
    for _ in range(5):
        await bench.cancelled(after_seconds=100)
    assert (await bench.state(), bench.gauge) == ("OPEN", 2)


async def test_a_refused_call_shows_what_others_did_to_the_breaker(bench: Bench) -> None:
    await bench.call("answer")
    assert bench.gauge == 0
    for _ in range(5):
        await bench.breaker.after(breaker_of(bench.name), success=False)
    await bench.refused()
    assert bench.gauge == 2


async def test_whoever_asks_for_the_state_shows_it(bench: Bench) -> None:
    await bench.open()
    await bench.clock.advance(30)
    assert bench.gauge == 2
    assert await breaker_state(bench.breaker, bench.name) == "HALF_OPEN"
    assert bench.gauge == 1


async def test_as_long_as_all_is_well_a_call_costs_no_further_look(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def look(_: str) -> str:
        raise AssertionError("the state was asked")

    monkeypatch.setattr(bench.breaker, "state", look)
    await bench.call("answer")
    await bench.call(ANSWERS[0])
    assert bench.gauge == 0


async def test_breakers_of_other_models_are_others(bench: Bench, breaker: Breaker, clock: ManualClock) -> None:
    await bench.open()
    other = Bench(breaker, clock, f"{bench.name}-other")
    await other.call("answer")
    assert (bench.gauge, other.gauge) == (2, 0)
