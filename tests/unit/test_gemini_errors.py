"""What goes wrong with a call to Gemini: each error tells whether the call may have been carried out. One call, one request."""

import asyncio
import builtins
import contextlib
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import anyio
import h11
import httpcore2
import httpx2
import pytest
from google.genai import errors as genai_errors

from shared.ai import Request
from shared.ai.gemini import GeminiModel
from shared.errors import (
    AgentTeamError,
    ConfigurationError,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    RateLimited,
)
from tests.support.gemini import KEY, REQUEST, GeminiServer, answers, check_message, drops, error, failed, said

RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.5s"}
KEY_INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}
IN_WORDS = {"reason": "the payload, in words"}

Call = Callable[[GeminiModel, Request], Awaitable[object]]

WAYS: dict[str, Call] = {
    "whole": lambda model, request: model.generate(request),
    "streamed": lambda model, request: model.generate(replace(request, on_text=lambda _: None)),
    "counted": lambda model, request: model.count(request),
}
every_way = pytest.mark.parametrize("call", WAYS.values(), ids=WAYS)


async def error_of(call: Call, model: GeminiModel, request: Request = REQUEST) -> AgentTeamError:
    with pytest.raises(AgentTeamError) as caught:
        async with asyncio.timeout(10):
            await call(model, request)
    check_message(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (failed(400, "INVALID_ARGUMENT"), 400, ModelRefused, "the request is refused (400 INVALID_ARGUMENT)"),
        (failed(400, "INVALID_ARGUMENT", KEY_INVALID), 400, ModelRefused, "the key is refused (400 API_KEY_INVALID)"),
        (failed(400, "INVALID_ARGUMENT", IN_WORDS, KEY_INVALID), 400, ModelRefused, "the key is refused (400 API_KEY_INVALID)"),
        (failed(400, "FAILED_PRECONDITION"), 400, ModelRefused, "check the project's billing and region"),
        (failed(401, "UNAUTHENTICATED"), 401, ModelRefused, "the key is refused (401 UNAUTHENTICATED)"),
        (failed(403, "PERMISSION_DENIED", message=KEY), 403, ModelRefused, "the key is refused (403 PERMISSION_DENIED)"),
        (failed(404, "NOT_FOUND"), 404, ModelUnknown, "no such model (404 NOT_FOUND)"),
        (failed(408, "DEADLINE_EXCEEDED"), 408, ModelUnavailable, "the service failed (408 DEADLINE_EXCEEDED)"),
        (failed(413, "OUT_OF_RANGE"), 413, ModelRefused, "the request is refused (413 OUT_OF_RANGE)"),
        (failed(429, "RESOURCE_EXHAUSTED"), 429, RateLimited, "quota used up (429 RESOURCE_EXHAUSTED)"),
        (failed(500, "INTERNAL"), 500, ModelUnavailable, "the service failed (500 INTERNAL)"),
        (failed(503, "the payload, in words"), 503, ModelUnavailable, "the service failed (503)"),
        ({"error": {"status": 5, "details": "none"}}, 503, ModelUnavailable, "the service failed (503)"),
        (b"<html>the payload</html>", 502, ModelUnavailable, "the service failed (502)"),
        ([failed(503, "UNAVAILABLE")], 503, ModelUnavailable, "the service failed (503 UNAVAILABLE)"),
        ([7, 8], 503, ModelUnavailable, "the service failed (503)"),
        (failed(504, "DEADLINE_EXCEEDED"), 504, ModelUnavailable, "the service failed (504 DEADLINE_EXCEEDED)"),
        ({"error": "the payload"}, 301, ModelUnavailable, "the service failed (301)"),
        (b"", 202, OutcomeUnknown, "sent a response that cannot be read (202)"),
    ],
)
@every_way
async def test_an_http_status_becomes_the_error_it_means(
    gemini_server: GeminiServer, gemini: GeminiModel, call: Call, body: Any, status: int, kind: type[AgentTeamError], message: str
) -> None:
    gemini_server.answer = answers(body, status)
    raised = await error_of(call, gemini)
    assert type(raised) is kind
    assert message in str(raised)
    assert len(gemini_server.received) == 1, "the client must not retry on its own"


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
    gemini_server: GeminiServer,
    gemini: GeminiModel,
    details: list[Any],
    headers: Mapping[str, str],
    seconds: float | None,
    status: int,
) -> None:
    gemini_server.answer = answers(failed(status, "RESOURCE_EXHAUSTED", *details), status, headers)
    raised = await error(gemini)
    assert isinstance(raised, RateLimited | ModelUnavailable)
    assert raised.retry_after_seconds == seconds


@pytest.mark.parametrize(
    "body",
    [
        b'{"candidates": [{"content"',
        b"the payload",
        b'{"candidates": 7}',
        b'{"usageMetadata": "the payload"}',
        b"\xff\xfe",
        b'{"a": ' * 20_000 + b"1" + b"}" * 20_000,
    ],
    ids=["cut off", "prose", "of another shape", "of another type", "no text", "too deep"],
)
@pytest.mark.parametrize("way", ["whole", "counted"])
async def test_after_a_response_that_cannot_be_read_nobody_knows(
    gemini_server: GeminiServer, gemini: GeminiModel, way: str, body: bytes
) -> None:
    gemini_server.answer = answers(body)
    raised = await error_of(WAYS[way], gemini)
    assert type(raised) is OutcomeUnknown
    assert "sent a response that cannot be read" in str(raised)


@every_way
async def test_a_dropped_connection_is_sent_once_and_nobody_knows(
    gemini_server: GeminiServer, gemini: GeminiModel, call: Call
) -> None:
    gemini_server.answer = drops
    raised = await error_of(call, gemini)
    assert type(raised) is OutcomeUnknown
    assert "the connection broke before the answer was complete" in str(raised)
    assert len(gemini_server.received) == 1


@every_way
async def test_a_peer_that_hangs_is_left_at_the_deadline(gemini_server: GeminiServer, gemini: GeminiModel, call: Call) -> None:
    async def hang(_: asyncio.StreamWriter) -> None:
        await gemini_server.left.wait()

    gemini_server.answer = hang
    raised = await error_of(call, gemini, Request(prompt="hello", timeout_seconds=0.1))
    assert type(raised) is OutcomeUnknown
    assert "did not answer within 0.1 s" in str(raised)


@every_way
async def test_a_peer_that_trickles_is_left_at_the_deadline_too(
    gemini_server: GeminiServer, gemini: GeminiModel, call: Call
) -> None:
    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not gemini_server.left.is_set():
            writer.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(gemini_server.left.wait(), 0.01)

    gemini_server.answer = trickle
    raised = await error_of(call, gemini, Request(prompt="hello", timeout_seconds=0.2))
    assert type(raised) is OutcomeUnknown
    assert "did not answer within 0.2 s" in str(raised)


@every_way
async def test_nobody_listening_is_a_certain_no(gemini_server: GeminiServer, call: Call) -> None:
    unused = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = unused.sockets[0].getsockname()[1]
    unused.close()
    await unused.wait_closed()
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url=f"http://127.0.0.1:{port}")
    raised = await error_of(call, model)
    assert type(raised) is ModelUnavailable
    assert "cannot be reached (ConnectError)" in str(raised)
    await model.close()


async def test_a_cancelled_call_stays_cancelled(gemini_server: GeminiServer, gemini: GeminiModel) -> None:
    arrived = asyncio.Event()

    async def hang(_: asyncio.StreamWriter) -> None:
        arrived.set()
        await gemini_server.left.wait()

    gemini_server.answer = hang
    call = asyncio.ensure_future(gemini.generate(REQUEST))
    async with asyncio.timeout(5):
        await arrived.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_the_environment_neither_redirects_calls_nor_changes_the_transport(
    gemini_server: GeminiServer, gemini: GeminiModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("google.genai._api_client.has_aiohttp", True)
    monkeypatch.setenv("GOOGLE_GENAI_HTTP_CLIENT", "httpx")
    monkeypatch.setenv("GOOGLE_GENAI_USE_VERTEXAI", "true")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("GOOGLE_API_KEY", "another key")
    gemini_server.answer = answers(said("Hi"))
    await gemini.generate(REQUEST)
    assert gemini_server.received[0].headers["x-goog-api-key"] == KEY
    assert gemini_server.received[0].path == "/v1/models/gemini-2.5-pro:generateContent"
    gemini_server.answer = drops
    assert (await error(gemini)).__cause__.__class__.__module__ == "httpx2"


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://127.0.0.1:9"])
async def test_a_base_url_that_is_none_is_a_mistake_in_the_configuration(gemini_server: GeminiServer, url: str) -> None:
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url=url)
    raised = await error(model)
    assert type(raised) is ConfigurationError
    assert "GEMINI_BASE_URL" in str(raised)
    await model.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("ALL_PROXY", "nonsense://127.0.0.1"), ("ALL_PROXY", "socks5://127.0.0.1"), ("SSL_CERT_FILE", "/nowhere.pem")],
)
async def test_a_transport_that_cannot_be_set_up_is_a_mistake_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    raised = await error(GeminiModel(KEY, "gemini-2.5-pro"))
    assert type(raised) is ConfigurationError
    assert name in str(raised)


def exceptions_of(*modules: ModuleType) -> list[type[Exception]]:
    found = {
        kind
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        # These two cannot be raised without their parts, or be raised by a coroutine at all.
        if issubclass(kind, Exception) and not issubclass(kind, ExceptionGroup | StopIteration)
    }
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


NOTHING_SENT: dict[type[Exception], type[AgentTeamError]] = {
    httpx2.ConnectError: ModelUnavailable,
    httpx2.ConnectTimeout: ModelUnavailable,
    httpx2.PoolTimeout: ModelUnavailable,
    httpx2.ProxyError: ModelUnavailable,
    httpx2.InvalidURL: ConfigurationError,
    httpx2.UnsupportedProtocol: ConfigurationError,
    httpcore2.ConnectError: ModelUnavailable,
    httpcore2.ConnectTimeout: ModelUnavailable,
    httpcore2.PoolTimeout: ModelUnavailable,
    httpcore2.ProxyError: ModelUnavailable,
    httpcore2.UnsupportedProtocol: ConfigurationError,
}
"""All that are raised before a request is on its way. After any other exception nobody knows."""


async def raised_for(
    exc: Exception, owner: type, method: str, call: Call, server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> AgentTeamError:
    """What becomes of `exc` when `method` raises it."""

    async def fail(*_: Any, **__: Any) -> Any:
        raise exc

    monkeypatch.setattr(owner, method, fail)
    model = GeminiModel(KEY, "gemini-2.5-pro", base_url=server.url)
    translated = await error_of(call, model)
    await model.close()
    return translated


@pytest.mark.parametrize("kind", exceptions_of(httpx2, h11, anyio, asyncio, json, builtins), ids=lambda kind: str(kind.__name__))
@every_way
async def test_every_error_of_the_transport_is_translated(
    kind: type[Exception], call: Call, gemini_server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = await raised_for(kind.__new__(kind), httpx2.AsyncClient, "send", call, gemini_server, monkeypatch)
    assert type(raised) is NOTHING_SENT.get(kind, OutcomeUnknown)


@pytest.mark.parametrize("kind", exceptions_of(httpcore2, httpcore2._exceptions), ids=lambda kind: str(kind.__name__))
@every_way
async def test_every_error_of_the_pool_below_the_transport_is_translated(
    kind: type[Exception], call: Call, gemini_server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised = await raised_for(
        kind.__new__(kind), httpcore2.AsyncConnectionPool, "handle_async_request", call, gemini_server, monkeypatch
    )
    assert type(raised) is NOTHING_SENT.get(kind, OutcomeUnknown)


@pytest.mark.parametrize("kind", exceptions_of(genai_errors), ids=lambda kind: str(kind.__name__))
@every_way
async def test_every_error_of_the_client_is_translated(
    kind: type[Exception], call: Call, gemini_server: GeminiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_status = issubclass(kind, genai_errors.APIError)
    exc = kind(500, {"error": {"status": "INTERNAL"}}) if issubclass(kind, genai_errors.APIError) else kind.__new__(kind)
    raised = await raised_for(exc, httpx2.AsyncClient, "send", call, gemini_server, monkeypatch)
    assert type(raised) is (ModelUnavailable if by_status else OutcomeUnknown)
