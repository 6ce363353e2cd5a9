"""Functions that Gemini may ask for: how they are declared, asked for and answered. And counting all of it."""

from dataclasses import replace
from typing import Any

import pytest

from shared.ai import Declaration, Price, Request, ToolCall, Turn
from shared.ai.gemini import GeminiModel
from shared.errors import ModelUnavailable
from tests.support.gemini import (
    KEY,
    REQUEST,
    SCHEMA,
    SENT_SCHEMA,
    USED,
    GeminiServer,
    answers,
    called,
    candidate,
    encoded,
    said,
)

TOOLS = (Declaration("look_up", "Looks it up.", SCHEMA), Declaration("calculate", "Calculates it.", {"type": "object"}))
DECLARED = [
    {
        "functionDeclarations": [
            {"name": "look_up", "description": "Looks it up.", "parametersJsonSchema": SENT_SCHEMA},
            {"name": "calculate", "description": "Calculates it.", "parametersJsonSchema": {"type": "object"}},
        ]
    }
]
ASKED = replace(REQUEST, tools=TOOLS)
SIGNATURE = bytes(range(256))
PLACEHOLDER = encoded(b"skip_thought_signature_validator")
TURN = Turn(
    "gemini-2.5-pro",
    (ToolCall("look_up", {"title": "x", "tags": [None]}, id="c1", signature=SIGNATURE), ToolCall("calculate", {})),
    ({"found": None}, {"error": "division by zero"}),
)


async def sent(server: GeminiServer, model: str, request: Request) -> Any:
    """The body that `model` sends for `request`."""
    server.answer = answers(said("Hi"))
    asked = GeminiModel(KEY, model, base_url=server.url)
    await asked.generate(request)
    await asked.close()
    return canonical(server.received[-1].body)


def canonical(body: Any) -> Any:
    """`body` with the one name as JSON spells it that the client sends as Python does; Google takes both."""
    for tool in body.get("tools", ()):
        for declaration in tool["functionDeclarations"]:
            declaration["parametersJsonSchema"] = declaration.pop("parameters_json_schema")
    return body


async def signatures(server: GeminiServer, model: str, *turns: Turn) -> list[str | None]:
    """What `model` gets to see as the signatures of the calls that were made."""
    body = await sent(server, model, replace(ASKED, turns=turns))
    return [part.get("thoughtSignature") for content in body["contents"] for part in content["parts"] if "functionCall" in part]


async def test_tools_are_declared_and_no_schema_is_asked_for_beside_them(gemini_server: GeminiServer) -> None:
    body = await sent(gemini_server, "gemini-2.5-pro", ASKED)
    assert body["tools"] == DECLARED
    assert body["generationConfig"].keys() == {"temperature", "maxOutputTokens"}


async def test_calls_come_with_their_id_and_their_signature(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    parts = (
        {"text": "Let me see. ", "thought": True},
        {"text": "I look it up."},
        called("look_up", {"title": "x"}, id="c1", signature=SIGNATURE),
        called("calculate", {"n": 1.5}),
        {"functionCall": {"name": "calculate"}},
    )
    gemini_server.answer = answers({**candidate(*parts), "usageMetadata": USED})
    reply = await gemini.generate(ASKED)
    assert reply.calls == (
        ToolCall("look_up", {"title": "x"}, id="c1", signature=SIGNATURE),
        ToolCall("calculate", {"n": 1.5}),
        ToolCall("calculate", {}),
    )
    assert (reply.output, reply.problem, reply.usage.tokens) == ("I look it up.", None, 150)
    assert len(gemini_server.received) == 1, "the client must call no function and ask no further"


async def test_calls_need_no_text_beside_them(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(candidate(called("calculate", {})))
    reply = await gemini.generate(ASKED)
    assert (reply.output, reply.calls, reply.problem) == ("", (ToolCall("calculate", {}),), None)


async def test_a_call_that_cannot_be_understood_is_paid_and_may_be_asked_for_again(
    gemini_server: GeminiServer, gemini: GeminiModel
) -> None:
    gemini_server.answer = answers({**candidate(finish="MALFORMED_FUNCTION_CALL"), "usageMetadata": USED})
    reply = await gemini.generate(ASKED)
    assert (type(reply.problem), reply.usage.tokens) == (ModelUnavailable, 150)


async def test_turns_are_told_as_they_were(gemini_server: GeminiServer) -> None:
    body = await sent(gemini_server, "gemini-2.5-pro", replace(ASKED, turns=(TURN, TURN)))
    asked = [called("look_up", {"title": "x", "tags": [None]}, id="c1", signature=SIGNATURE), called("calculate", {})]
    told = [
        {"functionResponse": {"id": "c1", "name": "look_up", "response": {"found": None}}},
        {"functionResponse": {"name": "calculate", "response": {"error": "division by zero"}}},
    ]
    turn = [{"role": "model", "parts": asked}, {"role": "user", "parts": told}]
    assert body["contents"] == [{"role": "user", "parts": [{"text": "the payload"}]}, *turn, *turn]


async def test_a_signature_goes_through_unchanged(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(candidate(called("calculate", {}, signature=SIGNATURE)))
    reply = await gemini.generate(ASKED)
    turn = Turn(reply.model, reply.calls, ({},))
    assert await signatures(gemini_server, "gemini-2.5-pro", turn) == [encoded(SIGNATURE)]


FOREIGN = replace(TURN, model="some-other-model")
UNSIGNED = replace(TURN, calls=(ToolCall("look_up", {}), ToolCall("calculate", {})))


@pytest.mark.parametrize("model", ["gemini-3-flash-preview", "gemini-3.8-flash", "gemini-4-carbon", "gemini-flash-latest"])
async def test_calls_that_another_model_made_have_the_placeholder_where_a_signature_is_missed(
    gemini_server: GeminiServer, model: str
) -> None:
    own = replace(TURN, model=model)
    assert await signatures(gemini_server, model, own, FOREIGN) == [encoded(SIGNATURE), None, PLACEHOLDER, None]
    assert await signatures(gemini_server, model, replace(UNSIGNED, model=model)) == [PLACEHOLDER, None]


@pytest.mark.parametrize("model", ["gemini-1.5-pro", "gemini-2.5-pro", "models/gemini-2.0-flash"])
async def test_a_model_that_misses_no_signature_gets_none_but_its_own(gemini_server: GeminiServer, model: str) -> None:
    own = replace(TURN, model=model)
    assert await signatures(gemini_server, model, own, FOREIGN) == [encoded(SIGNATURE), None, None, None]
    assert await signatures(gemini_server, model, replace(UNSIGNED, model=model)) == [None, None]


async def test_the_last_answer_after_turns_may_be_asked_for_with_a_schema(gemini_server: GeminiServer) -> None:
    body = await sent(gemini_server, "gemini-2.5-pro", replace(REQUEST, turns=(TURN,)))
    assert "tools" not in body
    assert body["generationConfig"]["responseJsonSchema"] == SENT_SCHEMA


async def test_a_turn_with_a_call_that_nothing_answered_is_a_mistake_of_the_caller(gemini: GeminiModel) -> None:
    with pytest.raises(ValueError, match="zip"):
        await gemini.generate(replace(ASKED, turns=(replace(TURN, results=()),)))


@pytest.mark.parametrize(
    "request_",
    [REQUEST, ASKED, replace(ASKED, turns=(TURN, FOREIGN)), Request(prompt="hello")],
    ids=["schema", "tools", "turns", "text"],
)
@pytest.mark.parametrize("model", ["gemini-2.5-pro", "gemini-3.8-flash"])
async def test_what_is_counted_is_what_would_be_sent(gemini_server: GeminiServer, model: str, request_: Request) -> None:
    generated = await sent(gemini_server, model, request_)
    gemini_server.answer = answers({"totalTokens": 4711})
    asked = GeminiModel(KEY, model, base_url=gemini_server.url, price=Price(1, 1))
    assert await asked.count(request_) == 4711
    await asked.close()

    received = gemini_server.received[-1]
    assert received.path == f"/v1/models/{model}:countTokens"
    assert received.headers["x-server-timeout"] == generated_timeout(request_)
    # Google takes either contents or a whole request; contents that are empty count as none.
    assert received.body.pop("contents") == []
    (whole,) = received.body.values()
    assert received.body.keys() == {"generateContentRequest"}
    assert whole.pop("model") == f"models/{model}"
    config = {key: value for key, value in generated["generationConfig"].items() if key.startswith("response")}
    assert whole == {
        **{key: value for key, value in generated.items() if key in ("contents", "tools")},
        **({"generationConfig": config} if config else {}),
    }


def generated_timeout(request: Request) -> str:
    return f"{request.timeout_seconds:g}"
