"""Against a local server that speaks the wire format; no model is ever called."""

import asyncio
import contextlib
import inspect
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx2
import pytest
from google.genai import errors as genai_errors

from shared.ai import Price, Request, open_model
from shared.ai.gemini import GeminiModel
from shared.ai.offline import OfflineModel
from shared.ai.opening import Gateway
from shared.clock import ManualClock
from shared.errors import (
    AgentTeamError,
    ConfigurationError,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutputInvalid,
    RateLimited,
)
from shared.guards import open_guards

KEY = "AIza-a-key-that-is-secret"
SCHEMA = {
    "type": "object",
    "required": ["title"],
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 9},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
REQUEST = Request(prompt="the payload", schema=SCHEMA, temperature=0.3, max_tokens=77, timeout_seconds=5)


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nothing here speaks TLS, and reading the certificate store three times a client is what would take the time.
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Server:
    """Answers every request with what `answer` writes."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Callable[[asyncio.StreamWriter], Awaitable[None]] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(first.split()[1], headers, json.loads(body)))
            assert self.answer is not None
            await self.answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    yield server
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def model(server: Server) -> AsyncIterator[GeminiModel]:
    price = Price(input_usd=2, output_usd=10, cached_input_usd=0.5)
    clock = ManualClock(datetime(2026, 5, 1, 12, tzinfo=UTC))
    model = GeminiModel(KEY, "gemini-2.5-pro", clock=clock, base_url=server.url, price=price)
    yield model
    await model.close()


def answers(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Callable[[asyncio.StreamWriter], Awaitable[None]]:
    async def answer(writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        fixed = f"content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n"
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{fixed}{extra}\r\n".encode() + data)
        await writer.drain()

    return answer


def said(text: str, finish: str = "STOP") -> dict[str, Any]:
    return {
        "candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, "finishReason": finish}],
        "usageMetadata": {
            "promptTokenCount": 100,
            "candidatesTokenCount": 20,
            "thoughtsTokenCount": 30,
            "cachedContentTokenCount": 40,
        },
    }


def failed(code: int, status: str, *details: Mapping[str, Any], message: str = "the payload is bad") -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


async def error(model: GeminiModel, request: Request = REQUEST) -> AgentTeamError:
    with pytest.raises(AgentTeamError) as caught:
        await model.generate(request)
    message = str(caught.value)
    assert KEY not in message
    assert "payload" not in message
    assert "\n" not in message
    return caught.value


async def test_a_request_says_all_that_determines_the_answer(server: Server, model: GeminiModel) -> None:
    server.answer = answers(said('{"title": "Hi"}'))
    reply = await model.generate(REQUEST)
    assert (reply.output, reply.model) == ({"title": "Hi"}, "gemini-2.5-pro")

    (received,) = server.received
    assert received.path == "/v1/models/gemini-2.5-pro:generateContent"
    assert received.headers["x-goog-api-key"] == KEY
    assert received.headers["x-server-timeout"] == "5"
    assert received.body["contents"] == [{"parts": [{"text": "the payload"}], "role": "user"}]
    config = received.body["generationConfig"]
    assert (config["temperature"], config["maxOutputTokens"], config["responseMimeType"]) == (0.3, 77, "application/json")
    assert config["responseJsonSchema"] == {
        "type": "object",
        "required": ["title"],
        "properties": {"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
    }


async def test_thinking_is_paid_as_output_and_cached_input_at_its_own_price(server: Server, model: GeminiModel) -> None:
    server.answer = answers(said('{"title": "Hi"}'))
    usage = (await model.generate(REQUEST)).usage
    assert (usage.model_calls, usage.input_tokens, usage.output_tokens) == (1, 100, 50)
    assert usage.cost_microdollars == 60 * 2 + 40 * 0.5 + 50 * 10


async def test_without_usage_a_call_is_still_a_call(server: Server, model: GeminiModel) -> None:
    server.answer = answers({"candidates": said('{"title": "Hi"}')["candidates"]})
    usage = (await model.generate(REQUEST)).usage
    assert (usage.model_calls, usage.tokens) == (1, 0)


async def test_without_a_schema_the_answer_is_text(server: Server, model: GeminiModel) -> None:
    server.answer = answers(said("Just text."))
    assert (await model.generate(Request(prompt="hello"))).output == "Just text."
    assert "responseMimeType" not in server.received[0].body["generationConfig"]


def test_cost_is_rounded_up_to_whole_microdollars() -> None:
    assert Price(input_usd=0.1, output_usd=0.4).microdollars(input_tokens=1, output_tokens=0) == 1
    assert Price(input_usd=1, output_usd=2).microdollars(input_tokens=10, output_tokens=1, cached_tokens=4) == 12


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
KEY_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (failed(400, "INVALID_ARGUMENT"), 400, ModelRefused, "the request is refused (400 INVALID_ARGUMENT)"),
        (failed(400, "INVALID_ARGUMENT", KEY_INVALID), 400, ModelRefused, "the key is refused (400 API_KEY_INVALID)"),
        (failed(401, "UNAUTHENTICATED"), 401, ModelRefused, "the key is refused (401 UNAUTHENTICATED)"),
        (failed(403, "PERMISSION_DENIED", message=KEY), 403, ModelRefused, "the key is refused (403 PERMISSION_DENIED)"),
        (failed(404, "NOT_FOUND"), 404, ModelUnknown, "no such model (404 NOT_FOUND)"),
        (failed(408, "DEADLINE_EXCEEDED"), 408, ModelUnavailable, "the service failed (408 DEADLINE_EXCEEDED)"),
        (failed(413, "OUT_OF_RANGE"), 413, ModelRefused, "the request is refused (413 OUT_OF_RANGE)"),
        (failed(429, "RESOURCE_EXHAUSTED"), 429, RateLimited, "quota used up (429 RESOURCE_EXHAUSTED)"),
        (failed(500, "INTERNAL"), 500, ModelUnavailable, "the service failed (500 INTERNAL)"),
        (failed(503, "the payload, in words"), 503, ModelUnavailable, "the service failed (503)"),
        (b"<html>the payload</html>", 502, ModelUnavailable, "the service failed (502)"),
        ([failed(503, "UNAVAILABLE")], 503, ModelUnavailable, "the service failed (503 UNAVAILABLE)"),
        ({"error": "the payload"}, 301, ModelUnavailable, "the service failed (301)"),
    ],
)
async def test_an_http_status_becomes_the_error_it_means(
    server: Server, model: GeminiModel, body: Any, status: int, kind: type[AgentTeamError], message: str
) -> None:
    server.answer = answers(body, status)
    raised = await error(model)
    assert type(raised) is kind
    assert message in str(raised)
    assert "gemini-2.5-pro" in str(raised)
    assert len(server.received) == 1, "the client must not retry on its own"


@pytest.mark.parametrize(
    ("details", "headers", "seconds"),
    [
        ([RETRY_INFO], {}, 34.5),
        ([RETRY_INFO], {"Retry-After": "7"}, 34.5),
        ([{"retryDelay": "soon"}], {"Retry-After": "7"}, 7.0),
        ([], {"Retry-After": "Fri, 01 May 2026 12:00:20 GMT"}, 20.0),
        ([], {"Retry-After": "Fri, 01 May 2026 11:00:00 GMT"}, 0.0),
        ([], {"Retry-After": "later"}, None),
        ([], {}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_the_delay_that_the_server_asks_for_is_handed_on(
    server: Server, model: GeminiModel, details: list[Any], headers: Mapping[str, str], seconds: float | None, status: int
) -> None:
    server.answer = answers(failed(status, "RESOURCE_EXHAUSTED", *details), status, headers)
    raised = await error(model)
    assert isinstance(raised, RateLimited | ModelUnavailable)
    assert raised.retry_after_seconds == seconds


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ({"promptFeedback": {"blockReason": "SAFETY"}}, ModelRefused, "the prompt was blocked (SAFETY)"),
        (said("{", "SAFETY"), ModelRefused, "the answer was withheld (SAFETY)"),
        (said("{", "RECITATION"), ModelRefused, "the answer was withheld (RECITATION)"),
        (
            said('{"title": "the pay', "MAX_TOKENS"),
            OutputInvalid,
            "cut off at 77 output tokens (thinking included); raise AI_MAX_TOKENS",
        ),
        (said("", "MALFORMED_RESPONSE"), ModelUnavailable, "broke off its answer (MALFORMED_RESPONSE)"),
        (
            {"candidates": [{**said('{"ti')["candidates"][0], "finishReason": "CONTINUATION", "continuationToken": "abc"}]},
            OutputInvalid,
            "cut off at 77 output tokens",
        ),
        ({"candidates": []}, OutputInvalid, "holds no candidate"),
        ({"candidates": [{"content": {"parts": []}, "finishReason": "STOP"}]}, OutputInvalid, "holds no text"),
        ({"candidates": [{"finishReason": "STOP"}]}, OutputInvalid, "holds no text"),
        (said("the payload, in prose"), OutputInvalid, "was asked for JSON"),
        (said('{"name": "Hi"}'), OutputInvalid, "$.title is missing"),
        (said('{"title": "far too long"}'), OutputInvalid, "$.title is longer than 9 characters"),
    ],
)
async def test_an_answer_that_cannot_be_used_is_an_error(
    server: Server, model: GeminiModel, body: Any, kind: type[AgentTeamError], message: str
) -> None:
    server.answer = answers(body)
    raised = await error(model)
    assert type(raised) is kind
    assert message in str(raised)
    assert len(server.received) == 1, "the client must not go on by itself"


@pytest.mark.parametrize("body", [b'{"candidates": [{"content"', b"the payload", b'{"candidates": 7}'])
async def test_a_response_that_cannot_be_read_may_be_asked_for_again(server: Server, model: GeminiModel, body: bytes) -> None:
    server.answer = answers(body)
    assert type(await error(model)) is ModelUnavailable


async def test_a_dropped_connection_is_sent_once_and_reported(server: Server, model: GeminiModel) -> None:
    async def drop(writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    server.answer = drop
    raised = await error(model)
    assert type(raised) is ModelUnavailable
    assert "cannot be reached" in str(raised)
    assert len(server.received) == 1


async def test_a_peer_that_hangs_is_left_at_the_deadline(server: Server, model: GeminiModel) -> None:
    released = asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        await released.wait()

    server.answer = hang
    raised = await error(model, Request(prompt="hello", timeout_seconds=0.1))
    released.set()
    assert type(raised) is ModelUnavailable
    assert "did not answer within 0.1 s" in str(raised)


async def test_a_peer_that_trickles_is_left_at_the_deadline_too(server: Server, model: GeminiModel) -> None:
    stopped = asyncio.Event()

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not stopped.is_set():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stopped.wait(), 0.01)

    server.answer = trickle
    raised = await error(model, Request(prompt="hello", timeout_seconds=0.2))
    stopped.set()
    assert "did not answer within 0.2 s" in str(raised)


async def test_nobody_listening_is_reported() -> None:
    unused = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url=f"http://127.0.0.1:{port}")
    assert "cannot be reached (ConnectError)" in str(await error(model))
    await model.close()


async def test_a_cancelled_call_stays_cancelled(server: Server, model: GeminiModel) -> None:
    arrived, released = asyncio.Event(), asyncio.Event()

    async def hang(writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await released.wait()

    server.answer = hang
    call = asyncio.ensure_future(model.generate(REQUEST))
    async with asyncio.timeout(5):
        await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    released.set()


async def test_a_closed_model_opens_again_when_it_is_asked(server: Server, model: GeminiModel) -> None:
    server.answer = answers(said('{"title": "Hi"}'))
    await model.generate(REQUEST)
    await model.close()
    await model.close()
    assert (await model.generate(REQUEST)).output == {"title": "Hi"}


def exceptions_of(module: Any) -> list[type[Exception]]:
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", exceptions_of(httpx2), ids=lambda kind: str(kind.__name__))
async def test_every_error_of_the_transport_is_translated(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    if kind is httpx2.CookieConflict:
        pytest.skip("only raised by a look-up of cookies, which nobody does here")
    raised = kind.__new__(kind)

    async def fail(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(httpx2.AsyncClient, "request", fail)
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url="http://127.0.0.1:9")
    expected = ConfigurationError if kind in (httpx2.InvalidURL, httpx2.UnsupportedProtocol) else ModelUnavailable
    assert type(await error(model)) is expected
    await model.close()


@pytest.mark.parametrize("kind", [genai_errors.APIError, genai_errors.ClientError, genai_errors.ServerError])
async def test_every_error_of_the_service_is_translated(kind: type[genai_errors.APIError], monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        raise kind(500, {"error": {"status": "INTERNAL"}})

    monkeypatch.setattr(httpx2.AsyncClient, "request", fail)
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url="http://127.0.0.1:9")
    assert type(await error(model)) is ModelUnavailable
    await model.close()


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
