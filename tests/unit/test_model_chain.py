"""The assembled chain, as the settings open it, over providers that say what the test wants."""

from collections.abc import Callable
from typing import Any

import pytest

from shared.ai import Model, Reply, Request, open_model
from shared.ai.guarded import breaker_of
from shared.errors import (
    BudgetExceeded,
    CircuitOpen,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    OutputEmpty,
    PromptTooLarge,
    RateLimited,
)
from shared.guards import Guards, open_guards
from shared.messages import Usage
from shared.telemetry import metrics
from tests.support.doubles import Purse, ScriptedModel, SkippingClock

MODELS = ("gemini-2.5-pro", "gemini-1.5-pro", "gemini-1.5-flash")
USED = Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7)
SCHEMA = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string"}}}
REQUEST = Request(prompt="x", timeout_seconds=300)
GONE = ModelUnavailable("gone")


class Provider(ScriptedModel):
    """A provider whose answers the test may change."""

    def __init__(self) -> None:
        super().__init__(usage=USED)
        self.answer: Any = "answer"
        self.closed = False
        self.counted = 0

    def open(self) -> None:
        """There is nothing to load."""

    async def count(self, request: Request) -> int:
        self.counted += 1
        return 30

    async def generate(self, request: Request) -> Reply:
        self._answers = (self.answer,)
        return await super().generate(request)

    async def close(self) -> None:
        self.closed = True


class Stage:
    """Providers by name of their model, and what is opened over them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = SkippingClock()
        self.guards: Guards = open_guards("memory", self.clock)
        self.providers: dict[str, Provider] = {name: Provider() for name in MODELS}
        self.opened: list[dict[str, Any]] = []
        monkeypatch.setattr("shared.ai.gemini.GeminiModel", self._provider)

    def _provider(self, key: str, name: str, **options: Any) -> Provider:
        self.opened.append(options)
        return self.providers[name]

    def open(self, **changes: Any) -> Model:
        values: dict[str, Any] = {
            "gemini_api_key": "a-key",
            "models": MODELS,
            "guards": self.guards,
            "clock": self.clock,
            # Without it a test of many calls would wait for its turn.
            "qps": 1000,
            "qps_given": True,
        }
        return open_model(**(values | changes))

    @property
    def asked(self) -> tuple[int, ...]:
        return tuple(len(provider.requests) for provider in self.providers.values())

    def answer(self, *answers: Any) -> None:
        for provider, answer in zip(self.providers.values(), answers, strict=False):
            provider.answer = answer

    async def state(self, name: str) -> str:
        return await self.guards.breaker.state(breaker_of(name))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch)


async def test_a_refused_key_is_exactly_one_call(stage: Stage) -> None:
    stage.answer(ModelRefused("the key is refused"))
    with pytest.raises(ModelRefused):
        await stage.open().generate(REQUEST)
    assert (stage.asked, stage.clock.slept) == ((1, 0, 0), [])


async def test_a_model_that_does_not_answer_is_exactly_four_calls_and_then_the_next_answers(stage: Stage) -> None:
    stage.answer(OutcomeUnknown("no answer"))
    assert (await stage.open().generate(REQUEST)).output == "answer"
    assert (stage.asked, stage.clock.slept) == ((4, 1, 0), [0.2, 0.4, 0.8])


async def test_without_retries_it_is_one_call(stage: Stage) -> None:
    stage.answer(OutcomeUnknown("no answer"))
    assert (await stage.open(retries=False).generate(REQUEST)).output == "answer"
    assert (stage.asked, stage.clock.slept) == ((1, 1, 0), [])


async def test_a_model_that_does_not_exist_is_one_call_in_ten_minutes(stage: Stage) -> None:
    stage.answer(ModelUnknown("404"))
    model = stage.open()
    for _ in range(3):
        assert (await model.generate(REQUEST)).output == "answer"
    assert stage.asked == (1, 3, 0)
    await stage.clock.advance(600)
    await model.generate(REQUEST)
    assert stage.asked == (2, 4, 0)
    assert await stage.state(MODELS[0]) == "CLOSED"


async def test_the_breaker_opens_after_five_calls_probes_once_and_closes_after_two_answers(stage: Stage) -> None:
    stage.answer(GONE)
    model = stage.open()
    await model.generate(REQUEST)
    assert await stage.state(MODELS[0]) == "CLOSED"
    assert (await model.generate(REQUEST)).output == "answer"
    assert (stage.asked, await stage.state(MODELS[0])) == ((5, 2, 0), "OPEN")
    for _ in range(3):
        assert (await model.generate(REQUEST)).output == "answer"
    assert stage.asked == (5, 5, 0)

    await stage.clock.advance(30)
    stage.clock.slept.clear()
    assert (await model.generate(REQUEST)).output == "answer"
    assert (stage.asked, await stage.state(MODELS[0])) == ((6, 6, 0), "OPEN")
    assert stage.clock.slept == [0.2]  # before it was seen that the circuit had opened

    await stage.clock.advance(30)
    stage.answer("again")
    assert (await model.generate(REQUEST)).output == "again"
    assert await stage.state(MODELS[0]) == "HALF_OPEN"
    assert (await model.generate(REQUEST)).output == "again"
    assert await stage.state(MODELS[0]) == "CLOSED"
    assert stage.asked == (8, 6, 0)


async def test_when_all_circuits_are_open_the_error_says_when_to_come_back(stage: Stage) -> None:
    stage.answer(GONE, GONE, GONE)
    model = stage.open()
    with pytest.raises(ModelUnavailable):
        await model.generate(REQUEST)
    assert stage.asked == (4, 4, 4)
    for _ in range(2):
        with pytest.raises(CircuitOpen) as caught:
            await model.generate(REQUEST)
        assert stage.asked == (5, 5, 5)
    assert all(name in str(caught.value) for name in MODELS)
    assert caught.value.retry_after_seconds is not None
    assert 0 < caught.value.retry_after_seconds <= 30


async def test_each_http_call_takes_its_own_place_in_the_limit_and_what_may_have_been_charged_stays_held(stage: Stage) -> None:
    stage.answer(OutcomeUnknown("no answer"))
    purse = Purse()
    await stage.open(qps=0.5, breaker=False).generate(Request(prompt="x", timeout_seconds=300, account=purse))
    assert len(purse.held) == 5
    assert purse.settled == [(MODELS[1], USED)]
    stage.clock.slept.clear()
    stage.answer("answer")
    model = stage.open(qps=0.5, models=MODELS[:1])
    await model.generate(REQUEST)
    await model.generate(REQUEST)
    # Of the burst of five, four were taken in 1.4 s, in which 0.7 flowed in: the second call waits for 0.3 more.
    assert stage.clock.slept == [pytest.approx(0.6)]


async def test_a_full_quota_goes_on_to_the_next_model_and_slows_all_instances(stage: Stage) -> None:
    stage.answer(RateLimited("full", retry_after_seconds=600))
    purse = Purse()
    request = Request(prompt="x", timeout_seconds=300, account=purse)
    assert (await stage.open().generate(request)).output == "answer"
    assert (await stage.open().generate(request)).output == "answer"  # another instance
    assert (stage.asked, stage.clock.slept) == ((1, 2, 0), [])
    assert purse.settled == [(MODELS[0], Usage()), (MODELS[1], USED), (MODELS[1], USED)]
    assert purse.tokens_left == 10**9 - 2 * USED.tokens


async def test_a_spent_budget_asks_nobody_and_takes_nothing_of_a_limit_or_a_breaker(stage: Stage) -> None:
    stage.answer(GONE)
    model = stage.open()
    await model.generate(REQUEST)
    asked = stage.asked
    for _ in range(3):
        with pytest.raises(BudgetExceeded):
            await model.generate(Request(prompt="x", timeout_seconds=300, account=Purse(tokens=10)))
    assert stage.asked == asked
    stage.clock.slept.clear()
    await model.generate(REQUEST)
    # Four failures and one make five: what was never asked is no success in between.
    assert (await stage.state(MODELS[0]), stage.asked[0]) == ("OPEN", 5)


async def test_a_budget_that_the_guess_does_not_fit_is_asked_again_with_the_providers_count(stage: Stage) -> None:
    purse = Purse(tokens=150)
    await stage.open().generate(Request(prompt="x" * 100, max_tokens=120, timeout_seconds=300, account=purse))
    assert [hold.tokens for hold in purse.held] == [150]
    assert [provider.counted for provider in stage.providers.values()] == [1, 0, 0]


async def test_a_prompt_that_no_context_holds_is_asked_of_nobody(stage: Stage) -> None:
    with pytest.raises(PromptTooLarge, match="about 1048577 tokens and the model takes 1048576"):
        await stage.open().generate(Request(prompt="x" * (4 * 1_048_576 + 1)))
    assert stage.asked == (0, 0, 0)


async def test_an_answer_of_no_use_is_repaired_once_and_both_are_paid(stage: Stage) -> None:
    provider = stage.providers[MODELS[0]]
    provider.answer = '{"titel": "a"}'
    purse = Purse()
    request = Request(prompt="x", schema=SCHEMA, timeout_seconds=300, account=purse)
    with pytest.raises(Exception, match=r"\$\.title is missing"):
        await stage.open().generate(request)
    assert stage.asked == (2, 0, 0)
    assert purse.settled == [(MODELS[0], USED)] * 2
    assert "$.title is missing" in provider.requests[1].prompt


@pytest.mark.parametrize(("problem", "calls"), [(ContentBlocked("blocked"), 1), (OutputEmpty("empty"), 2)])
async def test_a_problem_of_a_reply_is_paid_and_raised(stage: Stage, problem: Any, calls: int) -> None:
    stage.answer(Reply(output="", model=MODELS[0], usage=USED, problem=problem))
    purse = Purse()
    with pytest.raises(type(problem)):
        await stage.open().generate(Request(prompt="x", timeout_seconds=300, account=purse))
    assert stage.asked == (calls, 0, 0)
    assert purse.settled == [(MODELS[0], USED)] * calls


async def test_a_cached_answer_asks_nobody(stage: Stage) -> None:
    stage.answer('{"title": "a"}')
    model = stage.open(cache=True)
    purse = Purse()
    for _ in range(3):
        reply = await model.generate(Request(prompt="x", schema=SCHEMA, timeout_seconds=300, account=purse))
        assert reply.output == {"title": "a"}
    assert (stage.asked, len(purse.held)) == ((1, 0, 0), 1)
    await stage.open(cache=False).generate(REQUEST)
    assert stage.asked == (2, 0, 0)


async def test_every_call_is_counted_by_its_model_and_outcome(stage: Stage) -> None:
    def counted(outcome: str) -> list[float]:
        return [metrics.value("ai.requests", model=name, outcome=outcome) for name in MODELS]

    before = {word: counted(word) for word in ("success", "unavailable")}
    stage.answer(GONE)
    await stage.open().generate(REQUEST)
    assert [now - then for now, then in zip(counted("unavailable"), before["unavailable"], strict=True)] == [4, 0, 0]
    assert [now - then for now, then in zip(counted("success"), before["success"], strict=True)] == [0, 1, 0]


async def test_closing_closes_every_provider(stage: Stage) -> None:
    model: Any = stage.open()
    await model.close()
    assert all(provider.closed for provider in stage.providers.values())


async def test_the_providers_get_the_address_and_their_price(stage: Stage) -> None:
    stage.open(gemini_base_url="http://127.0.0.1:1/")
    assert [options["base_url"] for options in stage.opened] == ["http://127.0.0.1:1/"] * 3
    assert [options["price"].output_usd for options in stage.opened] == [10.0, 5.0, 0.30]


@pytest.mark.parametrize("make", [lambda error: error, lambda error: Reply("", "m", USED, problem=error)])
async def test_when_all_fail_the_error_names_each_model(stage: Stage, make: Callable[[Any], Any]) -> None:
    stage.answer(*(make(ModelUnavailable(f"no {name}")) for name in MODELS))
    with pytest.raises(ModelUnavailable) as caught:
        await stage.open().generate(REQUEST)
    assert stage.asked == (4, 4, 4)
    assert all(f"{name} (ModelUnavailable: no {name})" in str(caught.value) for name in MODELS)
