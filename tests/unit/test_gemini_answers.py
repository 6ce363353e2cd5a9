"""What Gemini is asked, what its answers become, and what they cost. Against a local server that speaks the wire format."""

from typing import Any

import pytest
from google.genai import types

from shared.ai import Price, Request, open_model
from shared.ai.gemini import GeminiModel
from shared.ai.offline import OfflineModel
from shared.ai.opening import Gateway
from shared.clock import ManualClock
from shared.errors import (
    AgentTeamError,
    ConfigurationError,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    OutcomeUnknown,
    OutputEmpty,
    OutputTruncated,
)
from shared.guards import open_guards
from tests.support.gemini import KEY, REQUEST, SENT_SCHEMA, USED, GeminiServer, answers, candidate, check_message, error, said


async def test_a_request_says_all_that_determines_the_answer(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(said('{"title": "Hi"}'))
    await gemini.generate(REQUEST)

    (received,) = gemini_server.received
    assert received.path == "/v1/models/gemini-2.5-pro:generateContent"
    assert received.headers["x-goog-api-key"] == KEY
    assert received.headers["x-server-timeout"] == "5"
    assert received.body["contents"] == [{"parts": [{"text": "the payload"}], "role": "user"}]
    config = received.body["generationConfig"]
    assert (config["temperature"], config["maxOutputTokens"], config["responseMimeType"]) == (0.3, 77, "application/json")
    assert config["responseJsonSchema"] == SENT_SCHEMA
    assert "tools" not in received.body


@pytest.mark.parametrize("text", ['{"title": "Hi"}', '{"name": "does not fit"}', "no JSON at all"])
async def test_an_answer_to_a_schema_is_handed_on_as_it_came(gemini_server: GeminiServer, gemini: GeminiModel, text: str) -> None:
    gemini_server.answer = answers(said(text))
    reply = await gemini.generate(REQUEST)
    assert (reply.output, reply.model, reply.calls, reply.problem) == (text, "gemini-2.5-pro", (), None)


async def test_without_a_schema_the_answer_is_text(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(said("Just text."))
    assert (await gemini.generate(Request(prompt="hello"))).output == "Just text."
    assert "responseMimeType" not in gemini_server.received[0].body["generationConfig"]


async def test_an_answer_is_all_its_parts_without_the_thoughts(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(candidate({"text": "Hm, hm. ", "thought": True}, {"text": "One, "}, {"text": "two."}))
    assert (await gemini.generate(REQUEST)).output == "One, two."


@pytest.mark.parametrize(
    ("counted", "input_tokens", "output_tokens", "cost"),
    [
        ({"promptTokenCount": 100, "candidatesTokenCount": 20}, 100, 20, 100 * 2 + 20 * 10),
        ({"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 30}, 100, 50, 100 * 2 + 50 * 10),
        ({"promptTokenCount": 100, "thoughtsTokenCount": 30}, 100, 30, 100 * 2 + 30 * 10),
        ({"promptTokenCount": 100, "cachedContentTokenCount": 40}, 100, 0, 60 * 2 + 40 * 0.5),
        ({"promptTokenCount": 100, "toolUsePromptTokenCount": 7, "cachedContentTokenCount": 40}, 107, 0, 67 * 2 + 40 * 0.5),
        (USED, 100, 50, 60 * 2 + 40 * 0.5 + 50 * 10),
        ({"totalTokenCount": 9}, 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
async def test_thinking_costs_as_output_and_cached_input_at_its_own_price(
    gemini_server: GeminiServer, gemini: GeminiModel, counted: Any, input_tokens: int, output_tokens: int, cost: float
) -> None:
    gemini_server.answer = answers({**candidate({"text": "Hi"}), **({} if counted is None else {"usageMetadata": counted})})
    usage = (await gemini.generate(REQUEST)).usage
    assert (usage.model_calls, usage.input_tokens, usage.output_tokens) == (1, input_tokens, output_tokens)
    assert usage.cost_microdollars == cost


async def test_a_count_that_cannot_be_is_not_taken_for_a_usage(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers({**candidate({"text": "Hi"}), "usageMetadata": {"promptTokenCount": -5}})
    assert type(await error(gemini)) is OutcomeUnknown


def test_cost_is_rounded_up_to_whole_microdollars() -> None:
    assert Price(input_usd=0.1, output_usd=0.4).microdollars(input_tokens=1, output_tokens=0) == 1
    assert Price(input_usd=1, output_usd=2).microdollars(input_tokens=10, output_tokens=1, cached_tokens=4) == 12


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ({"promptFeedback": {"blockReason": "SAFETY"}}, ContentBlocked, "the prompt was blocked (SAFETY)"),
        ({"promptFeedback": {"blockReason": "OTHER"}}, ContentBlocked, "the prompt was blocked (OTHER)"),
        (said("{", "SAFETY"), ContentBlocked, "the answer was withheld (SAFETY)"),
        (said("{", "RECITATION"), ContentBlocked, "the answer was withheld (RECITATION)"),
        (said('{"ti', "MAX_TOKENS"), OutputTruncated, "cut off at 77 output tokens (thinking included); raise AI_MAX_TOKENS"),
        (said("", "MALFORMED_RESPONSE"), ModelUnavailable, "broke off its answer (MALFORMED_RESPONSE)"),
        (
            {"candidates": [{**said("{")["candidates"][0], "finishReason": "CONTINUATION", "continuationToken": "abc"}]},
            OutputTruncated,
            "cut off at 77 output tokens",
        ),
        ({"candidates": []}, OutputEmpty, "holds no candidate"),
        ({}, OutputEmpty, "holds no candidate"),
        (candidate(), OutputEmpty, "holds no text"),
        (candidate({"text": "the payload", "thought": True}), OutputEmpty, "holds no text"),
        ({"candidates": [{"finishReason": "STOP"}]}, OutputEmpty, "holds no text"),
    ],
)
async def test_an_answer_of_no_use_is_paid_for_and_says_why(
    gemini_server: GeminiServer, gemini: GeminiModel, body: Any, kind: type[AgentTeamError], message: str
) -> None:
    gemini_server.answer = answers({**body, "usageMetadata": USED})
    reply = await gemini.generate(REQUEST)
    assert reply.problem is not None
    check_message(reply.problem)
    assert type(reply.problem) is kind
    assert message in str(reply.problem)
    assert (reply.usage.tokens, reply.usage.cost_microdollars) == (150, 640)
    assert len(gemini_server.received) == 1, "the client must not go on by itself"


KINDS: dict[type[AgentTeamError] | None, set[str]] = {
    None: {"STOP", "FINISH_REASON_UNSPECIFIED"},
    OutputTruncated: {"MAX_TOKENS", "CONTINUATION"},
    ModelUnavailable: {"OTHER", "MALFORMED_RESPONSE", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS"}
    | {"IMAGE_OTHER", "NO_IMAGE"},
    ModelRefused: {"MISSING_THOUGHT_SIGNATURE", "PUP_LIMITED_DISABLED"},
    ContentBlocked: {"SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "ESCALATION", "MODEL_ARMOR"}
    | {"IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION"},
}


async def test_every_reason_to_stop_is_known(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    assert {reason.value for reason in types.FinishReason} == set().union(*KINDS.values())
    for kind, reasons in KINDS.items():
        for reason in reasons:
            gemini_server.answer = answers(said("Hi", reason))
            problem = (await gemini.generate(REQUEST)).problem
            assert (None if problem is None else type(problem)) is kind, reason


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (said("Hi", "SOMETHING_NEW"), "withheld (SOMETHING_NEW)"),
        (said("Hi", "in words, the payload"), "broke off its answer (OTHER)"),
        ({"promptFeedback": {"blockReason": "SOMETHING_NEW"}}, "blocked (SOMETHING_NEW)"),
        ({"promptFeedback": {"blockReason": "in words, the payload"}}, "blocked (OTHER)"),
    ],
)
async def test_a_reason_that_nobody_knows_is_no_answer_either(
    gemini_server: GeminiServer, gemini: GeminiModel, body: Any, shown: str
) -> None:
    gemini_server.answer = answers(body)
    with pytest.warns(UserWarning, match="is not a valid (Finish|Blocked)Reason"):
        problem = (await gemini.generate(REQUEST)).problem
    assert problem is not None
    check_message(problem)
    assert shown in str(problem)


async def test_a_closed_model_opens_again_when_it_is_asked(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = answers(said("Hi"))
    await gemini.generate(REQUEST)
    await gemini.close()
    await gemini.close()
    assert (await gemini.generate(REQUEST)).output == "Hi"


@pytest.mark.parametrize("key", ["", "  ", "AIza\u00e9", "AIza\nsecond"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_model(gemini_api_key=key, models=["gemini-2.5-pro"], guards=open_guards("memory", ManualClock()))
    assert "GEMINI_API_KEY" in str(caught.value)
    assert "AIza" not in str(caught.value)


def test_with_a_key_it_is_gemini_and_without_one_it_is_offline() -> None:
    guards = open_guards("memory", ManualClock())
    assert isinstance(open_model(gemini_api_key=None, models=["gemini-2.5-pro"], guards=guards), OfflineModel)
    assert isinstance(open_model(gemini_api_key=f" {KEY}\n", models=["gemini-2.5-pro"], guards=guards), Gateway)
    assert repr(GeminiModel(f" {KEY}\n", "gemini-2.5-pro")) == "GeminiModel('gemini-2.5-pro')"
