"""A model whose calls somebody pays for."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.ai import Declaration, Price, Reply, Request, ToolCall, Turn
from shared.ai.accounted import AccountedModel
from shared.ai.sent import input_tokens_about, input_tokens_at_most
from shared.clock import ManualClock
from shared.errors import (
    BudgetExceeded,
    Cancelled,
    ConfigurationError,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    OutputEmpty,
    OutputInvalid,
    OutputTruncated,
    PromptTooLarge,
    RateLimited,
)
from shared.messages import Usage
from shared.telemetry import metrics
from tests.support.doubles import Purse, ScriptedModel

PRICE = Price(input_usd=2, output_usd=10, cached_input_usd=0.5)
USED = Usage(model_calls=1, input_tokens=40, output_tokens=60, cost_microdollars=680)
FRAME = 64
REQUEST = Request(prompt="é" * 100, max_tokens=50, timeout_seconds=100)
AT_MOST = 200 + FRAME
"""Of the input: two bytes a letter, and what is put around a prompt."""


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A model of the test's own: metrics outlive a test."""
    return str(request.node.name)


@pytest.fixture
def purse() -> Purse:
    return Purse()


def paid_for(request: Request, purse: Purse) -> Request:
    return Request(prompt=request.prompt, max_tokens=request.max_tokens, timeout_seconds=request.timeout_seconds, account=purse)


def accounted(inner: Any, name: str = "scripted", **changes: Any) -> AccountedModel:
    values: dict[str, Any] = {"name": name, "price": PRICE, "context_tokens": None, "clock": ManualClock()}
    return AccountedModel(inner, **(values | changes))


def outcomes(name: str) -> dict[str, float]:
    words = (
        "success invalid blocked refused unknown_model rate_limited unavailable timeout budget cancelled error".split()  # noqa: SIM905
    )
    counted = {word: metrics.value("ai.requests", model=name, outcome=word) for word in words}
    return {word: value for word, value in counted.items() if value}


async def outcome_of(call: Awaitable[Reply]) -> Reply | BaseException:
    (outcome,) = await asyncio.gather(call, return_exceptions=True)
    return outcome


# What is set aside


async def test_the_most_that_a_call_can_use_is_set_aside_and_settled_with_what_it_used(name: str, purse: Purse) -> None:
    inner = ScriptedModel("answer", usage=USED)
    reply = await accounted(inner, name).generate(paid_for(REQUEST, purse))

    (hold,) = purse.held
    assert (hold.tokens, hold.cost_microdollars) == (AT_MOST + 50, AT_MOST * 2 + 50 * 10)
    assert purse.settled == [(name, USED)]
    assert (10**9 - purse.tokens_left, 10**9 - purse.cost_left) == (100, 680)
    assert (reply.output, reply.usage) == ("answer", USED)


async def test_a_model_without_a_price_holds_tokens_alone(purse: Purse) -> None:
    await accounted(ScriptedModel("answer"), price=None).generate(paid_for(REQUEST, purse))
    assert [(hold.tokens, hold.cost_microdollars) for hold in purse.held] == [(AT_MOST + 50, 0)]


def test_all_that_is_sent_counts() -> None:
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    call = ToolCall("look_up", {"word": "ü"}, id="c1", signature=b"\x00" * 30)
    sizes = [
        input_tokens_at_most(request)
        for request in (
            Request(prompt="x"),
            Request(prompt="x", schema=schema),
            Request(prompt="x", tools=(Declaration("look_up", "Looks up.", schema),)),
            Request(prompt="x", turns=(Turn("m", (call,), ({"found": "y" * 100},)),)),
        )
    ]
    assert sizes[0] == 1 + FRAME
    assert sizes[1] == sizes[0] + len(b'{"properties":{"title":{"type":"string"}},"type":"object"}')
    assert sizes[2] > sizes[1] + len("look_up") + len("Looks up.") + FRAME
    # The signature takes four letters for three bytes.
    assert sizes[3] > sizes[0] + 2 * FRAME + 40 + 100


@given(
    st.integers(0, 2000),
    st.integers(1, 5000),
    st.floats(0, 30),
    st.floats(0, 60),
    st.none() | st.floats(0, 1),
    st.data(),
)
def test_no_usage_costs_more_than_what_was_set_aside(
    letters: int, max_tokens: int, input_usd: float, output_usd: float, cached_share: float | None, data: st.DataObject
) -> None:
    request = Request(prompt="ß" * letters, max_tokens=max_tokens)
    cached_usd = None if cached_share is None else input_usd * cached_share
    price = Price(input_usd, output_usd, cached_usd)
    used_in = data.draw(st.integers(0, input_tokens_at_most(request)))
    used_out = data.draw(st.integers(0, max_tokens))
    cached = data.draw(st.integers(0, used_in))
    usage = Usage(
        model_calls=1,
        input_tokens=used_in,
        output_tokens=used_out,
        cost_microdollars=price.microdollars(input_tokens=used_in, output_tokens=used_out, cached_tokens=cached),
    )

    purse = Purse()
    model = accounted(ScriptedModel("answer", usage=usage), price=price)
    asyncio.run(model.generate(paid_for(request, purse)))
    (hold,) = purse.held
    assert usage.tokens <= hold.tokens
    assert usage.cost_microdollars <= hold.cost_microdollars
    spent = (10**9 - purse.tokens_left, 10**9 - purse.cost_left)
    assert spent == ((usage.tokens, usage.cost_microdollars) if usage.tokens else (hold.tokens, hold.cost_microdollars))


_ENDS = st.one_of(
    st.tuples(st.integers(1, AT_MOST), st.integers(0, 50)),
    st.sampled_from([ModelUnavailable("503"), RateLimited("full"), OutcomeUnknown("no answer"), ZeroDivisionError()]),
)


@given(st.integers(0, 2000), st.lists(_ENDS, max_size=30))
def test_whatever_becomes_of_the_calls_no_more_is_spent_than_there_was(tokens: int, ends: list[Any]) -> None:
    purse = Purse(tokens=tokens)
    spent = 0
    for end in ends:
        used = Usage(model_calls=1, input_tokens=end[0], output_tokens=end[1]) if isinstance(end, tuple) else None
        inner = ScriptedModel(end if used is None else "answer", usage=used)
        result = asyncio.run(outcome_of(accounted(inner).generate(paid_for(REQUEST, purse))))
        if isinstance(result, BudgetExceeded):
            assert tokens - spent < AT_MOST + 50
            assert inner.requests == []
        elif used is not None:
            spent += used.tokens
        elif isinstance(end, OutcomeUnknown | ZeroDivisionError):
            spent += AT_MOST + 50
        assert purse.tokens_left == tokens - spent >= 0


async def test_calls_side_by_side_never_spend_more_than_there_is() -> None:
    purse = Purse(tokens=3 * (AT_MOST + 50) + 1)

    class Slow(ScriptedModel):
        async def generate(self, request: Request) -> Reply:
            await asyncio.sleep(0)
            return await super().generate(request)

    inner = Slow("answer", usage=USED)
    calls = [accounted(inner).generate(paid_for(REQUEST, purse)) for _ in range(10)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, Reply) for result in results) == len(inner.requests) == 3
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 7


# What is not asked


async def test_a_call_that_the_budget_does_not_hold_is_not_made(name: str) -> None:
    inner = ScriptedModel("answer")
    purse = Purse(tokens=AT_MOST + 49)
    with pytest.raises(BudgetExceeded):
        await accounted(inner, name).generate(paid_for(REQUEST, purse))
    assert (inner.requests, purse.held, purse.tokens_left) == ([], [], AT_MOST + 49)
    assert outcomes(name) == {"budget": 1}


async def test_only_when_the_bound_does_not_fit_are_the_tokens_counted() -> None:
    counted: list[Request] = []
    clock = ManualClock()

    async def count(request: Request) -> int:
        counted.append(request)
        await clock.advance(3)
        return 30

    inner = ScriptedModel("answer", usage=USED)
    model = accounted(inner, count=count, clock=clock)
    await model.generate(paid_for(REQUEST, Purse()))
    assert counted == []

    purse = Purse(tokens=80)
    await model.generate(paid_for(REQUEST, purse))
    assert len(counted) == 1
    assert [(hold.tokens, hold.cost_microdollars) for hold in purse.held] == [(80, 30 * 2 + 50 * 10)]
    # The time that counting took is no longer there.
    assert [request.timeout_seconds for request in inner.requests] == [100, 97]

    with pytest.raises(BudgetExceeded):
        await model.generate(paid_for(REQUEST, Purse(tokens=79)))
    assert len(inner.requests) == 2


async def test_a_prompt_that_no_context_holds_is_refused_in_tokens_alone(name: str, purse: Purse) -> None:
    inner = ScriptedModel("answer")
    model = accounted(inner, name, context_tokens=100)
    assert input_tokens_about(Request(prompt="secret" * 67)) == 101
    with pytest.raises(PromptTooLarge) as caught:
        await model.generate(paid_for(Request(prompt="secret" * 67), purse))
    assert isinstance(caught.value, ModelRefused)
    assert str(caught.value) == f"{name}: the prompt has about 101 tokens and the model takes 100; shorten the input"
    assert (inner.requests, purse.held) == ([], [])
    assert outcomes(name) == {"refused": 1}

    await model.generate(Request(prompt="secret" * 66))
    assert len(inner.requests) == 1


async def test_a_workflow_that_ended_asks_for_nothing_more(name: str) -> None:
    class Ended(Purse):
        async def hold(self, *, tokens: int, cost_microdollars: int) -> Any:
            raise Cancelled("the workflow ended")

    inner = ScriptedModel("answer")
    with pytest.raises(Cancelled):
        await accounted(inner, name).generate(paid_for(REQUEST, Ended()))
    assert inner.requests == []
    assert outcomes(name) == {"cancelled": 1}


# What is given back, and what is not


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RateLimited("full"), "rate_limited"),
        (ModelUnavailable("503"), "unavailable"),
        (ModelRefused("no permission"), "refused"),
        (ModelUnknown("404"), "unknown_model"),
        (ContentBlocked("blocked"), "blocked"),
        (ConfigurationError("no address"), "error"),
    ],
)
async def test_a_definite_no_gives_back_what_was_set_aside(error: Exception, outcome: str, name: str, purse: Purse) -> None:
    with pytest.raises(type(error)):
        await accounted(ScriptedModel(error), name).generate(paid_for(REQUEST, purse))
    assert purse.settled == [(name, Usage())]
    assert (purse.tokens_left, purse.cost_left) == (10**9, 10**9)
    assert outcomes(name) == {outcome: 1}


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OutcomeUnknown("no answer"), "timeout"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError(), "error"),
        (OutputInvalid("a provider that raises it"), "invalid"),
    ],
)
async def test_what_may_have_been_charged_counts_as_spent(error: BaseException, outcome: str, name: str, purse: Purse) -> None:
    with pytest.raises(type(error)):
        await accounted(ScriptedModel(error), name).generate(paid_for(REQUEST, purse))
    assert (len(purse.held), purse.settled) == (1, [])
    assert 10**9 - purse.tokens_left == AT_MOST + 50
    assert outcomes(name) == {outcome: 1}


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        (ContentBlocked("blocked"), "blocked"),
        (OutputTruncated("cut off"), "invalid"),
        (OutputEmpty("nothing"), "invalid"),
        (ModelUnavailable("broke off"), "unavailable"),
    ],
)
@pytest.mark.parametrize("pays", [True, False])
async def test_a_reply_of_no_use_is_paid_and_then_raised(problem: Any, outcome: str, pays: bool, name: str, purse: Purse) -> None:
    inner = ScriptedModel(Reply(output="", model="scripted", usage=USED, problem=problem))
    with pytest.raises(type(problem)) as caught:
        await accounted(inner, name).generate(paid_for(REQUEST, purse) if pays else REQUEST)
    assert caught.value is problem
    assert purse.settled == ([(name, USED)] if pays else [])
    assert outcomes(name) == {outcome: 1}
    assert metrics.value("ai.cost_microdollars", model=name) == 680


async def test_a_reply_that_does_not_say_what_it_used_keeps_what_was_set_aside(purse: Purse) -> None:
    reply = await accounted(ScriptedModel("answer", usage=Usage(model_calls=1))).generate(paid_for(REQUEST, purse))
    assert reply.output == "answer"
    assert purse.settled == []


# Metrics


@pytest.mark.parametrize("pays", [True, False])
async def test_requests_tokens_and_money_are_counted_whoever_pays(pays: bool, name: str, purse: Purse) -> None:
    model = accounted(ScriptedModel("answer", usage=USED), name)
    for _ in range(2):
        await model.generate(paid_for(REQUEST, purse) if pays else REQUEST)
    assert outcomes(name) == {"success": 2}
    assert metrics.value("ai.tokens", model=name, type="input") == 80
    assert metrics.value("ai.tokens", model=name, type="output") == 120
    assert metrics.value("ai.cost_microdollars", model=name) == 1360
