"""A model whose answers fit the schema that was asked for."""

import asyncio
from typing import Any

import pytest

from shared.ai import Declaration, Reply, Request, ToolCall
from shared.ai.structured import StructuredModel
from shared.clock import ManualClock
from shared.errors import ContentBlocked, ModelUnavailable, OutputEmpty, OutputInvalid, OutputTruncated
from shared.messages import Usage
from tests.support.doubles import ScriptedModel

SCHEMA = {"type": "object", "required": ["title"], "properties": {"title": {"type": "string", "maxLength": 9}}}
REQUEST = Request(prompt="Say a title.", schema=SCHEMA, max_tokens=77, timeout_seconds=100)
GOOD = '{"title": "a"}'


def structured(inner: Any, clock: ManualClock | None = None) -> StructuredModel:
    return StructuredModel(inner, ManualClock() if clock is None else clock)


@pytest.mark.parametrize(
    "text",
    [GOOD, f"\n  {GOOD}\n\n", f"```json\n{GOOD}\n```", f"  ```json\n\n{GOOD}```\n", f"```json {GOOD} ```"],
)
async def test_json_is_read_with_a_fence_and_white_space_around_it(text: str) -> None:
    inner = ScriptedModel(text)
    assert (await structured(inner).generate(REQUEST)).output == {"title": "a"}
    assert inner.requests == [REQUEST]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Here it is: " + GOOD,
        GOOD + " I hope it helps.",
        f"```json\n{GOOD}",
        "{'title': 'a'}",
        '{"title": "a"',
    ],
)
async def test_nothing_else_is_taken_for_json(text: str) -> None:
    inner = ScriptedModel(text, text, GOOD)
    with pytest.raises(OutputInvalid, match="the answer is not JSON"):
        await structured(inner).generate(REQUEST)
    assert len(inner.requests) == 2


async def test_an_answer_of_no_use_is_asked_for_once_more_with_what_was_wrong_and_not_the_value() -> None:
    inner = ScriptedModel('{"title": "much too long"}', GOOD)
    reply = await structured(inner).generate(REQUEST)
    assert reply.output == {"title": "a"}
    first, repair = inner.requests
    assert first == REQUEST
    assert repair.prompt.startswith(REQUEST.prompt)
    assert "does not fit its schema: $.title is longer than 9 characters" in repair.prompt
    assert "much too long" not in repair.prompt
    assert (repair.schema, repair.max_tokens, repair.temperature) == (SCHEMA, 77, REQUEST.temperature)


async def test_both_calls_are_in_the_usage_of_the_reply() -> None:
    usage = Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7)
    reply = await structured(ScriptedModel("no JSON", GOOD, usage=usage)).generate(REQUEST)
    assert reply.usage == usage + usage


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OutputEmpty("m: no text; secret advice"), "it was empty"),
        (OutputTruncated("m: raise AI_MAX_TOKENS"), "it was cut off at the limit of 77 tokens; be much briefer"),
        (OutputInvalid("strange"), "strange"),
    ],
)
@pytest.mark.parametrize("schema", [SCHEMA, None])
async def test_so_is_an_answer_that_came_empty_or_cut_off(error: Exception, said: str, schema: Any) -> None:
    inner = ScriptedModel(error, GOOD)
    reply = await structured(inner).generate(Request(prompt="Say.", schema=schema, max_tokens=77))
    assert reply.output == (GOOD if schema is None else {"title": "a"})
    assert f"could not be used: {said}. Answer again" in inner.requests[1].prompt
    assert ("JSON" in inner.requests[1].prompt) == (schema is not None)


async def test_the_second_answers_error_is_the_last_word() -> None:
    inner = ScriptedModel("no JSON", OutputTruncated("cut off"), GOOD)
    with pytest.raises(OutputTruncated):
        await structured(inner).generate(REQUEST)
    assert len(inner.requests) == 2


@pytest.mark.parametrize("error", [ContentBlocked("blocked"), ModelUnavailable("gone"), asyncio.CancelledError()])
async def test_other_errors_are_not_answers_of_no_use(error: BaseException) -> None:
    inner = ScriptedModel(error, GOOD)
    with pytest.raises(type(error)):
        await structured(inner).generate(REQUEST)
    assert len(inner.requests) == 1


async def test_without_a_schema_text_stays_text() -> None:
    assert (await structured(ScriptedModel(f" {GOOD} ")).generate(Request(prompt="Say."))).output == f" {GOOD} "


async def test_with_tools_the_answer_is_text_whatever_the_schema_says() -> None:
    call = ToolCall("look_up", {"word": "a"})
    asks = Reply(output="I look it up.", model="scripted", usage=Usage(), calls=(call,))
    tools = (Declaration("look_up", "Looks up.", {"type": "object"}),)
    inner = ScriptedModel(asks)
    assert await structured(inner).generate(Request(prompt="Say.", schema=SCHEMA, tools=tools)) is asks
    assert len(inner.requests) == 1


class Slow(ScriptedModel):
    def __init__(self, clock: ManualClock, seconds: float, *answers: Any) -> None:
        super().__init__(*answers)
        self._clock = clock
        self._seconds = seconds

    async def generate(self, request: Request) -> Reply:
        await self._clock.advance(self._seconds)
        return await super().generate(request)


async def test_the_second_call_has_the_time_that_is_left() -> None:
    clock = ManualClock()
    inner = Slow(clock, 40, "no JSON", GOOD)
    await structured(inner, clock).generate(REQUEST)
    assert [request.timeout_seconds for request in inner.requests] == [100, 60]


async def test_without_time_for_it_there_is_no_second_call() -> None:
    clock = ManualClock()
    inner = Slow(clock, 99.5, "no JSON", GOOD)
    with pytest.raises(OutputInvalid):
        await structured(inner, clock).generate(REQUEST)
    assert len(inner.requests) == 1
