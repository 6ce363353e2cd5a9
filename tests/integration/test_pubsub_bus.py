"""What the Pub/Sub bus promises beyond the conformance suite: few requests, clear errors, and no end to trying."""

import asyncio
import itertools
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import grpc  # type: ignore[import-untyped]
import pytest
from google.auth import exceptions as auth
from google.protobuf.duration_pb2 import Duration  # type: ignore[import-untyped]
from google.pubsub_v1.services.subscriber import SubscriberAsyncClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcAsyncIOTransport
from google.pubsub_v1.types import Subscription as Described

from shared.bus import Delivery, Message, Outcome, Subscription, open_bus, pubsub_service
from shared.bus.pubsub import PubSubBus, create
from shared.clock import SystemClock
from shared.errors import BusUnavailable, ConfigurationError, Conflict, InputError
from tests.support import live, pubsub
from tests.support.pubsub_double import PubSubDouble, pubsub_double

PROJECTS = itertools.count()
WORKER = Subscription("tasks.worker", "tasks", min_backoff_seconds=0, max_backoff_seconds=0)
PATIENCE_SECONDS = 60.0
until = partial(live.until, within_seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    pubsub.require()
    with pubsub.emulator() as address:
        yield address


@pytest.fixture
async def bus(emulator: str) -> AsyncIterator[PubSubBus]:
    opened = PubSubBus(f"test-{next(PROJECTS)}", SystemClock(), emulator=emulator, grace_seconds=0.1)
    yield opened
    await opened.close()


@pytest.fixture
async def double() -> AsyncIterator[PubSubDouble]:
    async with pubsub_double() as running:
        yield running


@pytest.fixture
async def counted(double: PubSubDouble) -> AsyncIterator[PubSubBus]:
    """A bus on the double."""
    opened = PubSubBus("p", SystemClock(), emulator=double.address, grace_seconds=0.1)
    yield opened
    double.let_go.set()
    await opened.close()


async def acknowledge(_: Delivery) -> Outcome:
    return Outcome.ACK


# --- publishing ------------------------------------------------------------------------------------------------------------------


async def test_many_messages_of_a_topic_travel_in_as_few_requests_as_the_service_allows(
    double: PubSubDouble, counted: PubSubBus
) -> None:
    messages = [Message(("tasks", "other")[n % 7 == 0], str(n).encode(), {"n": str(n)}) for n in range(2_500)]
    await counted.publish(messages)

    sizes = sorted((request.topic, len(request.messages)) for request in double.published)
    assert sizes == [("projects/p/topics/other", 358), *(("projects/p/topics/tasks", n) for n in (142, 1_000, 1_000))]
    arrived = {(one.data, one.attributes["n"]) for request in double.published for one in request.messages}
    assert arrived == {(message.data, message.attributes["n"]) for message in messages}


async def test_no_request_is_over_ten_megabytes(double: PubSubDouble, counted: PubSubBus) -> None:
    large = [Message("tasks", b"x" * 512_000, {f"key-{n}": "ü" * 500 for n in range(20)}) for _ in range(40)]
    await counted.publish(large)
    assert sum(len(request.messages) for request in double.published) == 40
    assert max(double.published_bytes) < 10_000_000
    assert len(double.published) <= 4


async def test_requests_travel_side_by_side(double: PubSubDouble, counted: PubSubBus) -> None:
    double.let_go.clear()
    publishing = asyncio.create_task(counted.publish([Message(f"topic-{n}", b"x") for n in range(5)]))
    await until(lambda: double.busy == 5)
    assert not publishing.done()
    double.let_go.set()
    await publishing


async def test_nothing_is_published_when_nothing_is_given(double: PubSubDouble, counted: PubSubBus) -> None:
    await counted.publish([])
    assert double.published == []


async def test_large_messages_cross_the_emulator_many_at_a_time(bus: PubSubBus, emulator: str) -> None:
    await create(bus.project, [WORKER], emulator=emulator)
    arrived: set[bytes] = set()

    async def handler(delivery: Delivery) -> Outcome:
        arrived.add(delivery.data[:2])
        return Outcome.ACK

    await bus.publish([Message("tasks", f"{n:02}".encode() + bytes(520_000)) for n in range(30)])
    await bus.subscribe(replace(WORKER, concurrency=30), handler)
    await until(lambda: len(arrived) == 30)


async def test_a_topic_that_is_missing_is_named_with_the_fix(bus: PubSubBus) -> None:
    with pytest.raises(ConfigurationError, match=rf"topic projects/{bus.project}/topics/nowhere does not exist.*terraform apply"):
        await bus.publish([Message("nowhere", b"x")])


async def test_of_several_topics_the_missing_one_is_named_once_all_are_through(bus: PubSubBus, emulator: str) -> None:
    await create(bus.project, [WORKER], emulator=emulator)
    arrived = asyncio.Event()

    async def handler(_: Delivery) -> Outcome:
        arrived.set()
        return Outcome.ACK

    await bus.subscribe(WORKER, handler)
    with pytest.raises(ConfigurationError, match="topics/nowhere"):
        await bus.publish([Message("nowhere", b"x"), Message("tasks", b"y")])
    await asyncio.wait_for(arrived.wait(), PATIENCE_SECONDS)


async def test_what_the_service_takes_for_no_message_is_the_callers_mistake(bus: PubSubBus, emulator: str) -> None:
    await create(bus.project, [WORKER], emulator=emulator)
    with pytest.raises(InputError, match="needs data or attributes"):
        await bus.publish([Message("tasks", b"")])


@pytest.mark.parametrize(
    ("status", "intended", "says"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, ConfigurationError, "topics/tasks refuses.*roles/pubsub.publisher"),
        (grpc.StatusCode.UNAUTHENTICATED, ConfigurationError, "topics/tasks needs credentials"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, BusUnavailable, "topics/tasks cannot be reached or refuses work"),
    ],
)
async def test_a_refusal_says_what_to_do(
    double: PubSubDouble, counted: PubSubBus, status: grpc.StatusCode, intended: type[Exception], says: str
) -> None:
    double.refusal = status
    with pytest.raises(intended, match=says) as refused:
        await counted.publish([Message("tasks", b"x")])
    assert "nobody but the service" not in str(refused.value)


async def test_the_first_moments_of_an_outage_are_waited_out(double: PubSubDouble, counted: PubSubBus) -> None:
    double.refusal = grpc.StatusCode.UNAVAILABLE
    publishing = asyncio.create_task(counted.publish([Message("tasks", b"x")]))
    await until(lambda: double.refused >= 2)
    double.refusal = None
    await publishing
    assert len(double.published) == 1


async def test_a_service_that_does_not_answer_is_given_up(
    double: PubSubDouble, counted: PubSubBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_service, "_ATTEMPT_SECONDS", 0.2)
    double.let_go.clear()
    async with asyncio.timeout(10):
        with pytest.raises(BusUnavailable, match="DeadlineExceeded"):
            await counted.publish([Message("tasks", b"x")])


async def test_a_service_that_is_not_there_is_unavailable_within_seconds() -> None:
    bus = PubSubBus("p", SystemClock(), emulator="127.0.0.1:1")
    async with asyncio.timeout(15):
        with pytest.raises(BusUnavailable, match="cannot be reached"):
            await bus.publish([Message("tasks", b"x")])
    await bus.close()


async def test_without_credentials_the_error_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> object:
        raise auth.DefaultCredentialsError("none")  # type: ignore[no-untyped-call]

    monkeypatch.setattr(pubsub_service, "default_credentials", none)
    bus = PubSubBus("p", SystemClock())
    with pytest.raises(ConfigurationError, match="gcloud auth application-default login"):
        await bus.publish([Message("tasks", b"x")])
    await bus.close()


async def test_a_closed_bus_takes_nothing_more(counted: PubSubBus) -> None:
    await counted.close()
    with pytest.raises(BusUnavailable, match="closed"):
        await counted.publish([Message("tasks", b"x")])
    with pytest.raises(BusUnavailable, match="closed"):
        await counted.subscribe(WORKER, acknowledge)


def test_a_bus_is_opened_by_its_name_and_needs_a_project() -> None:
    clock = SystemClock()
    assert isinstance(open_bus("pubsub", clock, max_bytes=10, gcp_project="p"), PubSubBus)
    with pytest.raises(ConfigurationError, match="GCP_PROJECT_ID"):
        open_bus("pubsub", clock, max_bytes=10)
    with pytest.raises(ConfigurationError, match="memory, redis, pubsub"):
        open_bus("pigeons", clock, max_bytes=10)


async def test_an_opened_bus_refuses_what_is_larger_than_it_was_told() -> None:
    bus = open_bus("pubsub", SystemClock(), max_bytes=10, gcp_project="p", pubsub_emulator="127.0.0.1:1")
    with pytest.raises(InputError, match="11 bytes"):
        await bus.publish([Message("tasks", bytes(11))])
    await bus.close()


# --- pulling ---------------------------------------------------------------------------------------------------------------------


async def test_acks_that_come_together_are_sent_together(double: PubSubDouble, counted: PubSubBus) -> None:
    double.let_go.clear()
    handled = 0

    async def handler(_: Delivery) -> Outcome:
        nonlocal handled
        handled += 1
        return Outcome.ACK

    await counted.subscribe(WORKER, handler)
    double.hand_out(Message("tasks", b"first"))
    await until(lambda: double.busy == 1)
    double.hand_out(*[Message("tasks", b"x")] * 50)
    await until(lambda: handled == 51)
    double.let_go.set()
    await until(lambda: sum(map(len, double.acknowledged)) == 51)
    assert [len(batch) for batch in double.acknowledged] == [1, 50]
    assert double.given_back == []


async def test_a_pull_asks_for_as_many_as_there_are_places(double: PubSubDouble, counted: PubSubBus) -> None:
    let_go = asyncio.Event()
    running = 0

    async def handler(_: Delivery) -> Outcome:
        nonlocal running
        running += 1
        await let_go.wait()
        return Outcome.ACK

    double.hand_out(*[Message("tasks", b"x")] * 3)
    await counted.subscribe(WORKER, handler)
    await until(lambda: running == 3 and len(double.pulled) == 2)
    double.hand_out(*[Message("tasks", b"x")] * 10)
    await until(lambda: running == 8)
    assert double.pulled == [8, 5]
    let_go.set()
    await until(lambda: sum(map(len, double.acknowledged)) == 13)


async def test_a_late_ack_is_passed_on_and_a_late_failure_is_not(
    double: PubSubDouble, counted: PubSubBus, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pubsub_service, "_LEAST_DEADLINE_SECONDS", 0)
    let_go = asyncio.Event()
    outcomes = [Outcome.RETRY, Outcome.ACK]

    async def handler(_: Delivery) -> Outcome:
        outcome = outcomes.pop()
        await let_go.wait()
        return outcome

    await counted.subscribe(Subscription("tasks.worker", "tasks", ack_deadline_seconds=1, concurrency=2), handler)
    double.hand_out(Message("tasks", b"secret"), Message("tasks", b"secret"))
    await until(lambda: caplog.text.count("missed the deadline") == 2)
    let_go.set()
    await until(lambda: double.acknowledged == [["ack-0"]])
    await counted.close()
    assert double.given_back == []
    assert "secret" not in caplog.text


async def test_what_is_acknowledged_stays_away_when_its_deadline_is_over(bus: PubSubBus, emulator: str) -> None:
    await create(bus.project, [Subscription("other", "tasks")], emulator=emulator)
    channel = grpc.aio.insecure_channel(emulator)
    described = Described(
        name=f"projects/{bus.project}/subscriptions/tasks.worker",
        topic=f"projects/{bus.project}/topics/tasks",
        ack_deadline_seconds=4,  # which the emulator takes, unlike the service
    )
    await SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel)).create_subscription(described)
    await channel.close()
    arrived: list[bytes] = []

    async def handler(delivery: Delivery) -> Outcome:
        arrived.append(delivery.data)
        if delivery.data == b"slow":
            await asyncio.Event().wait()
        return Outcome.ACK

    await bus.subscribe(WORKER, handler)
    await bus.publish([Message("tasks", b"done")])
    await until(lambda: arrived == [b"done"])
    await bus.publish([Message("tasks", b"slow")])
    await until(lambda: arrived.count(b"slow") == 2)  # whose deadline began later
    assert arrived.count(b"done") == 1


async def test_closing_gives_back_what_is_not_done_in_time(bus: PubSubBus, emulator: str) -> None:
    await create(bus.project, [WORKER], emulator=emulator)
    started = asyncio.Event()

    async def hanging(_: Delivery) -> Outcome:
        started.set()
        await asyncio.Event().wait()
        return Outcome.ACK

    await bus.subscribe(WORKER, hanging)
    await bus.publish([Message("tasks", b"x")])
    await asyncio.wait_for(started.wait(), PATIENCE_SECONDS)
    await bus.close()

    again = asyncio.Event()

    async def handler(_: Delivery) -> Outcome:
        again.set()
        return Outcome.ACK

    successor = PubSubBus(bus.project, SystemClock(), emulator=emulator)
    await successor.subscribe(WORKER, handler)
    # Its deadline is ten minutes.
    await asyncio.wait_for(again.wait(), 20)
    await successor.close()


async def test_a_bus_outlives_its_emulator(caplog: pytest.LogCaptureFixture) -> None:
    pubsub.require()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arrived: list[bytes] = []

    async def handler(delivery: Delivery) -> Outcome:
        arrived.append(delivery.data)
        return Outcome.ACK

    def about(what: str) -> int:
        return sum(what in record.message for record in caplog.records)

    caplog.set_level(logging.INFO, "shared.bus")
    bus = PubSubBus("p", SystemClock(), emulator=f"127.0.0.1:{port}")
    with pubsub.emulator(port) as address:
        await create("p", [WORKER], emulator=address)
        await bus.subscribe(WORKER, handler)
        await bus.publish([Message("tasks", b"before")])
        await until(lambda: arrived == [b"before"])
    await until(lambda: about("pulling is tried until it works") == 1)
    with pubsub.emulator(port) as address:
        # A new emulator knows nothing: until the subscription is there, it is missing.
        await create("p", [WORKER], emulator=address)
        await bus.publish([Message("tasks", b"after")])
        await until(lambda: arrived == [b"before", b"after"])
        assert about("is pulled again") == 1
        assert about("pulling is tried until it works") == 1
        await bus.close()


async def test_a_subscription_has_one_handler(counted: PubSubBus) -> None:
    await counted.subscribe(WORKER, acknowledge)
    with pytest.raises(Conflict, match="has a handler already"):
        await counted.subscribe(WORKER, acknowledge)


async def test_a_handler_runs_in_the_context_of_who_subscribed(double: PubSubDouble, counted: PubSubBus) -> None:
    variable: ContextVar[str] = ContextVar("variable")
    seen: list[str] = []

    async def handler(_: Delivery) -> Outcome:
        seen.append(variable.get())
        variable.set("changed")
        return Outcome.ACK

    variable.set("subscriber's")
    await counted.subscribe(WORKER, handler)
    variable.set("later")
    double.hand_out(Message("tasks", b"x"), Message("tasks", b"y"))
    await until(lambda: len(seen) == 2)
    assert seen == ["subscriber's"] * 2


# --- creating --------------------------------------------------------------------------------------------------------------------


async def test_what_is_created_is_what_the_service_could_keep(bus: PubSubBus, emulator: str) -> None:
    odd = Subscription(
        "odd.one", "odd", 2.5, max_attempts=2, min_backoff_seconds=0.5, max_backoff_seconds=900, dead_letter_topic="dead"
    )
    plain = Subscription("plain.one", "odd", ack_deadline_seconds=330.2, max_attempts=500)
    await create(bus.project, [odd, plain], emulator=emulator)
    await create(bus.project, [odd, Subscription("plain.one", "odd", ack_deadline_seconds=20)], emulator=emulator)

    channel = grpc.aio.insecure_channel(emulator)
    client = SubscriberAsyncClient(transport=SubscriberGrpcAsyncIOTransport(channel=channel))
    found = [
        await client.get_subscription(subscription=f"projects/{bus.project}/subscriptions/{name}")
        for name in ("odd.one", "plain.one")
    ]
    await channel.close()
    first, second = (Described.pb(one) for one in found)
    assert (first.ack_deadline_seconds, second.ack_deadline_seconds) == (10, 331)
    assert first.retry_policy.minimum_backoff == Duration(nanos=500_000_000)
    assert first.retry_policy.maximum_backoff == Duration(seconds=600)
    assert first.message_retention_duration == Duration(seconds=7 * 86_400)
    assert first.dead_letter_policy.dead_letter_topic == f"projects/{bus.project}/topics/dead"
    assert first.dead_letter_policy.max_delivery_attempts == 5
    assert not second.HasField("dead_letter_policy")
    await bus.publish([Message("dead", b"its topic is there")])
