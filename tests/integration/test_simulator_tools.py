"""The simulated Gemini asks for function calls, and takes their results as the real one does."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from google.genai import errors, types

from shared.local.simulator import Fault, Kind, Simulator, open_simulator
from tests.support.simulated import NEWER, PRO, google, settings

PROMPT = "Read https://example.org/ferry and work out 12 * 30. The ferry was late on Monday."
FETCH = types.FunctionDeclaration(
    name="http_get",
    description="Fetches a page.",
    parameters_json_schema={"type": "object", "required": ["url"], "properties": {"url": {"type": "string"}}},
)
SUM = types.FunctionDeclaration(
    name="calculate",
    description="Works out a sum.",
    parameters=types.Schema(
        type=types.Type.OBJECT,
        properties={
            "expression": types.Schema(type=types.Type.STRING),
            "digits": types.Schema(type=types.Type.INTEGER, minimum=1, maximum=5),
        },
    ),
)
TOOLS = settings(tools=[types.Tool(function_declarations=[FETCH, SUM])])


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with open_simulator() as opened:
        yield opened


@pytest.fixture
async def models(simulator: Simulator) -> AsyncIterator[Any]:
    async with google(simulator.url) as opened:
        yield opened


def said(text: str) -> types.Content:
    return types.Content(role="user", parts=[types.Part(text=text)])


def result_of(*calls: types.FunctionCall) -> types.Content:
    parts = [
        types.Part(function_response=types.FunctionResponse(id=call.id, name=call.name, response={"result": "done"}))
        for call in calls
    ]
    return types.Content(role="user", parts=parts)


async def conversation(models: Any, model: str, *, turns: int = 9) -> tuple[list[types.Content], Any]:
    """Carry out every call until there is an answer, or for so many turns: all that was said, and the last answer."""
    contents = [said(PROMPT)]
    for _ in range(turns):
        answer = await models.generate_content(model=model, contents=contents, config=TOOLS)
        if not answer.function_calls:
            break
        contents += [answer.candidates[0].content, result_of(*answer.function_calls)]
    return contents, answer


def calls(contents: Sequence[types.Content]) -> list[Any]:
    return [part.function_call for content in contents for part in content.parts or [] if part.function_call]


@pytest.mark.parametrize("model", [PRO, NEWER])
async def test_each_function_is_called_once_with_arguments_from_the_prompt_and_then_there_is_an_answer(
    models: Any, model: str
) -> None:
    contents, answer = await conversation(models, model)

    assert [(call.name, call.args) for call in calls(contents)] == [
        ("http_get", {"url": "https://example.org/ferry"}),
        ("calculate", {"expression": "12 * 30", "digits": calls(contents)[1].args["digits"]}),
    ]
    assert 1 <= calls(contents)[1].args["digits"] <= 5
    assert "The ferry was late on Monday." in answer.text
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP


async def test_results_are_input_and_calls_are_output(models: Any, simulator: Simulator) -> None:
    first = await models.generate_content(model=PRO, contents=PROMPT, config=TOOLS)
    _, last = await conversation(models, PRO)

    assert first.usage_metadata.candidates_token_count > 0
    assert first.text is None
    assert last.usage_metadata.prompt_token_count > first.usage_metadata.prompt_token_count
    assert last.usage_metadata.tool_use_prompt_token_count is None


async def test_a_stream_asks_for_calls_too(models: Any) -> None:
    chunks = [chunk async for chunk in await models.generate_content_stream(model=NEWER, contents=PROMPT, config=TOOLS)]

    assert [chunk.function_calls[0].name for chunk in chunks] == ["http_get"]


async def test_functions_can_be_forbidden_and_demanded(models: Any) -> None:
    def calling(mode: str) -> types.GenerateContentConfig:
        config = types.ToolConfig(function_calling_config=types.FunctionCallingConfig(mode=types.FunctionCallingConfigMode(mode)))
        return settings(tools=TOOLS.tools, tool_config=config)

    contents, _ = await conversation(models, PRO)
    forbidden = await models.generate_content(model=PRO, contents=PROMPT, config=calling("NONE"))
    demanded = await models.generate_content(model=PRO, contents=contents, config=calling("ANY"))

    assert forbidden.text
    assert [call.name for call in demanded.function_calls] == ["http_get"]


async def test_a_script_says_which_calls_are_asked_for_turn_by_turn(models: Any, simulator: Simulator) -> None:
    simulator.script(
        NEWER, [[("calculate", {"expression": "1"}), ("calculate", {"expression": "2"})], [("http_get", {"url": "u"})]]
    )
    contents, answer = await conversation(models, NEWER)

    assert [(call.name, call.args) for call in calls(contents)] == [
        ("calculate", {"expression": "1"}),
        ("calculate", {"expression": "2"}),
        ("http_get", {"url": "u"}),
    ]
    # Only the first call of a turn is signed.
    signed = [bool(part.thought_signature) for content in contents for part in content.parts or [] if part.function_call]
    assert signed == [True, False, True]
    assert len({call.id for call in calls(contents)}) == 3
    assert answer.text


async def test_an_older_model_neither_names_nor_signs_its_calls(models: Any) -> None:
    contents, _ = await conversation(models, PRO)

    assert {call.id for call in calls(contents)} == {None}
    assert not any(part.thought_signature for content in contents for part in content.parts or [])


async def refusal(models: Any, model: str, contents: list[types.Content]) -> str:
    with pytest.raises(errors.ClientError) as refused:
        await models.generate_content(model=model, contents=contents, config=TOOLS)
    assert (refused.value.code, refused.value.status) == (400, "INVALID_ARGUMENT")
    return str(refused.value.message)


def signing(contents: list[types.Content], signature: bytes | None) -> list[types.Content]:
    """The conversation with another signature on its first call."""
    changed = [content.model_copy(deep=True) for content in contents]
    part = next(part for content in changed for part in content.parts or [] if part.function_call)
    part.thought_signature = signature
    return changed


async def test_a_signature_must_come_back_unaltered(models: Any) -> None:
    contents, _ = await conversation(models, NEWER, turns=1)

    assert "missing a thought_signature" in await refusal(models, NEWER, signing(contents, None))
    assert "Corrupted thought signature" in await refusal(models, NEWER, signing(contents, b"something else"))


async def test_a_signature_fits_no_other_call(models: Any, simulator: Simulator) -> None:
    contents, _ = await conversation(models, NEWER, turns=2)
    first, second = (part for content in contents for part in content.parts or [] if part.function_call)

    assert "Corrupted" in await refusal(models, NEWER, signing(contents, second.thought_signature))
    assert first.thought_signature != second.thought_signature


@pytest.mark.parametrize("word", [b"skip_thought_signature_validator", b"context_engineering_is_the_way_to_go"])
async def test_calls_of_another_model_are_taken_with_the_word_for_that(models: Any, word: bytes) -> None:
    contents, _ = await conversation(models, PRO, turns=1)

    assert (await models.generate_content(model=NEWER, contents=signing(contents, word), config=TOOLS)).function_calls


async def test_calls_of_an_earlier_question_need_no_signature(models: Any) -> None:
    contents, answer = await conversation(models, PRO)
    contents += [answer.candidates[0].content, said("And now?")]

    assert (await models.generate_content(model=NEWER, contents=contents, config=TOOLS)).text


async def test_calls_and_results_must_match(models: Any) -> None:
    (prompt, asked, given), _ = await conversation(models, NEWER, turns=1)
    (call,) = calls([asked])
    other = types.FunctionCall(id=call.id, name="calculate", args={})
    another_id = types.FunctionCall(id="call-9", name=call.name, args={})
    number = "number of function response parts is equal"

    assert number in await refusal(models, NEWER, [prompt, asked])
    assert number in await refusal(models, NEWER, [prompt, asked, said("Well?")])
    assert number in await refusal(models, NEWER, [prompt, asked, result_of(call, call)])
    assert "names and ids" in await refusal(models, NEWER, [prompt, asked, result_of(other)])
    assert "names and ids" in await refusal(models, NEWER, [prompt, asked, result_of(another_id)])
    assert "immediately after a function call turn" in await refusal(models, NEWER, [prompt, given])


async def test_half_a_call_is_none(models: Any, simulator: Simulator) -> None:
    simulator.fail(Fault(kind=Kind.MAX_TOKENS, next=1))
    answer = await models.generate_content(model=PRO, contents=PROMPT, config=TOOLS)

    assert answer.candidates[0].finish_reason == types.FinishReason.MAX_TOKENS
    assert not answer.function_calls
    assert answer.usage_metadata.candidates_token_count > 0
