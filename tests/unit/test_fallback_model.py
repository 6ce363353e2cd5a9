"""A chain of models: when one fails, the next is asked."""

import asyncio
import logging
from typing import Any

import pytest

from shared.ai import Reply, Request
from shared.ai.fallback import FallbackModel
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
    OutputInvalid,
    RateLimited,
    Transient,
)
from shared.telemetry import metrics
from tests.support.doubles import ScriptedModel

REQUEST = Request(prompt="x", timeout_seconds=300)
GONE = ModelUnavailable("gone")
UNKNOWN = ModelUnknown("404")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A prefix of the test's own: metrics outlive a test."""
    return str(request.node.name)


def chain(clock: ManualClock, *models: Any, prefix: str = "m") -> FallbackModel:
    return FallbackModel([(f"{prefix}{number}", model) for number, model in enumerate(models, start=1)], clock)


class Hanging:
    """Never answers: takes all the time it is given, or so much of it."""

    def __init__(self, clock: ManualClock, *, share: float = 1.0) -> None:
        self.given: list[float] = []
        self._clock = clock
        self._share = share

    async def generate(self, request: Request) -> Reply:
        self.given.append(request.timeout_seconds)
        await self._clock.advance(request.timeout_seconds * self._share)
        raise OutcomeUnknown("no answer")


@pytest.mark.parametrize("error", [GONE, OutcomeUnknown("no answer"), RateLimited("full"), CircuitOpen("open"), UNKNOWN])
async def test_what_another_model_may_do_better_goes_on_to_it(
    clock: ManualClock, name: str, error: AgentTeamError, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, third = ScriptedModel(error), ScriptedModel("answer"), ScriptedModel("not asked")
    reply = await chain(clock, first, second, third, prefix=name).generate(REQUEST)
    assert reply.output == "answer"
    assert [len(model.requests) for model in (first, second, third)] == [1, 1, 0]
    assert metrics.value("ai.fallback", **{"from": f"{name}1", "to": f"{name}2", "reason": type(error).__name__}) == 1
    (record,) = caplog.records
    assert f"{name}1" in record.getMessage()
    assert str(error) in record.getMessage()
    assert record.levelno == (logging.ERROR if error is UNKNOWN else logging.WARNING)


@pytest.mark.parametrize(
    "error",
    [
        ModelRefused("key"),
        ContentBlocked("blocked"),
        OutputInvalid("no JSON"),
        BudgetExceeded("spent"),
        Cancelled("ended"),
        ZeroDivisionError(),
    ],
)
async def test_what_would_be_the_same_there_is_raised_at_once(clock: ManualClock, error: Exception) -> None:
    second = ScriptedModel("answer")
    with pytest.raises(type(error)) as caught:
        await chain(clock, ScriptedModel(error), second).generate(REQUEST)
    assert caught.value is error
    assert second.requests == []


async def test_a_model_that_works_is_asked_alone_and_nothing_is_said(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    second = ScriptedModel("second")
    assert (await chain(clock, ScriptedModel("first"), second).generate(REQUEST)).output == "first"
    assert (second.requests, caplog.records) == ([], [])


# Models that do not exist


async def test_a_model_that_does_not_exist_is_not_asked_for_ten_minutes(
    clock: ManualClock, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = ScriptedModel(UNKNOWN), ScriptedModel("answer")
    model = chain(clock, first, second, prefix=name)
    for _ in range(3):
        assert (await model.generate(REQUEST)).output == "answer"
        await clock.advance(299.9)
    assert (len(first.requests), len(second.requests)) == (1, 3)
    # Every call went on, and it is said once.
    assert metrics.value("ai.fallback", **{"from": f"{name}1", "to": f"{name}2", "reason": "ModelUnknown"}) == 3
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS" in record.getMessage()

    await clock.advance(0.3)
    await model.generate(REQUEST)
    assert len(first.requests) == 2


async def test_the_time_of_a_model_that_does_not_exist_is_there_for_the_others(clock: ManualClock) -> None:
    first, second, third = ScriptedModel(GONE), ScriptedModel(UNKNOWN), ScriptedModel("answer")
    model = chain(clock, first, second, third)
    await model.generate(REQUEST)
    await model.generate(REQUEST)
    assert [request.timeout_seconds for request in first.requests] == [100, 150]
    assert [request.timeout_seconds for request in second.requests] == [150]
    assert [request.timeout_seconds for request in third.requests] == [300, 300]


async def test_calls_that_find_it_out_at_the_same_time_say_it_once(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    class Slow(ScriptedModel):
        async def generate(self, request: Request) -> Reply:
            await asyncio.sleep(0)
            return await super().generate(request)

    first = Slow(UNKNOWN)
    model = chain(clock, first, ScriptedModel("answer"))
    await asyncio.gather(*(model.generate(REQUEST) for _ in range(3)))
    assert len(first.requests) == 3
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_a_lone_model_that_does_not_exist_says_so_each_time(clock: ManualClock) -> None:
    first = ScriptedModel(UNKNOWN)
    model = chain(clock, first)
    for _ in range(3):
        with pytest.raises(ModelUnknown, match=r"^404$"):
            await model.generate(REQUEST)
    assert len(first.requests) == 1


# Time


async def test_a_model_that_hangs_leaves_time_for_the_others(clock: ManualClock) -> None:
    models = [Hanging(clock) for _ in range(3)]
    with pytest.raises(ModelUnavailable):
        await chain(clock, *models).generate(REQUEST)
    assert [model.given for model in models] == [[100], [100], [100]]


async def test_whom_no_time_is_left_for_is_not_asked(clock: ManualClock) -> None:
    second = ScriptedModel("answer")
    with pytest.raises(ModelUnavailable) as caught:
        await chain(clock, Hanging(clock), second).generate(Request(prompt="x", timeout_seconds=60))
    assert second.requests == []
    assert str(caught.value) == ("no model of the chain answered; m1 (OutcomeUnknown: no answer); m2 (not asked: the time is up)")

    quick = chain(clock, Hanging(clock, share=0.9), second)
    assert (await quick.generate(Request(prompt="x", timeout_seconds=60))).output == "answer"
    assert [request.timeout_seconds for request in second.requests] == [pytest.approx(6)]


# When all failed


async def test_a_lone_model_raises_its_own_error(clock: ManualClock) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        await chain(clock, ScriptedModel(GONE)).generate(REQUEST)
    assert caught.value is GONE


async def test_the_error_names_each_model_and_why(clock: ManualClock) -> None:
    long = ModelUnavailable("the service\nfailed " + "x" * 1000)
    model = chain(clock, ScriptedModel(UNKNOWN), ScriptedModel(RateLimited("full")), ScriptedModel(long))
    with pytest.raises(ModelUnavailable) as caught:
        await model.generate(REQUEST)
    message = str(caught.value)
    assert message.startswith(
        "no model of the chain answered; m1 (ModelUnknown: 404); m2 (RateLimited: full); m3 (ModelUnavailable: "
    )
    assert "the service failed xxx" in message
    assert "\n" not in message
    assert len(message) < 350


def limited(seconds: float | None) -> RateLimited:
    return RateLimited("full", retry_after_seconds=seconds)


def circuit(seconds: float | None) -> CircuitOpen:
    return CircuitOpen("open", retry_after_seconds=seconds)


@pytest.mark.parametrize(
    ("errors", "kind", "retry_after"),
    [
        ([UNKNOWN, UNKNOWN], ModelUnknown, None),
        ([limited(90), limited(30)], RateLimited, 30),
        ([limited(None), limited(30)], RateLimited, 30),
        ([limited(None), limited(None)], RateLimited, None),
        ([limited(90), circuit(20)], RateLimited, 20),
        ([circuit(20), limited(90)], RateLimited, 20),
        ([UNKNOWN, limited(90)], RateLimited, 90),
        ([UNKNOWN, limited(90), circuit(None)], RateLimited, 90),
        ([circuit(20), circuit(10)], CircuitOpen, 10),
        ([UNKNOWN, circuit(10)], CircuitOpen, 10),
        ([GONE, limited(90)], ModelUnavailable, 90),
        ([GONE, circuit(10)], ModelUnavailable, 10),
        ([GONE, GONE], ModelUnavailable, None),
        ([UNKNOWN, GONE], ModelUnavailable, None),
        ([OutcomeUnknown("no answer"), Transient("else")], ModelUnavailable, None),
    ],
)
async def test_the_error_is_of_the_kind_that_says_what_to_do(
    clock: ManualClock, errors: list[AgentTeamError], kind: type[AgentTeamError], retry_after: float | None
) -> None:
    model = chain(clock, *(ScriptedModel(error) for error in errors))
    for _ in range(2):  # also when it is remembered who does not exist
        with pytest.raises(kind) as caught:
            await model.generate(REQUEST)
        assert type(caught.value) is kind
        assert getattr(caught.value, "retry_after_seconds", None) == retry_after
