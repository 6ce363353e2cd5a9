"""What shared.bus.base promises, of every bus."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.errors import InputError

from .harness import BusRig, settle


class Recorder:
    """A handler that remembers what it got and answers as told: outcomes or exceptions in turn, then ACK."""

    def __init__(self, rig: BusRig, *answers: Outcome | Exception) -> None:
        self.deliveries: list[Delivery] = []
        self.times: list[float] = []
        self._rig = rig
        self._answers = list(answers)

    async def __call__(self, delivery: Delivery) -> Outcome:
        self.deliveries.append(delivery)
        self.times.append(self._rig.time.now())
        answer = self._answers.pop(0) if self._answers else Outcome.ACK
        if isinstance(answer, Exception):
            raise answer
        return answer

    def has(self, count: int) -> bool:
        return len(self.deliveries) >= count


def subscription(rig: BusRig, name: str = "worker", topic: str = "tasks", **changes: object) -> Subscription:
    time = rig.time
    plain = Subscription(
        name,
        topic,
        ack_deadline_seconds=time.of(60),
        max_attempts=5,
        min_backoff_seconds=time.of(2),
        max_backoff_seconds=time.of(8),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def numbered(count: int, topic: str = "tasks") -> list[Message]:
    return [Message(topic, str(n).encode()) for n in range(count)]


async def test_every_message_arrives_once_when_all_goes_well(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), recorder)

    await bus_rig.bus.publish(numbered(50))
    await bus_rig.time.until(lambda: recorder.has(50))
    await bus_rig.time.pass_by(100)

    assert Counter(d.data for d in recorder.deliveries) == Counter(str(n).encode() for n in range(50))
    assert len({d.message_id for d in recorder.deliveries}) == 50


async def test_a_delivery_says_where_it_comes_from(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), recorder)

    await bus_rig.bus.publish([Message("tasks", b"x")])
    await bus_rig.time.until(lambda: recorder.has(1))

    [delivery] = recorder.deliveries
    assert (delivery.subscription, delivery.topic, delivery.message_id != "") == ("worker", "tasks", True)
    assert delivery.attempt in (1, None)


async def test_two_subscriptions_of_a_topic_each_get_every_message(bus_rig: BusRig) -> None:
    first, second = Recorder(bus_rig), Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig, "first"), first)
    await bus_rig.subscribe(subscription(bus_rig, "second"), second)

    await bus_rig.bus.publish(numbered(20))
    await bus_rig.time.until(lambda: first.has(20) and second.has(20))

    assert {d.data for d in first.deliveries} == {d.data for d in second.deliveries} == {m.data for m in numbered(20)}


async def test_messages_of_other_topics_stay_away(bus_rig: BusRig) -> None:
    mine, other = Recorder(bus_rig), Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), mine)
    await bus_rig.subscribe(subscription(bus_rig, "other", "other-topic"), other)

    await bus_rig.bus.publish([Message("other-topic", b"theirs"), Message("tasks", b"mine")])
    await bus_rig.time.until(lambda: mine.has(1) and other.has(1))

    assert [d.data for d in mine.deliveries] == [b"mine"]
    assert [d.data for d in other.deliveries] == [b"theirs"]


@pytest.mark.parametrize("failure", [RuntimeError("boom"), Outcome.RETRY], ids=["exception", "RETRY"])
async def test_a_failed_delivery_comes_again(bus_rig: BusRig, failure: Outcome | Exception) -> None:
    recorder = Recorder(bus_rig, failure, failure)
    await bus_rig.subscribe(subscription(bus_rig), recorder)

    await bus_rig.bus.publish([Message("tasks", b"x", {"k": "v"})])
    await bus_rig.time.until(lambda: recorder.has(3))
    await bus_rig.time.pass_by(100)

    assert [d.attempt for d in recorder.deliveries] in ([1, 2, 3], [None] * 3)
    assert {(d.data, d.attributes["k"], d.message_id) for d in recorder.deliveries} == {
        (b"x", "v", recorder.deliveries[0].message_id)
    }


async def test_a_slow_handler_gets_the_message_again_while_it_still_works(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    let_go = asyncio.Event()
    running = 0

    async def slow_at_first(delivery: Delivery) -> Outcome:
        nonlocal running
        await recorder(delivery)
        running += 1
        if len(recorder.deliveries) == 1:
            await let_go.wait()
        return Outcome.ACK

    deadline = max(bus_rig.time.of(10), bus_rig.abilities.least_ack_deadline_seconds)
    await bus_rig.subscribe(subscription(bus_rig, ack_deadline_seconds=deadline, concurrency=1), slow_at_first)
    await bus_rig.bus.publish([Message("tasks", b"x")])
    await bus_rig.time.until(lambda: running == 2)

    assert bus_rig.time.of(recorder.times[1] - recorder.times[0]) >= deadline
    let_go.set()
    await bus_rig.time.pass_by(100)
    assert len(recorder.deliveries) == 2


async def test_the_backoff_doubles_up_to_its_maximum(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig, *[Outcome.RETRY] * 5)
    await bus_rig.subscribe(subscription(bus_rig, max_attempts=10), recorder)

    await bus_rig.bus.publish([Message("tasks", b"x")])
    await bus_rig.time.until(lambda: recorder.has(6))

    pauses = [later - earlier for earlier, later in zip(recorder.times, recorder.times[1:], strict=False)]
    if bus_rig.abilities.moves_clock:
        assert pauses == [2, 4, 8, 8, 8]
    elif bus_rig.abilities.keeps_backoff:
        assert all(pause >= least for pause, least in zip(pauses, [2, 4, 8, 8, 8], strict=True))


async def test_after_the_last_attempt_the_message_becomes_a_dead_letter_with_its_origin(bus_rig: BusRig) -> None:
    failing, graveyard = Recorder(bus_rig, *[Outcome.RETRY] * 9), Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig, max_attempts=5, dead_letter_topic="dead"), failing)
    await bus_rig.subscribe(subscription(bus_rig, "graveyard", "dead"), graveyard)

    await bus_rig.bus.publish([Message("tasks", b"poison", {"hmac-key-id": "v1"})])
    await bus_rig.time.until(lambda: graveyard.has(1))
    await bus_rig.time.pass_by(100)

    assert len(failing.deliveries) == 5
    [letter] = graveyard.deliveries
    assert letter.data == b"poison"
    assert letter.attributes["hmac-key-id"] == "v1"
    assert letter.attributes["CloudPubSubDeadLetterSourceSubscription"] == "worker"
    assert letter.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert letter.attributes["CloudPubSubDeadLetterSourceSubscriptionProject"]
    assert letter.attributes["CloudPubSubDeadLetterSourceTopicPublishTime"].endswith("Z")


async def test_a_failing_message_does_not_hold_up_the_others(bus_rig: BusRig) -> None:
    arrived: list[bytes] = []

    async def handler(delivery: Delivery) -> Outcome:
        arrived.append(delivery.data)
        return Outcome.RETRY if delivery.data == b"0" else Outcome.ACK

    await bus_rig.subscribe(subscription(bus_rig, concurrency=1), handler)
    await bus_rig.bus.publish(numbered(10))
    await bus_rig.time.until(lambda: len(set(arrived)) == 10)


async def test_data_and_attributes_survive_as_they_were(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), recorder)
    messages = [
        Message("tasks", bytes(range(256)), {"content-type": "application/cloudevents+json", "note": "größer 🙂"}),
        Message("tasks", b'{"a": 1}'),
        Message("tasks", b"", {"only": "attributes"}),
    ]

    await bus_rig.bus.publish(messages)
    await bus_rig.time.until(lambda: recorder.has(3))

    arrived = {d.data: dict(d.attributes) for d in recorder.deliveries}
    assert arrived == {m.data: dict(m.attributes) for m in messages}


async def test_a_payload_of_512_kb_passes(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), recorder)
    data = b"\x00\xff" * (512 * 1024 // 2)

    await bus_rig.bus.publish([Message("tasks", data)])
    await bus_rig.time.until(lambda: recorder.has(1))

    assert recorder.deliveries[0].data == data


async def test_one_byte_more_is_refused_and_nothing_of_the_batch_is_published(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)
    await bus_rig.subscribe(subscription(bus_rig), recorder)

    with pytest.raises(InputError, match="tasks has 524,289 bytes of data"):
        await bus_rig.bus.publish([Message("tasks", b"fits"), Message("tasks", bytes(512 * 1024 + 1))])
    await bus_rig.bus.publish([Message("tasks", b"next")])
    await bus_rig.time.until(lambda: recorder.has(1))

    assert [d.data for d in recorder.deliveries] == [b"next"]


async def test_of_ten_thousand_messages_none_is_lost(bus_rig: BusRig) -> None:
    acked: set[bytes] = set()
    failed: set[bytes] = set()
    arrived: set[bytes] = set()

    async def fails_now_and_then(delivery: Delivery) -> Outcome:
        await asyncio.sleep(0)
        arrived.add(delivery.data)
        if int(delivery.data) % 10 == 0 and delivery.data not in failed:
            failed.add(delivery.data)
            return Outcome.RETRY
        acked.add(delivery.data)
        return Outcome.ACK

    await bus_rig.subscribe(subscription(bus_rig, concurrency=50), fails_now_and_then)
    messages = numbered(10_000)
    for start in range(0, 10_000, 100):
        await bus_rig.bus.publish(messages[start : start + 100])
    while len(arrived) < 10_000:
        await settle()
    await bus_rig.time.until(lambda: len(acked) == 10_000)

    assert len(failed) == 1_000


async def test_no_more_deliveries_run_at_once_than_the_subscription_allows(bus_rig: BusRig) -> None:
    now = most = done = 0

    async def handler(delivery: Delivery) -> Outcome:
        nonlocal now, most, done
        now += 1
        most = max(most, now)
        await settle()
        now -= 1
        done += 1
        return Outcome.ACK

    await bus_rig.subscribe(subscription(bus_rig, concurrency=4), handler)
    await bus_rig.bus.publish(numbered(40))
    await bus_rig.time.until(lambda: done == 40)

    assert most == 4


async def test_a_handler_may_publish(bus_rig: BusRig) -> None:
    recorder = Recorder(bus_rig)

    async def forwards(delivery: Delivery) -> Outcome:
        await bus_rig.bus.publish([Message("replies", delivery.data)])
        return Outcome.ACK

    await bus_rig.subscribe(subscription(bus_rig), forwards)
    await bus_rig.subscribe(subscription(bus_rig, "replies", "replies"), recorder)
    await bus_rig.bus.publish(numbered(10))
    await bus_rig.time.until(lambda: recorder.has(10))

    assert {d.data for d in recorder.deliveries} == {m.data for m in numbered(10)}


async def test_close_lets_running_handlers_finish(bus_rig: BusRig) -> None:
    let_go = asyncio.Event()
    started = finished = 0

    async def handler(delivery: Delivery) -> Outcome:
        nonlocal started, finished
        started += 1
        await let_go.wait()
        finished += 1
        return Outcome.ACK

    await bus_rig.subscribe(subscription(bus_rig, concurrency=3), handler)
    await bus_rig.bus.publish(numbered(10))
    await bus_rig.time.until(lambda: started == 3)
    closing = asyncio.create_task(bus_rig.bus.close())
    await settle()
    assert not closing.done()

    let_go.set()
    await closing

    assert (started, finished) == (3, 3)
