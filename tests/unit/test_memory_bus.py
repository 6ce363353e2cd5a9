"""What the memory bus promises beyond every bus: see tests/conformance for the rest."""

import asyncio
import gc
from collections import Counter
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.bus import Delivery, Message, Outcome, Subscription, open_bus
from shared.bus.chaos import Chaos
from shared.bus.memory import MemoryBus
from shared.bus.policy import MAX_DATA_BYTES, RETENTION_SECONDS, Fate, backoff_seconds, dead_letter, fate
from shared.clock import ManualClock, SystemClock
from shared.errors import BusUnavailable, ConfigurationError, Conflict, InputError, NotFound

WORKER = Subscription("worker", "tasks", ack_deadline_seconds=10, min_backoff_seconds=2, max_backoff_seconds=8)


def numbered(count: int) -> list[Message]:
    return [Message("tasks", str(n).encode()) for n in range(count)]


async def acks(delivery: Delivery) -> Outcome:
    return Outcome.ACK


async def retries(delivery: Delivery) -> Outcome:
    return Outcome.RETRY


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def bus_tasks() -> set[asyncio.Task[object]]:
    return asyncio.all_tasks() - {asyncio.current_task()}


class Gate:
    """A handler whose deliveries wait until they are told their outcome."""

    def __init__(self) -> None:
        self.waiting: list[asyncio.Future[Outcome]] = []

    async def __call__(self, delivery: Delivery) -> Outcome:
        self.waiting.append(asyncio.get_running_loop().create_future())
        return await self.waiting[-1]


async def test_a_late_ack_settles_a_message_that_waits_to_be_delivered_again() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock)
    await bus.subscribe(WORKER, gate)
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(11)
    assert bus.depth("worker") == 1

    gate.waiting[0].set_result(Outcome.ACK)
    await bus.idle()
    await clock.advance(100)

    assert len(gate.waiting) == 1
    assert bus.depth("worker") == 0


async def test_a_late_ack_settles_a_message_that_is_being_delivered_again() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock)
    await bus.subscribe(WORKER, gate)
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(12)
    assert len(gate.waiting) == 2

    gate.waiting[0].set_result(Outcome.ACK)
    await settle()
    assert bus.depth("worker") == 0
    await clock.advance(20)  # the second handler misses its deadline too, but the message is settled
    gate.waiting[1].set_result(Outcome.RETRY)
    await bus.idle()
    await clock.advance(100)

    assert len(gate.waiting) == 2


async def test_a_late_retry_adds_no_delivery_of_its_own() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock)
    await bus.subscribe(WORKER, gate)
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(12)

    gate.waiting[0].set_result(Outcome.RETRY)
    await settle()
    await clock.advance(9)  # long enough for a backoff, not for the second deadline
    assert len(gate.waiting) == 2
    gate.waiting[1].set_result(Outcome.ACK)
    await bus.idle()
    await clock.advance(100)

    assert len(gate.waiting) == 2


async def test_a_hanging_handler_blocks_only_itself_and_ends_as_a_dead_letter() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock)
    letters: list[Delivery] = []

    async def bury(delivery: Delivery) -> Outcome:
        letters.append(delivery)
        return Outcome.ACK

    await bus.subscribe(replace(WORKER, concurrency=1, max_attempts=2, dead_letter_topic="dead"), gate)
    await bus.subscribe(Subscription("graveyard", "dead"), bury)
    await bus.publish(numbered(2))
    await settle()
    await clock.advance(10)
    assert len(gate.waiting) == 2, "the second message has the place of the overdue one"
    gate.waiting[1].set_result(Outcome.ACK)
    await clock.advance(20)

    assert [letter.data for letter in letters] == [b"0"]
    assert bus.published == {"tasks": 2, "dead": 1}
    idle = asyncio.create_task(bus.idle())
    await settle()
    assert not idle.done(), "handlers that hang still run"
    for waiting in gate.waiting:
        if not waiting.done():
            waiting.set_result(Outcome.ACK)
    await idle


async def test_a_message_acknowledged_while_it_queues_again_is_not_delivered() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock)
    await bus.subscribe(replace(WORKER, concurrency=1, ack_deadline_seconds=10), gate)
    await bus.publish(numbered(2))
    await settle()
    await clock.advance(13)  # message 0 is overdue and queues again behind message 1
    gate.waiting[0].set_result(Outcome.ACK)
    await settle()
    gate.waiting[1].set_result(Outcome.ACK)
    await bus.idle()

    assert len(gate.waiting) == 2


async def test_deadlines_of_several_subscriptions_are_kept_by_one_timer() -> None:
    clock, slow, quick = ManualClock(), Gate(), Gate()
    bus = MemoryBus(clock)
    await bus.subscribe(replace(WORKER, name="slow", ack_deadline_seconds=600), slow)
    await bus.subscribe(replace(WORKER, name="quick", ack_deadline_seconds=5), quick)
    await bus.publish(numbered(1))
    await settle()

    assert clock.sleepers == 1
    await clock.advance(7)
    assert (len(slow.waiting), len(quick.waiting)) == (1, 2)
    await clock.advance(595)
    assert len(slow.waiting) == 2
    closing = asyncio.create_task(bus.close())
    await settle()
    await clock.advance(10)
    await closing
    assert not bus_tasks()


async def test_a_handler_that_is_cancelled_gets_its_message_again() -> None:
    clock = ManualClock()
    bus = MemoryBus(clock)
    attempts: list[int | None] = []

    async def cancelled_once(delivery: Delivery) -> Outcome:
        attempts.append(delivery.attempt)
        if len(attempts) == 1:
            raise asyncio.CancelledError
        return Outcome.ACK

    await bus.subscribe(WORKER, cancelled_once)
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(3)
    await bus.idle()

    assert attempts == [1, 2]


async def test_a_failure_is_logged_without_what_the_message_or_the_exception_says(caplog: pytest.LogCaptureFixture) -> None:
    bus = MemoryBus(ManualClock())

    async def handler(delivery: Delivery) -> Outcome:
        raise ValueError("password-1")

    await bus.subscribe(WORKER, handler)
    await bus.publish([Message("tasks", b"secret-2", {"a": "secret-3"})])
    await settle()

    [record] = caplog.records
    assert record.getMessage() == "the handler of worker raised ValueError on message 1, attempt 1"
    assert record.exc_info is None


async def test_a_missed_deadline_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    bus = MemoryBus(clock)
    await bus.subscribe(WORKER, Gate())
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(10)

    assert caplog.messages == ["the handler of worker missed the deadline of message 1, attempt 1"]


async def test_without_a_dead_letter_topic_a_message_comes_again_until_its_retention_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    bus = MemoryBus(clock)
    attempts: list[int | None] = []

    async def handler(delivery: Delivery) -> Outcome:
        attempts.append(delivery.attempt)
        return Outcome.RETRY

    await bus.subscribe(Subscription("worker", "tasks", max_attempts=2, min_backoff_seconds=600), handler)
    await bus.publish(numbered(1))
    await settle()
    await clock.advance(6 * 86_400)
    assert (len(attempts) > 100, bus.depth("worker")) == (True, 1)
    await clock.advance(2 * 86_400)

    assert attempts == list(range(1, 7 * 144 + 2))
    assert bus.depth("worker") == 0
    assert caplog.messages == ["message 1 of worker was never acknowledged and is dropped"]
    await bus.idle()


async def test_messages_without_subscription_are_counted_and_reported_once_per_topic(caplog: pytest.LogCaptureFixture) -> None:
    bus = MemoryBus(ManualClock())

    await bus.publish(numbered(3))
    await bus.publish([Message("other", b"")])

    assert caplog.messages == [f"topic {topic} has no subscription: its messages are dropped" for topic in ("tasks", "other")]
    assert bus.dropped == {"tasks": 3, "other": 1}
    assert bus.published == {"tasks": 3, "other": 1}
    await bus.idle()


async def test_a_message_above_the_limit_is_refused_and_nothing_of_its_batch_is_stored() -> None:
    bus = MemoryBus(ManualClock())
    await bus.subscribe(WORKER, acks)

    with pytest.raises(InputError, match="topic tasks has 524,289 bytes"):
        await bus.publish([Message("tasks", b"fine"), Message("tasks", b"x" * (MAX_DATA_BYTES + 1))])

    assert (bus.depth("worker"), bus.published["tasks"]) == (0, 0)
    await bus.publish([Message("tasks", b"x" * MAX_DATA_BYTES)])
    assert bus.depth("worker") == 1
    await bus.idle()


async def test_what_the_publisher_changes_later_does_not_reach_the_handler() -> None:
    bus = MemoryBus(ManualClock())
    seen: list[dict[str, str]] = []

    async def handler(delivery: Delivery) -> Outcome:
        seen.append(dict(delivery.attributes))
        return Outcome.ACK

    await bus.subscribe(WORKER, handler)
    attributes = {"k": "before"}
    await bus.publish([Message("tasks", b"", attributes)])
    attributes["k"] = "after"
    await bus.idle()

    assert seen == [{"k": "before"}]


async def test_handlers_see_the_context_of_their_subscription_and_not_of_the_publisher_or_each_other() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")
    bus = MemoryBus(ManualClock())
    seen: list[str] = []

    async def handler(delivery: Delivery) -> Outcome:
        seen.append(who.get())
        who.set("another delivery")
        return Outcome.ACK

    who.set("subscriber")
    await bus.subscribe(WORKER, handler)
    who.set("publisher")
    await bus.publish(numbered(2))
    await bus.idle()

    assert seen == ["subscriber", "subscriber"]


async def test_a_subscription_has_one_handler() -> None:
    bus = MemoryBus(ManualClock())
    await bus.subscribe(WORKER, acks)

    with pytest.raises(Conflict, match="subscription worker has a handler already"):
        await bus.subscribe(WORKER, retries)


async def test_the_depth_of_an_unknown_subscription_is_an_error() -> None:
    with pytest.raises(NotFound, match="no subscription worker"):
        MemoryBus(ManualClock()).depth("worker")


async def test_idle_waits_for_what_handlers_publish_and_for_backoffs() -> None:
    clock = ManualClock()
    bus = MemoryBus(clock)
    replies = 0

    async def forwards(delivery: Delivery) -> Outcome:
        await bus.publish([Message("replies", b"")])
        return Outcome.ACK

    async def fails_once(delivery: Delivery) -> Outcome:
        nonlocal replies
        replies += delivery.attempt == 2
        return Outcome.ACK if delivery.attempt == 2 else Outcome.RETRY

    await bus.subscribe(WORKER, forwards)
    await bus.subscribe(replace(WORKER, name="replies", topic="replies"), fails_once)
    await bus.publish(numbered(5))
    idle = asyncio.create_task(bus.idle())
    given_up = asyncio.create_task(bus.idle())
    await settle()
    assert not idle.done()
    given_up.cancel()

    await clock.advance(2)
    await idle

    assert replies == 5


async def test_a_closed_bus_refuses_messages_and_subscriptions_and_forgets_what_it_held() -> None:
    bus = MemoryBus(ManualClock())
    await bus.subscribe(WORKER, retries)
    await bus.publish(numbered(3))
    idle = asyncio.create_task(bus.idle())
    await settle()

    await bus.close()
    await bus.close()

    await idle
    assert bus.depth("worker") == 0
    assert not bus_tasks()
    with pytest.raises(BusUnavailable):
        await bus.publish(numbered(1))
    with pytest.raises(BusUnavailable):
        await bus.subscribe(replace(WORKER, name="other"), acks)


async def test_close_cancels_handlers_that_do_not_finish_within_the_grace_period() -> None:
    clock, gate = ManualClock(), Gate()
    bus = MemoryBus(clock, grace_seconds=5)
    await bus.subscribe(WORKER, gate)
    await bus.publish(numbered(2))
    await settle()
    await clock.advance(11)  # two of the handlers are overdue
    closing = asyncio.create_task(bus.close())
    await settle()
    await clock.advance(4)
    assert not closing.done()

    await clock.advance(1)
    await closing

    assert all(waiting.cancelled() for waiting in gate.waiting)
    assert not bus_tasks()
    await bus.idle()


async def test_close_ends_deliveries_that_had_not_begun() -> None:
    clock = ManualClock()
    bus = MemoryBus(clock, grace_seconds=0)
    await bus.subscribe(replace(WORKER, concurrency=100), Gate())
    await bus.publish(numbered(100))

    await bus.close()

    assert not bus_tasks()
    await bus.idle()


async def test_deliveries_survive_the_garbage_collector() -> None:
    bus = MemoryBus(ManualClock())
    done = 0

    async def handler(delivery: Delivery) -> Outcome:
        nonlocal done
        gc.collect()
        await asyncio.sleep(0)
        done += 1
        return Outcome.ACK

    await bus.subscribe(WORKER, handler)
    await bus.publish(numbered(20))
    await bus.idle()

    assert done == 20


async def test_the_bus_keeps_time_on_the_machines_clock_too() -> None:
    bus = MemoryBus(SystemClock())
    attempts: list[int | None] = []

    async def handler(delivery: Delivery) -> Outcome:
        attempts.append(delivery.attempt)
        return Outcome.ACK if delivery.attempt == 3 else Outcome.RETRY

    await bus.subscribe(replace(WORKER, min_backoff_seconds=0.001), handler)
    await bus.publish(numbered(1))
    await asyncio.wait_for(bus.idle(), 5)
    await bus.close()

    assert attempts == [1, 2, 3]


async def order_under(chaos: Chaos, count: int = 100, *, concurrency: int = 8) -> list[bytes]:
    clock = ManualClock()
    bus = MemoryBus(clock, chaos=chaos)
    arrived: list[bytes] = []

    async def handler(delivery: Delivery) -> Outcome:
        arrived.append(delivery.data)
        return Outcome.ACK

    await bus.subscribe(replace(WORKER, concurrency=concurrency), handler)
    await bus.publish(numbered(count))
    await settle()
    await clock.advance(60)
    await asyncio.wait_for(bus.idle(), 5)
    return arrived


async def test_chaos_delivers_every_message_as_often_as_told() -> None:
    assert Counter(await order_under(Chaos(1, duplicates=3))) == {m.data: 3 for m in numbered(100)}


async def test_chaos_delivers_some_messages_twice() -> None:
    copies = Counter(await order_under(Chaos(1, duplicate_probability=0.5)))

    assert set(copies) == {m.data for m in numbered(100)}
    assert 20 < sum(count == 2 for count in copies.values()) < 80
    assert max(copies.values()) == 2


@pytest.mark.parametrize("concurrency", [1, 1_000])
async def test_chaos_reorders(concurrency: int) -> None:
    arrived = await order_under(Chaos(1, reorder=True), concurrency=concurrency)

    assert arrived != [m.data for m in numbered(100)]
    assert sorted(arrived) == sorted(m.data for m in numbered(100))


async def test_chaos_delays() -> None:
    clock = ManualClock()
    bus = MemoryBus(clock, chaos=Chaos(1, delay_seconds_max=10))
    await bus.subscribe(WORKER, acks)
    await bus.publish(numbered(100))

    await clock.advance(5)
    assert 0 < bus.depth("worker") < 100
    await clock.advance(5)
    assert bus.depth("worker") == 0


async def test_chaos_is_the_same_for_the_same_seed() -> None:
    async def under(seed: int) -> list[bytes]:
        return await order_under(Chaos(seed, duplicate_probability=0.3, reorder=True, delay_seconds_max=5))

    assert await under(7) == await under(7) != await under(8)


@given(st.floats(0.001, 1000), st.floats(0.001, 10_000), st.integers(1, 1_000_000))
def test_the_backoff_never_shrinks_and_stays_between_its_bounds(least: float, most: float, attempts: int) -> None:
    subscription = replace(WORKER, min_backoff_seconds=least, max_backoff_seconds=most)

    pause = backoff_seconds(subscription, attempts)

    assert min(least, most) <= pause <= most
    assert pause <= backoff_seconds(subscription, attempts + 1) <= 2 * pause


@pytest.mark.parametrize(
    ("topic", "attempts", "age_seconds", "expected"),
    [
        ("dead", 4, RETENTION_SECONDS - 1, Fate.RETRY),
        ("dead", 5, 0, Fate.DEAD_LETTER),
        ("dead", 4, RETENTION_SECONDS, Fate.EXPIRE),
        (None, 5, 0, Fate.RETRY),
        (None, 5, RETENTION_SECONDS, Fate.EXPIRE),
    ],
)
def test_the_fate_of_a_failed_message(topic: str | None, attempts: int, age_seconds: float, expected: Fate) -> None:
    assert fate(replace(WORKER, dead_letter_topic=topic), attempts=attempts, age_seconds=age_seconds) is expected


def test_a_dead_letter_keeps_what_it_was_and_tells_its_origin() -> None:
    published_at = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)

    letter = dead_letter("dead", b"x", {"a": "b"}, subscription="worker", attempts=5, published_at=published_at)

    assert letter == Message(
        "dead",
        b"x",
        {
            "a": "b",
            "CloudPubSubDeadLetterSourceSubscription": "worker",
            "CloudPubSubDeadLetterSourceSubscriptionProject": "local",
            "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-01-02T03:04:05.678000Z",
            "CloudPubSubDeadLetterSourceDeliveryCount": "5",
        },
    )


def test_the_memory_bus_is_opened_by_name() -> None:
    assert isinstance(open_bus("memory", ManualClock(), max_bytes=10), MemoryBus)


def test_an_unknown_bus_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="AGENT_BUS_PROVIDER is 'kafka'"):
        open_bus("kafka", ManualClock(), max_bytes=10)
