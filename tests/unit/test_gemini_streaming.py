"""Answers that come in pieces: the same reply as without, or the error that says that nobody knows."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from shared.ai import Declaration, Reply, ToolCall
from shared.ai.gemini import GeminiModel
from shared.errors import (
    AgentTeamError,
    ContentBlocked,
    ModelUnavailable,
    OutcomeUnknown,
    OutputEmpty,
    OutputTruncated,
    RateLimited,
)
from tests.support.gemini import (
    REQUEST,
    SENT_SCHEMA,
    USED,
    GeminiServer,
    answers,
    called,
    candidate,
    check_message,
    drops,
    error,
    failed,
    said,
    streams,
)

FIRST = {"promptTokenCount": 100, "candidatesTokenCount": 1}
CHUNKS = (
    {**candidate({"text": "Hm. ", "thought": True}, finish=None), "usageMetadata": FIRST},
    candidate({"text": "One, "}, finish=None),
    candidate({"text": ""}, finish=None),
    {"candidates": [{"content": {"role": "model"}}]},
    {**said("two\u2028\u00e9.", None), "usageMetadata": FIRST},
    {**candidate(finish="STOP"), "usageMetadata": USED},
)


async def streamed(model: GeminiModel) -> tuple[Reply, list[str]]:
    """The reply, and what was told on the way."""
    told: list[str] = []
    return await model.generate(replace(REQUEST, on_text=told.append)), told


async def test_the_text_so_far_is_told_as_it_grows(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = streams(*CHUNKS)
    reply, told = await streamed(gemini)
    assert told == ["One, ", "One, two\u2028\u00e9."]
    assert (reply.output, reply.model, reply.calls, reply.problem) == ("One, two\u2028\u00e9.", "gemini-2.5-pro", (), None)
    assert (reply.usage.model_calls, reply.usage.tokens, reply.usage.cost_microdollars) == (1, 150, 640)

    (received,) = gemini_server.received
    assert received.path == "/v1/models/gemini-2.5-pro:streamGenerateContent?alt=sse"
    assert received.headers["x-server-timeout"] == "5"
    assert received.body["generationConfig"]["responseJsonSchema"] == SENT_SCHEMA


async def test_text_is_told_while_the_rest_is_still_to_come(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    heard = asyncio.Event()

    async def wait(_: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(5):
            await heard.wait()

    async def answer(writer: asyncio.StreamWriter) -> None:
        await streams(said("One, ", None), complete=False, then=wait)(writer)
        rest = b'data: {"candidates": [{"content": {"parts": [{"text": "two."}]}, "finishReason": "STOP"}]}\r\n\r\n'
        writer.write(f"{len(rest):x}\r\n".encode() + rest + b"\r\n0\r\n\r\n")

    gemini_server.answer = answer
    reply = await gemini.generate(replace(REQUEST, on_text=lambda _: heard.set()))
    assert reply.output == "One, two."


async def test_calls_are_gathered_from_all_chunks(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    gemini_server.answer = streams(
        candidate({"text": "I look. "}, called("look_up", {"n": 1}, id="c1", signature=b"\x00\xff"), finish=None),
        candidate(called("look_up", {"n": 2}), finish=None),
        said("", "STOP"),
    )
    request = replace(REQUEST, tools=(Declaration("look_up", "Looks it up.", {"type": "object"}),), on_text=lambda _: None)
    reply = await gemini.generate(request)
    assert reply.calls == (ToolCall("look_up", {"n": 1}, id="c1", signature=b"\x00\xff"), ToolCall("look_up", {"n": 2}))
    assert (reply.output, reply.problem, reply.usage.tokens) == ("I look. ", None, 150)


@pytest.mark.parametrize(
    ("chunks", "kind", "message"),
    [
        ([said("One", None), candidate(finish="SAFETY")], ContentBlocked, "the answer was withheld (SAFETY)"),
        ([said('{"ti', None), candidate(finish="MAX_TOKENS")], OutputTruncated, "cut off at 77 output tokens"),
        ([said("One", None), candidate(finish="OTHER")], ModelUnavailable, "broke off its answer (OTHER)"),
        ([said("One", None), {"promptFeedback": {"blockReason": "SAFETY"}}], ContentBlocked, "the prompt was blocked (SAFETY)"),
        ([{"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": USED}], ContentBlocked, "the prompt was blocked (SAFETY)"),
        ([said("", None), candidate(finish="STOP")], OutputEmpty, "holds no text"),
    ],
)
async def test_an_answer_of_no_use_is_paid_for_and_says_why(
    gemini_server: GeminiServer, gemini: GeminiModel, chunks: list[Any], kind: type[AgentTeamError], message: str
) -> None:
    gemini_server.answer = streams(*chunks)
    reply, _ = await streamed(gemini)
    assert reply.problem is not None
    check_message(reply.problem)
    assert type(reply.problem) is kind
    assert message in str(reply.problem)
    assert (reply.usage.tokens, reply.usage.cost_microdollars) == (150, 640)


@pytest.mark.parametrize(
    ("chunks", "complete", "message"),
    [
        ([], True, "the stream ended before the answer was complete"),
        ([said("One", None)], True, "the stream ended before the answer was complete"),
        ([said("One", "FINISH_REASON_UNSPECIFIED")], True, "the stream ended before the answer was complete"),
        ([{"usageMetadata": USED}], True, "the stream ended before the answer was complete"),
        ([], False, "the connection broke before the answer was complete (RemoteProtocolError)"),
        ([said("One", None)], False, "the connection broke before the answer was complete (RemoteProtocolError)"),
        ([said("One", None), b"the payload"], True, "sent a response that cannot be read (UnknownApiResponseError)"),
        ([said("One", None), {"candidates": 7}], True, "sent a response that cannot be read"),
        ([said("One", None), failed(503, "UNAVAILABLE")], True, "broke off its answer (503)"),
        ([said("One", None), {"error": {"status": "UNAVAILABLE"}}], True, "sent a response that cannot be read (TypeError)"),
    ],
)
async def test_after_a_stream_that_is_not_complete_nobody_knows(
    gemini_server: GeminiServer, gemini: GeminiModel, chunks: list[Any], complete: bool, message: str
) -> None:
    gemini_server.answer = streams(*chunks, complete=complete, then=None if complete else drops)
    raised = await error(gemini, replace(REQUEST, on_text=lambda _: None))
    assert type(raised) is OutcomeUnknown
    assert message in str(raised)
    assert len(gemini_server.received) == 1


async def test_an_error_instead_of_the_first_chunk_means_what_its_status_says(
    gemini_server: GeminiServer, gemini: GeminiModel
) -> None:
    delay = {"retryDelay": "12s"}
    gemini_server.answer = streams(failed(429, "RESOURCE_EXHAUSTED", delay))
    raised = await error(gemini, replace(REQUEST, on_text=lambda _: None))
    assert isinstance(raised, RateLimited)
    assert raised.retry_after_seconds == 12


@pytest.mark.parametrize("kind", [ValueError, TimeoutError, OSError])
async def test_what_the_listener_raises_is_its_own_and_ends_the_stream(
    gemini_server: GeminiServer, gemini: GeminiModel, kind: type[Exception]
) -> None:
    async def wait(_: asyncio.StreamWriter) -> None:
        await gemini_server.left.wait()

    def refuse(text: str) -> None:
        raise kind(f"no more of {text}")

    gemini_server.answer = streams(said("One", None), then=wait)
    with pytest.raises(kind, match="no more of One"):
        await gemini.generate(replace(REQUEST, on_text=refuse))
    async with asyncio.timeout(5):
        await gemini_server.left.wait()


async def test_an_error_on_leaving_a_stream_does_not_hide_why_it_is_left(
    gemini_server: GeminiServer, gemini: GeminiModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(_: asyncio.StreamWriter) -> None:
        await gemini_server.left.wait()

    close = httpx2.Response.aclose

    async def close_badly(response: httpx2.Response) -> None:
        await close(response)
        raise httpx2.CloseError("gone")

    def refuse(_: str) -> None:
        monkeypatch.setattr(httpx2.Response, "aclose", close_badly)
        raise ValueError("no more")

    gemini_server.answer = streams(said("One", None), then=wait)
    with pytest.raises(ValueError, match="no more"):
        await gemini.generate(replace(REQUEST, on_text=refuse))


async def test_a_stream_that_goes_on_and_on_is_left_at_the_deadline(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        while not gemini_server.left.is_set():
            writer.write(b'data: {"candidates": [{"content": {"parts": [{"text": "more "}]}}]}\r\n\r\n')
            await writer.drain()
            await asyncio.sleep(0.005)

    told: list[str] = []
    gemini_server.answer = answer
    raised = await error(gemini, replace(REQUEST, on_text=told.append, timeout_seconds=0.5))
    assert type(raised) is OutcomeUnknown
    assert "did not answer within 0.5 s" in str(raised)
    assert told
    assert told[-1] == "more " * len(told)


async def test_a_cancelled_stream_stays_cancelled_and_is_left(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    heard = asyncio.Event()

    async def wait(_: asyncio.StreamWriter) -> None:
        await gemini_server.left.wait()

    gemini_server.answer = streams(said("One", None), then=wait)
    call = asyncio.ensure_future(gemini.generate(replace(REQUEST, on_text=lambda _: heard.set())))
    async with asyncio.timeout(5):
        await heard.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await gemini_server.left.wait()


async def test_a_stream_is_one_request_and_leaves_the_model_ready_for_the_next(
    gemini_server: GeminiServer, gemini: GeminiModel
) -> None:
    for _ in range(3):
        gemini_server.answer = streams(said("One"))
        assert (await streamed(gemini))[0].output == "One"
    gemini_server.answer = answers(said("Whole"))
    assert (await gemini.generate(REQUEST)).output == "Whole"
    assert len(gemini_server.received) == 4
