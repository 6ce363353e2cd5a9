"""The bridge, between the official emulator and real functions: what Pub/Sub does in the cloud, here."""

import asyncio
import base64
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.pubsub import PubSubBus, create
from shared.clock import SystemClock
from shared.local.bridge import carry
from shared.messages import StepCompleted, open_envelope
from shared.runtime.door import push
from tests.support import pubsub
from tests.support.doubles import MAX_BYTES, RING, WORKFLOW
from tests.support.pushes import dispatch_for_writer

from .test_framework import serving

PROJECTS = itertools.count()
PATIENCE_SECONDS = 60.0
Answer = Callable[[Request], Awaitable[Response]]


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    pubsub.require()
    with pubsub.emulator() as address:
        yield address


@pytest.fixture
async def bus(emulator: str) -> AsyncIterator[PubSubBus]:
    opened = PubSubBus(f"bridge-{next(PROJECTS)}", SystemClock(), emulator=emulator, grace_seconds=0.1)
    yield opened
    await opened.close()


def served(answer: Answer) -> httpx.AsyncClient:
    """A client of a function that lives in this process."""
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://function")


async def test_a_push_is_what_the_service_posts(bus: PubSubBus, emulator: str) -> None:
    got: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()

    async def answer(request: Request) -> Response:
        await got.put((request.headers["content-type"], json.loads(await request.body())))
        return Response(status_code=204)

    subscription = Subscription("tasks.worker", "tasks", dead_letter_topic="dead")
    await create(bus.project, [subscription], emulator=emulator)
    async with served(answer) as client:
        await carry(bus, subscription, "http://function/", client)
        await bus.publish([Message("tasks", b"\xff\x00", {"hmac-key-id": "v1"})])
        content_type, body = await asyncio.wait_for(got.get(), PATIENCE_SECONDS)

    message = body["message"]
    message_id, published = message["messageId"], message["publishTime"]
    assert content_type == "application/json"
    assert body == {
        "subscription": f"projects/{bus.project}/subscriptions/tasks.worker",
        "deliveryAttempt": 1,
        "message": {
            "data": "/wA=",
            "attributes": {"hmac-key-id": "v1"},
            "messageId": message_id,
            "message_id": message_id,
            "publishTime": published,
            "publish_time": published,
        },
    }
    assert message_id
    assert published.endswith("Z")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(published)) < timedelta(minutes=2)


async def test_a_message_comes_again_unless_it_is_answered_as_pubsub_wants(bus: PubSubBus, emulator: str) -> None:
    acknowledged, refused = {200, 201, 202, 204}, {203, 302, 400, 401, 404, 429, 500, 503}
    posted: Counter[int] = Counter()
    enough = asyncio.Event()

    async def answer(request: Request) -> Response:
        status = int(base64.b64decode(json.loads(await request.body())["message"]["data"]))
        posted[status] += 1
        # By the time that each was posted a third time, whatever comes again at all has come again.
        if all(posted[one] >= 3 for one in refused):
            enough.set()
        return Response(status_code=status)

    subscription = Subscription("tasks.worker", "tasks", min_backoff_seconds=0, max_backoff_seconds=0)
    await create(bus.project, [subscription], emulator=emulator)
    async with served(answer) as client:
        await carry(bus, subscription, "http://function/", client)
        await bus.publish([Message("tasks", str(status).encode()) for status in acknowledged | refused])
        await asyncio.wait_for(enough.wait(), PATIENCE_SECONDS)
        await bus.close()
    assert {status: posted[status] for status in acknowledged} == dict.fromkeys(acknowledged, 1)


async def test_a_function_that_is_not_there_yet_gets_its_messages_later(bus: PubSubBus, emulator: str) -> None:
    answered = asyncio.Event()
    requests = 0

    async def handle(request: httpx.Request) -> httpx.Response:
        nonlocal requests
        requests += 1
        if requests == 1:
            raise httpx.ConnectError("nobody listens")
        if requests == 2:
            raise httpx.ReadTimeout("too slow")
        answered.set()
        return httpx.Response(204)

    subscription = Subscription("tasks.worker", "tasks", min_backoff_seconds=0, max_backoff_seconds=0)
    await create(bus.project, [subscription], emulator=emulator)
    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as client:
        await carry(bus, subscription, "http://function/", client)
        await bus.publish([Message("tasks", b"x")])
        await asyncio.wait_for(answered.wait(), PATIENCE_SECONDS)
    assert requests == 3


async def test_a_dead_letter_arrives_at_a_push_door_with_attempts_and_origin(bus: PubSubBus, emulator: str) -> None:
    tried: list[Delivery] = []
    letters: asyncio.Queue[Delivery] = asyncio.Queue()

    async def failing(delivery: Delivery) -> Outcome:
        tried.append(delivery)
        return Outcome.RETRY

    async def record(delivery: Delivery) -> Outcome:
        await letters.put(delivery)
        return Outcome.ACK

    async def answer(request: Request) -> Response:
        return await push(request, {"agent-writer": failing, "dead-letters": record}, max_bytes=MAX_BYTES)

    worker = Subscription(
        "agent-writer.writer",
        "agent-writer",
        max_attempts=5,
        min_backoff_seconds=0,
        max_backoff_seconds=0,
        dead_letter_topic="dead-letters",
    )
    graveyard = Subscription("dead-letters.dead_letter", "dead-letters")
    await create(bus.project, [worker, graveyard], emulator=emulator)
    async with served(answer) as client:
        await carry(bus, worker, "http://function/", client)
        await carry(bus, graveyard, "http://function/", client)
        await bus.publish([Message("agent-writer", b"poison", {"hmac-key-id": "v1"})])
        letter = await asyncio.wait_for(letters.get(), PATIENCE_SECONDS)

    assert [delivery.attempt for delivery in tried] == [1, 2, 3, 4, 5]
    assert (letter.topic, letter.data, letter.attributes["hmac-key-id"]) == ("dead-letters", b"poison", "v1")
    assert letter.attributes["CloudPubSubDeadLetterSourceSubscription"] == "agent-writer.writer"
    assert letter.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"


async def test_the_writer_works_over_the_emulator_in_a_process_of_its_own(bus: PubSubBus, emulator: str, tmp_path: Path) -> None:
    replies: asyncio.Queue[Delivery] = asyncio.Queue()

    async def note(delivery: Delivery) -> Outcome:
        await replies.put(delivery)
        return Outcome.ACK

    tasks = Subscription(
        "agent-writer.writer", "agent-writer", ack_deadline_seconds=60, min_backoff_seconds=0, max_backoff_seconds=1
    )
    events = Subscription("workflow-events.witness", "workflow-events")
    await create(bus.project, [tasks, events], emulator=emulator)
    environment = {"AGENT_BUS_PROVIDER": "pubsub", "GCP_PROJECT_ID": bus.project, "PUBSUB_EMULATOR_HOST": emulator}
    with serving("writer", tmp_path, **environment) as writer:
        async with httpx.AsyncClient() as client:
            await bus.subscribe(events, note)
            # While the process starts nobody listens there, and the message comes again.
            await carry(bus, tasks, writer.url, client)
            await bus.publish([dispatch_for_writer(SystemClock())])
            reply = await asyncio.wait_for(replies.get(), PATIENCE_SECONDS)

    envelope = open_envelope(reply.topic, reply.data, reply.attributes, ring=RING, now=SystemClock().now(), max_bytes=MAX_BYTES)
    assert isinstance(envelope.data, StepCompleted)
    assert (envelope.data.workflow, envelope.data.step) == (WORKFLOW, "draft")
    assert "Oban" in envelope.data.output["text"]
