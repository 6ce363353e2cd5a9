"""Each way in which the simulated Gemini fails, as Google's own client meets it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import httpx2
import pytest
from google.genai import errors, types

from shared.clock import ManualClock
from shared.errors import ConfigurationError
from shared.local.simulator import Fault, Kind, Simulator, open_simulator
from tests.support.live import until
from tests.support.simulated import BRIEF, NEWER, PRO, google, settings

JSON = {
    "response_mime_type": "application/json",
    "response_json_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
}


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with open_simulator() as opened:
        yield opened


@pytest.fixture
async def models(simulator: Simulator) -> AsyncIterator[Any]:
    async with google(simulator.url) as opened:
        yield opened


async def whole(models: Any, **given: Any) -> Any:
    return await models.generate_content(model=PRO, contents=BRIEF, config=settings(**given))


async def streamed(models: Any, **given: Any) -> Any:
    """The last chunk."""
    last = None
    async for chunk in await models.generate_content_stream(model=PRO, contents=BRIEF, config=settings(**given)):
        last = chunk
    return last


both = pytest.mark.parametrize("ask", [whole, streamed])


@both
@pytest.mark.parametrize(
    ("kind", "error", "code", "status"),
    [
        (Kind.RATE_LIMITED, errors.ClientError, 429, "RESOURCE_EXHAUSTED"),
        (Kind.INTERNAL, errors.ServerError, 500, "INTERNAL"),
        (Kind.UNAVAILABLE, errors.ServerError, 503, "UNAVAILABLE"),
        (Kind.DEADLINE, errors.ServerError, 504, "DEADLINE_EXCEEDED"),
        (Kind.FORBIDDEN, errors.ClientError, 403, "PERMISSION_DENIED"),
        (Kind.NOT_FOUND, errors.ClientError, 404, "NOT_FOUND"),
    ],
)
async def test_an_error_status_is_google_s(
    simulator: Simulator, models: Any, ask: Any, kind: Kind, error: type[errors.APIError], code: int, status: str
) -> None:
    simulator.fail(Fault(kind=kind, next=1, retry_after_seconds=7.5))
    with pytest.raises(error) as failed:
        await ask(models)
    await ask(models)

    assert (failed.value.code, failed.value.status) == (code, status)
    delays = [one["retryDelay"] for one in failed.value.details["error"].get("details", [])]
    assert delays == (["7.5s"] if kind is Kind.RATE_LIMITED else [])
    entry = simulator.ledger[PRO]
    assert (entry.calls, entry.answered, entry.violations, entry.faults) == (2, 1, 0, {kind: 1})
    assert simulator.ledger.refused == {}


@both
@pytest.mark.parametrize("kind", [Kind.DROPPED, Kind.BROKEN_OFF])
async def test_a_connection_is_cut(simulator: Simulator, models: Any, ask: Any, kind: Kind) -> None:
    simulator.fail(Fault(kind=kind, next=1))
    with pytest.raises(httpx2.RemoteProtocolError, match=r"without sending a response" if kind is Kind.DROPPED else "peer closed"):
        await ask(models)

    entry = simulator.ledger[PRO]
    assert (entry.answered, entry.faults) == (0, {kind: 1})
    # What was generated before the cut is paid for.
    assert (entry.output_tokens > 0) == (kind is Kind.BROKEN_OFF)
    assert (await ask(models)).candidates[0].finish_reason == types.FinishReason.STOP


async def test_a_stream_is_broken_off_after_its_first_words(simulator: Simulator, models: Any) -> None:
    simulator.fail(Fault(kind=Kind.BROKEN_OFF, next=1))
    stream = await models.generate_content_stream(model=PRO, contents=BRIEF)

    assert (await anext(stream)).text.startswith("The ferry")
    with pytest.raises(httpx2.RemoteProtocolError):
        async for _ in stream:
            pass


@both
@pytest.mark.parametrize("kind", [Kind.TRUNCATED_JSON, Kind.NOT_JSON])
async def test_a_body_cannot_be_read(simulator: Simulator, models: Any, ask: Any, kind: Kind) -> None:
    simulator.fail(Fault(kind=kind, next=1))
    with pytest.raises((json.JSONDecodeError, errors.UnknownApiResponseError)):
        await ask(models)

    assert simulator.ledger[PRO].output_tokens > 0


@both
async def test_a_prompt_is_blocked(simulator: Simulator, models: Any, ask: Any) -> None:
    simulator.fail(Fault(kind=Kind.BLOCKED_PROMPT, next=1))
    answer = await ask(models)

    assert answer.prompt_feedback.block_reason == types.BlockedReason.SAFETY
    assert answer.candidates is None
    assert answer.usage_metadata.prompt_token_count > 0
    assert answer.usage_metadata.candidates_token_count is None


@both
async def test_an_answer_is_withheld_and_paid_for(simulator: Simulator, models: Any, ask: Any) -> None:
    simulator.fail(Fault(kind=Kind.BLOCKED_ANSWER, next=1))
    answer = await ask(models)

    assert answer.candidates[0].finish_reason == types.FinishReason.SAFETY
    assert answer.text is None
    assert answer.usage_metadata.candidates_token_count == simulator.ledger[PRO].output_tokens > 0


@both
async def test_half_an_answer_ends_with_max_tokens(simulator: Simulator, models: Any, ask: Any) -> None:
    full = await ask(models)
    simulator.fail(Fault(kind=Kind.MAX_TOKENS, next=1))
    half = await ask(models)

    assert half.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert half.usage_metadata.candidates_token_count == full.usage_metadata.candidates_token_count // 2


@both
async def test_there_is_no_candidate(simulator: Simulator, models: Any, ask: Any) -> None:
    simulator.fail(Fault(kind=Kind.NO_CANDIDATES, next=1))
    answer = await ask(models)

    assert answer.candidates is None
    assert answer.prompt_feedback is None


async def test_the_text_is_not_the_json_that_was_asked_for(simulator: Simulator, models: Any) -> None:
    simulator.fail(Fault(kind=Kind.BAD_OUTPUT, next=1))
    bad, good = [await whole(models, **JSON) for _ in range(2)]

    assert bad.candidates[0].finish_reason == types.FinishReason.STOP
    with pytest.raises(json.JSONDecodeError):
        json.loads(bad.text)
    assert json.loads(good.text)["a"]


async def test_a_slow_call_is_answered_after_its_time() -> None:
    clock = ManualClock()
    async with open_simulator(clock=clock) as simulator, google(simulator.url) as models:
        simulator.fail(Fault(kind=Kind.SLOW, next=1, seconds=30))
        asking = asyncio.create_task(whole(models))
        await until(lambda: clock.sleepers > 0)
        await clock.advance(29)
        early = simulator.ledger[PRO].answered
        await clock.advance(1)
        answer = await asking

        assert early == 0
        assert answer.text.startswith("The ferry")
        assert simulator.ledger[PRO].faults == {Kind.SLOW: 1}


async def test_a_hanging_call_ends_when_its_caller_goes(simulator: Simulator, models: Any) -> None:
    simulator.fail(Fault(kind=Kind.HANGING, next=1))
    asking = asyncio.create_task(whole(models))
    await until(lambda: simulator.ledger[PRO].in_flight == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: simulator.ledger[PRO].in_flight == 0)

    assert simulator.ledger[PRO].answered == 0


async def test_closing_ends_what_hangs_and_answers_what_is_slow() -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as opened:
        simulator = await opened.enter_async_context(open_simulator(clock=ManualClock()))
        async with google(simulator.url) as models:
            simulator.fail(Fault(kind=Kind.HANGING, next=1))
            simulator.fail(Fault(kind=Kind.SLOW, next=1, seconds=3600))
            asking = [asyncio.create_task(whole(models)) for _ in range(2)]
            await until(lambda: simulator.ledger[PRO].in_flight == 2)
            began = loop.time()
            await opened.aclose()
            took = loop.time() - began
            outcomes = await asyncio.gather(*asking, return_exceptions=True)

    assert [type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)] == [httpx2.RemoteProtocolError]
    assert took < 2.5  # uvicorn gives up after three


async def test_what_is_set_for_the_next_calls_comes_in_order_and_for_its_model_only(simulator: Simulator, models: Any) -> None:
    simulator.fail(Fault(kind=Kind.UNAVAILABLE, next=2), model=NEWER)
    simulator.fail(Fault(kind=Kind.INTERNAL, next=1))
    codes = []
    for model in (PRO, NEWER, PRO, NEWER, NEWER):
        try:
            await models.generate_content(model=model, contents=BRIEF)
            codes.append(200)
        except errors.APIError as error:
            codes.append(error.code)

    assert codes == [500, 503, 200, 503, 200]


async def test_chance_is_the_same_for_the_same_seed(simulator: Simulator, models: Any) -> None:
    async def outcomes() -> list[bool]:
        simulator.reset()
        simulator.fail(Fault(kind=Kind.UNAVAILABLE, probability=0.5), model=PRO)
        results = [await asyncio.gather(whole(models), return_exceptions=True) for _ in range(5)]
        return [isinstance(result[0], errors.ServerError) for result in results]

    first, second = await outcomes(), await outcomes()

    assert first == second
    assert 0 < sum(first) < 5
    assert simulator.ledger[PRO].faults == {Kind.UNAVAILABLE: sum(first)}


@pytest.mark.parametrize(
    "given", [{}, {"next": 1, "probability": 0.5}, {"probability": 1.5}, {"next": -1}, {"next": 1, "seconds": -1}]
)
def test_a_fault_that_none_can_be_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="fault"):
        Fault(kind=Kind.SLOW, **given)


async def test_another_process_sets_faults_reads_the_ledger_and_resets(simulator: Simulator, models: Any) -> None:
    async with httpx.AsyncClient(base_url=f"{simulator.url}/_simulator", trust_env=False) as control:
        set_up = await control.post("/faults", json={"model": PRO, "kind": "rate-limited", "next": 1, "retry_after_seconds": 3})
        with pytest.raises(errors.ClientError, match="429"):
            await whole(models)
        await whole(models)
        ledger = (await control.get("/ledger")).json()
        was_reset = await control.post("/reset")
        after = (await control.get("/ledger")).json()

    assert (set_up.status_code, was_reset.status_code) == (204, 204)
    entry = ledger["models"][PRO]
    assert (entry["calls"], entry["answered"], entry["violations"], entry["faults"]) == (2, 1, 0, {"rate-limited": 1})
    assert len(entry["arrivals"]) == 2
    assert after == {"models": {}, "refused": {}}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (b"{", "unexpected"),
        (b"[]", "JSON object"),
        ({"kind": "bad luck", "next": 1}, "kind is one of"),
        ({"kind": "slow", "next": "1"}, "are numbers"),
        ({"kind": "slow", "next": 1, "often": True}, "has no often"),
        ({"kind": "slow", "next": 1, "model": "gemini-9"}, "no model 'gemini-9'"),
    ],
)
async def test_a_fault_that_is_not_understood_is_told(simulator: Simulator, given: Any, said: str) -> None:
    async with httpx.AsyncClient(base_url=simulator.url, trust_env=False) as control:
        answer = await control.post("/_simulator/faults", content=given if isinstance(given, bytes) else json.dumps(given))

    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


async def test_a_stream_that_is_an_array_fails_as_an_array(simulator: Simulator) -> None:
    simulator.fail(Fault(kind=Kind.UNAVAILABLE, next=1))
    async with httpx.AsyncClient(base_url=simulator.url, headers={"x-goog-api-key": "k"}, trust_env=False) as http:
        answer = await http.post(f"/v1/models/{PRO}:streamGenerateContent", json={"contents": [{"parts": [{"text": "x"}]}]})

    assert answer.status_code == 503
    assert answer.json()[0]["error"]["status"] == "UNAVAILABLE"
