"""The push door: which requests become deliveries, and which status tells what became of them."""

import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from functions_framework.aio import create_asgi_app
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.errors import EnvelopeRejected, StoreUnavailable
from shared.messages import StepCompleted, open_envelope
from shared.runtime import process, runtime
from shared.runtime.door import push, read_push
from shared.telemetry import metrics
from tests.support.doubles import MAX_BYTES, RING, SECRET, WORKFLOW
from tests.support.pushes import binary, dispatch_for_writer, raw_push, structured

ROOT = Path(__file__).parents[2]
MESSAGE = Message("agent-writer", b"the data \xff", {"hmac-key-id": "v1"})
SUBSCRIPTION = "agent-writer.writer"
ARRIVED = Delivery(SUBSCRIPTION, "agent-writer", MESSAGE.data, MESSAGE.attributes, "1234", 3)


class Hall:
    """A door with one handler behind it."""

    def __init__(self) -> None:
        self.arrived: list[Delivery] = []
        self.outcome: Outcome | Exception = Outcome.ACK

    async def handle(self, delivery: Delivery) -> Outcome:
        self.arrived.append(delivery)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def post(self, body: Any, headers: Mapping[str, str] | None = None, *, max_bytes: int = MAX_BYTES) -> int:
        """The status for a body (bytes as they are, other values as JSON)."""

        async def endpoint(request: Request) -> Response:
            return await push(request, {"agent-writer": self.handle}, max_bytes=max_bytes)

        app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
            content = body if isinstance(body, bytes) else orjson.dumps(body)
            response = await client.post("/", content=content, headers=headers)
        assert response.content == b""
        return response.status_code


@pytest.fixture
def hall() -> Hall:
    return Hall()


async def test_a_raw_push_is_delivered(hall: Hall) -> None:
    assert await hall.post(raw_push(MESSAGE, SUBSCRIPTION)) == 204
    assert hall.arrived == [ARRIVED]


@pytest.mark.parametrize("form", [structured, binary])
async def test_a_push_inside_a_cloudevent_is_delivered(hall: Hall, form: Any) -> None:
    headers, body = form(MESSAGE, "some-name-that-eventarc-chose")
    assert await hall.post(body, headers) == 204
    (delivery,) = hall.arrived
    assert (delivery.topic, delivery.data, delivery.attributes) == (ARRIVED.topic, ARRIVED.data, ARRIVED.attributes)


async def test_what_the_emulator_leaves_out_is_not_missed(hall: Hall) -> None:
    body = raw_push(MESSAGE, SUBSCRIPTION)
    del body["deliveryAttempt"]
    for twin in ("message_id", "publish_time", "orderingKey", "attributes"):
        del body["message"][twin]
    assert await hall.post(body) == 204
    assert hall.arrived == [Delivery(SUBSCRIPTION, "agent-writer", MESSAGE.data, {}, "1234", None)]


async def test_a_message_without_data_has_none(hall: Hall) -> None:
    body = raw_push(MESSAGE, SUBSCRIPTION)
    del body["message"]["data"]
    await hall.post(body)
    assert hall.arrived[0].data == b""


def without(*path: str) -> dict[str, Any]:
    body: dict[str, Any] = raw_push(MESSAGE, SUBSCRIPTION)
    place = body
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    return body


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"[" * 2000,
    {"hello": "world"},
    {"message": []},
    {"message": None, "subscription": "s"},
    without("message"),
    without("subscription"),
    without("message", "messageId"),
    {**raw_push(MESSAGE, SUBSCRIPTION), "subscription": 7},
    {"subscription": SUBSCRIPTION, "message": {"messageId": "1", "data": "not base64!"}},
    {"subscription": SUBSCRIPTION, "message": {"messageId": "1", "data": 7}},
    {"subscription": SUBSCRIPTION, "message": {"messageId": "1", "data": "ümlaut"}},
    {"subscription": SUBSCRIPTION, "message": {"messageId": "1", "attributes": ["a"]}},
    {"subscription": SUBSCRIPTION, "message": {"messageId": "1", "attributes": {"a": 1}}},
]


@pytest.mark.parametrize("body", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("headers", [{}, {"content-type": "application/cloudevents+json"}, {"ce-source": "//x"}])
async def test_what_is_no_push_is_refused_for_good_and_counted(hall: Hall, body: Any, headers: dict[str, str]) -> None:
    before = metrics.value("envelope.rejected", reason="schema")
    assert await hall.post(body, headers) == 204
    assert hall.arrived == []
    assert metrics.value("envelope.rejected", reason="schema") == before + 1


async def test_a_push_over_the_limit_is_refused_before_it_is_read_whole(hall: Hall) -> None:
    before = metrics.value("envelope.rejected", reason="size")
    chunks = 0

    async def endless() -> AsyncIterator[dict[str, Any]]:
        nonlocal chunks
        while True:
            chunks += 1
            yield {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    receive = endless().__anext__
    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    response = await push(request, {"agent-writer": hall.handle}, max_bytes=30_000)
    assert response.status_code == 204
    assert chunks < 15
    assert metrics.value("envelope.rejected", reason="size") == before + 1


async def test_the_largest_message_comes_through(hall: Hall) -> None:
    largest = Message("agent-writer", b"x" * 30_000, {f"a{number}": "y" * 1000 for number in range(30)})
    assert await hall.post(raw_push(largest, SUBSCRIPTION), max_bytes=30_000) == 204
    assert len(hall.arrived) == 1


async def test_a_topic_that_nobody_here_subscribes_to_is_refused_and_counted(hall: Hall, caplog: pytest.LogCaptureFixture) -> None:
    before = metrics.value("envelope.rejected", reason="type")
    assert await hall.post(raw_push(MESSAGE, "agent-critic.critic")) == 204
    assert metrics.value("envelope.rejected", reason="type") == before + 1
    assert "no subscription to topic agent-critic" in caplog.text


async def test_a_delivery_that_is_to_come_again_is_answered_503(hall: Hall) -> None:
    hall.outcome = Outcome.RETRY
    assert await hall.post(raw_push(MESSAGE, SUBSCRIPTION)) == 503


@pytest.mark.parametrize("error", [StoreUnavailable("down"), ZeroDivisionError("a secret")])
async def test_a_handler_that_raises_is_to_be_tried_again_and_tells_nobody_why(
    hall: Hall, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    hall.outcome = error
    with caplog.at_level(logging.WARNING):
        assert await hall.post(raw_push(MESSAGE, SUBSCRIPTION)) == 503
    (record,) = caplog.records
    assert record.__dict__["error"]["type"] == type(error).__name__
    assert "a secret" not in str(record.__dict__["error"])


NAMES = ["message", "subscription", "data", "attributes", "messageId", "deliveryAttempt", "source"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=7),
    max_leaves=12,
)


@given(JSON, st.sampled_from([{}, {"ce-source": "//x/topics/t"}, {"content-type": "application/cloudevents+json"}]))
def test_any_json_is_a_push_or_refused(document: Any, headers: dict[str, str]) -> None:
    try:
        delivery = read_push(json.dumps(document).encode(), headers)
    except EnvelopeRejected:
        return
    assert isinstance(delivery.data, bytes)
    assert all(isinstance(text, str) for text in (delivery.topic, delivery.subscription, delivery.message_id))


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that was told nothing but the secret, and has no runtime yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMM_HMAC_DEFAULT_SECRET", SECRET)
    monkeypatch.setattr(process, "_runtime", None)
    monkeypatch.setattr(process, "configure_logging", lambda *_args, **_options: None)
    monkeypatch.setattr(process, "redact_values", lambda *_values: None)


@contextmanager
def served(function: str) -> Iterator[httpx.AsyncClient]:
    """The function as functions-framework serves it, loaded anew: what it opens belongs to this test's event loop."""
    sys.modules.pop(f"functions.{function}.main", None)
    app = create_asgi_app(function, str(ROOT / "main.py"))  # type: ignore[no-untyped-call]
    yield httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://function")
    sys.modules.pop(f"functions.{function}.main", None)


@pytest.fixture
def writer(alone: None) -> Iterator[httpx.AsyncClient]:
    with served("writer") as client:
        yield client


async def published_by(client: httpx.AsyncClient, message: Message) -> tuple[int, list[StepCompleted]]:
    """The status for a push of `message`, and what the runtime's bus got."""
    seen: list[StepCompleted] = []

    async def note(delivery: Delivery) -> Outcome:
        envelope = open_envelope(
            delivery.topic, delivery.data, delivery.attributes, ring=RING, now=SystemClock().now(), max_bytes=MAX_BYTES
        )
        assert isinstance(envelope.data, StepCompleted)
        seen.append(envelope.data)
        return Outcome.ACK

    bus = runtime().bus
    assert isinstance(bus, MemoryBus)
    await bus.subscribe(Subscription("witness", "workflow-events"), note)
    async with client:
        response = await client.post("/", json=raw_push(message, SUBSCRIPTION))
    await bus.idle()
    await runtime().close()
    return response.status_code, seen


async def test_the_writer_answers_a_real_push_and_publishes_its_step(writer: httpx.AsyncClient) -> None:
    status, replies = await published_by(writer, dispatch_for_writer(SystemClock()))
    assert status == 204
    (reply,) = replies
    assert (reply.workflow, reply.step, reply.attempt) == (WORKFLOW, "draft", 1)
    assert "Oban" in reply.output["text"]


async def test_the_writer_refuses_an_altered_push(writer: httpx.AsyncClient) -> None:
    message = dispatch_for_writer(SystemClock())
    altered = Message(message.topic, message.data.replace(b"Oban", b"Skye"), message.attributes)
    before = metrics.value("envelope.rejected", reason="signature")
    status, replies = await published_by(writer, altered)
    assert (status, replies) == (204, [])
    assert metrics.value("envelope.rejected", reason="signature") == before + 1


async def test_a_function_that_is_told_an_audience_believes_nobody_without_a_token(
    alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUSH_AUDIENCE", "https://writer.example.com/")
    monkeypatch.setenv("PUSH_SERVICE_ACCOUNT", "pusher@project.iam.gserviceaccount.com")
    with served("writer") as client:
        status, replies = await published_by(client, dispatch_for_writer(SystemClock()))
    assert (status, replies) == (401, [])


async def test_every_method_and_path_leads_to_the_door(writer: httpx.AsyncClient) -> None:
    async with writer:
        assert (await writer.put("/", content=b"{}")).status_code == 204
        assert (await writer.post("/any/path", content=b"{}")).status_code == 204


async def test_a_function_says_who_it_is(writer: httpx.AsyncClient) -> None:
    async with writer:
        answer = await writer.get("/")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "function": "writer"})


async def test_a_function_that_answers_requests_is_asked_with_method_and_path(alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    with served("sweeper") as client:
        async with client:
            assert (await client.get("/")).status_code == 405
            assert (await client.post("/other")).status_code == 404
            # Nothing listens there: the scheduler shall come again.
            assert (await client.post("/")).status_code == 503
    await runtime().close()
