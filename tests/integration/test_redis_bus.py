"""What the Redis bus promises beyond all buses, on real servers and their own clock: see tests/conformance for the rest."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from shared.bus import Delivery, Message, Outcome
from shared.bus.policy import MAX_DATA_BYTES
from shared.bus.redis import RedisBus
from shared.bus.redis_group import HOLDER, LUA, SILENCE_SECONDS, Entry, Failed, Group, Held, held_key, looked_key, stream_key
from shared.clock import SystemClock
from shared.errors import BusUnavailable
from shared.redis.store import RedisStore
from tests.support.live import until
from tests.support.redis_bus import PLAIN, Hanging, Recorder, bus_at, make_due, numbered, pending, plain
from tests.support.servers import RedisServer, patience, redis_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server("--appendonly", "yes") as one:
        yield one


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.execute("FLUSHALL")
    return shared_server


async def read_once(group: Group, most: int) -> list[Entry]:
    connection = await group.join(())
    entries = await group.read(connection, most, block_seconds=0.05)
    await connection.disconnect()
    return entries


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    opened = RedisStore(server.url, LUA, unavailable=BusUnavailable)
    with patience():
        yield opened
        await opened.close()


# What happens to what is not acknowledged


@pytest.fixture
def killed_consumer(server: RedisServer) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "tests.integration.redis_bus_consumer", server.url, "worker", "tasks"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("deadline", "silence"), [(1.0, 600.0), (600.0, 1.0)], ids=["overdue", "silent"])
async def test_what_a_killed_process_had_is_taken_over_and_counted(
    server: RedisServer, killed_consumer: "subprocess.Popen[str]", deadline: float, silence: float
) -> None:
    async with bus_at(server, silence_seconds=silence) as bus:
        await bus.publish(numbered(5))
        assert killed_consumer.stdout is not None
        told = [await asyncio.to_thread(killed_consumer.stdout.readline) for _ in range(5)]
        killed_consumer.kill()
        recorder = Recorder()
        await bus.subscribe(plain(ack_deadline_seconds=deadline), recorder)
        await until(lambda: len(recorder.deliveries) == 5)
        await until(lambda: pending(server) == 0)

    assert sorted(told) == [f"{number} 1\n" for number in range(5)]
    assert recorder.attempts() == [2] * 5
    assert len({one.message_id for one in recorder.deliveries}) == 5


async def test_who_works_long_is_not_taken_for_dead(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server's time is what the test says.
    began = int(time.time())
    server.execute("SET", "clock", began)
    clocked = partial(RedisStore, now_lua="local now = tonumber(redis.call('GET', 'clock'))\n")
    monkeypatch.setattr("shared.bus.redis.RedisStore", clocked)
    slow, other = Hanging(), Recorder()
    long = plain(ack_deadline_seconds=600.0, concurrency=1)

    async def both_look(now: int) -> None:
        server.execute("SET", "clock", now)
        await until(lambda: server.execute("ZCOUNT", looked_key(long), 1000 * now, "+inf") == 2)

    async with bus_at(server, silence_seconds=15.0) as busy, bus_at(server, silence_seconds=15.0) as idle:
        await busy.subscribe(long, slow)
        await busy.publish(numbered(1))
        await until(lambda: pending(server) == 1)
        await idle.subscribe(long, other)
        for now in range(began, began + 40, 10):  # for twice the silence
            await both_look(now)
        assert other.deliveries == []
        slow.let_go.set()
        await until(lambda: pending(server) == 0)


async def test_who_lost_a_message_to_another_can_still_settle_it_but_not_have_it_tried_again(
    server: RedisServer, store: RedisStore
) -> None:
    slow, other = (Group(store, plain(ack_deadline_seconds=0.2), name) for name in ("slow", "other"))
    async with bus_at(server) as bus:
        await bus.publish(numbered(1))
    [entry] = await read_once(slow, 1)
    await read_once(other, 1)
    held: list[Held] = []
    async with asyncio.timeout(10):
        while not held:
            held = (await other.take(1)).held

    await slow.note([], [Failed(entry.id, 1)])
    script = "return redis.call('XPENDING', KEYS[1], 'worker', '-', '+', 10)"  # redis-py reads the answer only to a script
    [[_, consumer, _, count]] = server.execute("EVAL", script, 1, stream_key("tasks"))
    assert (consumer, count) == (b"other", 2)
    assert server.execute("ZCARD", held_key(PLAIN)) == 0

    await slow.note([entry.id], [])
    assert pending(server) == server.execute("XLEN", stream_key("tasks")) == 0


async def test_a_late_acknowledgement_settles_the_message_that_waits_to_come_again(server: RedisServer) -> None:
    slow = Hanging()
    async with bus_at(server) as bus:
        await bus.subscribe(plain(ack_deadline_seconds=0.3, min_backoff_seconds=600, max_backoff_seconds=600), slow)
        await bus.publish(numbered(1))
        await until(lambda: server.execute("ZCARD", held_key(PLAIN)) == 1)
        slow.let_go.set()
        await until(lambda: pending(server) == 0)
        make_due(server)
        await until(lambda: server.execute("ZCARD", held_key(PLAIN)) == 0)

    assert len(slow.started) == 1


async def test_places_are_kept_however_messages_come(server: RedisServer) -> None:
    now = most = 0

    async def handler(delivery: Delivery) -> Outcome:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.002)
        now -= 1
        return Outcome.ACK if delivery.attempt == 2 else Outcome.RETRY

    async with bus_at(server) as bus:
        await bus.subscribe(plain(concurrency=5), handler)
        for message in numbered(200):
            await bus.publish([message])
        await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    assert most == 5


async def test_what_is_due_comes_before_new_messages(server: RedisServer) -> None:
    order: list[bytes] = []
    let_go = asyncio.Event()
    rare = plain(concurrency=1, min_backoff_seconds=600, max_backoff_seconds=600)

    async def waits_with_the_second(delivery: Delivery) -> Outcome:
        order.append(delivery.data)
        if delivery.data == b"1":
            await let_go.wait()
        return Outcome.RETRY if delivery.data == b"0" and delivery.attempt == 1 else Outcome.ACK

    def looked() -> float:
        [(_, at)] = server.execute("ZRANGE", looked_key(rare), 0, -1, "WITHSCORES")
        return float(at)

    async def looks_again() -> None:
        before = looked()
        await until(lambda: looked() > before)

    async with bus_at(server) as bus:
        await bus.publish(numbered(6))
        await bus.subscribe(rare, waits_with_the_second)
        await until(lambda: order == [b"0", b"1"] and server.execute("ZCARD", held_key(rare)) == 1)
        make_due(server, rare)
        for _ in range(2):  # it is looked for while no place is free
            await looks_again()
        let_go.set()
        await until(lambda: len(order) == 7)

    assert order[:3] == [b"0", b"1", b"0"]


# Dead letters and retention


async def test_a_dead_letter_whose_settling_was_lost_is_stored_again_under_the_same_id(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, store_letter = 0, RedisBus._bury

    async def answer_lost(self: RedisBus, letter: Message, message_id: str) -> None:
        nonlocal stored
        await store_letter(self, letter, message_id)
        stored += 1
        if stored == 1:
            raise BusUnavailable("the answer was lost")

    monkeypatch.setattr(RedisBus, "_bury", answer_lost)
    graveyard = Recorder()
    async with bus_at(server) as bus:
        await bus.subscribe(plain(max_attempts=2), Recorder(Outcome.RETRY, Outcome.RETRY))
        await bus.subscribe(plain(name="graveyard", topic="dead", dead_letter_topic=None), graveyard)
        await bus.publish([Message("tasks", b"poison", {"k": "v"})])
        await until(lambda: len(graveyard.deliveries) == 2)
        await until(lambda: pending(server) == 0)

    first, copy = graveyard.deliveries
    assert (first.data, first.attributes, first.message_id) == (copy.data, copy.attributes, copy.message_id)
    assert first.message_id.startswith("worker/")
    assert first.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "2"


async def test_a_message_that_is_never_acknowledged_is_dropped_after_the_retention(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(*[Outcome.RETRY] * 1000)
    async with bus_at(server) as bus:
        await bus.subscribe(plain(dead_letter_topic=None), recorder)
        await bus.publish(numbered(1))
        await until(lambda: len(recorder.deliveries) > 1)
        monkeypatch.setattr("shared.bus.policy.RETENTION_SECONDS", 0.0)
        await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    assert [one.message for one in caplog.records] == [
        f"message {recorder.deliveries[0].message_id} of worker was never acknowledged and is dropped"
    ]


async def test_a_held_back_message_that_was_trimmed_is_dropped_with_a_warning(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(Outcome.RETRY)
    async with bus_at(server) as bus:
        await bus.subscribe(plain(min_backoff_seconds=600, max_backoff_seconds=600), recorder)
        await bus.publish(numbered(1))
        await until(lambda: server.execute("ZCARD", held_key(PLAIN)) == 1)
        server.execute("XTRIM", stream_key("tasks"), "MAXLEN", 0)
        make_due(server)
        await until(lambda: pending(server) == 0)
        await until(lambda: len(caplog.records) == 1)

    assert "is dropped" in caplog.text
    assert recorder.attempts() == [1]


async def test_only_what_is_too_old_is_trimmed(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.bus.redis._TRIM_SECONDS", 0.0)
    async with bus_at(server) as bus:
        await bus.publish(numbered(500))
        await bus.publish(numbered(1))
        assert server.execute("XLEN", stream_key("tasks")) == 501

        monkeypatch.setattr("shared.bus.redis.RETENTION_SECONDS", 0.1)
        await asyncio.sleep(0.15)
        await bus.publish(numbered(1))

    assert server.execute("XLEN", stream_key("tasks")) <= 100, "whole nodes of a hundred entries are trimmed"


async def test_with_two_subscriptions_what_both_have_settled_is_trimmed_and_nothing_else(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.bus.redis._TRIM_SECONDS", 0.0)
    quick, slow = Recorder(), Hanging()
    async with bus_at(server, grace_seconds=0.1) as bus:
        await bus.subscribe(plain(name="quick"), quick)
        await bus.subscribe(plain(name="slow", concurrency=1000), slow)
        await bus.publish(numbered(500))
        await until(lambda: len(quick.deliveries) == len(slow.started) == 500)
        await until(lambda: pending(server, group="quick") == 0)
        await bus.publish([])
        await bus.publish(numbered(1))
        assert server.execute("XLEN", stream_key("tasks")) == 501

        slow.let_go.set()
        # What a subscription has not read yet is not pending, but not settled either, and keeps its whole node.
        await until(lambda: len(quick.deliveries) == len(slow.started) == 501)
        await until(lambda: pending(server, group="slow") == 0 and pending(server, group="quick") == 0)
        await bus.publish(numbered(1))
        assert server.execute("XLEN", stream_key("tasks")) <= 101


async def test_with_one_subscription_nothing_stays_that_is_settled(server: RedisServer) -> None:
    recorder = Recorder(Outcome.RETRY)
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, recorder)
        await bus.publish(numbered(100))
        await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    assert sorted(recorder.attempts(), key=str) == [1] * 100 + [2] * 100
    assert set(server.execute("KEYS", "*")) == {stream_key("tasks").encode(), looked_key(PLAIN).encode()}


# Coming and going


async def test_close_hands_back_at_once_what_did_not_finish(server: RedisServer) -> None:
    hanging, recorder = Hanging(), Recorder()
    async with bus_at(server) as second:
        async with bus_at(server, grace_seconds=0.2) as first:
            await first.subscribe(plain(concurrency=3, ack_deadline_seconds=600), hanging)
            await first.publish(numbered(5))
            await until(lambda: len(hanging.started) == 3)
        await second.subscribe(plain(ack_deadline_seconds=600), recorder)
        # What is left without a word comes again only after its consumer's silence.
        await until(lambda: len(recorder.deliveries) == 5, within_seconds=SILENCE_SECONDS - 2)

    assert {one.data: one.attempt for one in recorder.deliveries} == {b"0": 2, b"1": 2, b"2": 2, b"3": 1, b"4": 1}
    [left] = server.execute("XINFO", "CONSUMERS", stream_key("tasks"), "worker")
    assert HOLDER.encode() in left.values()


async def test_what_arrives_while_closing_is_left_to_others_without_counting(server: RedisServer) -> None:
    closing, other = Recorder(), Recorder()
    async with bus_at(server) as second:
        async with bus_at(server) as first:
            await first.subscribe(plain(min_backoff_seconds=0.5, ack_deadline_seconds=600), closing)
            await until(lambda: b"cmd=xreadgroup" in server.execute("CLIENT", "LIST", "TYPE", "normal"))
            ending = asyncio.create_task(first.close())
            await asyncio.sleep(0)
            await second.publish(numbered(1))
            await ending
        await second.subscribe(plain(ack_deadline_seconds=600), other)
        await until(lambda: other.attempts() == [1])

    assert closing.deliveries == []


async def test_what_was_read_and_not_begun_is_handed_back_without_counting(server: RedisServer, store: RedisStore) -> None:
    async with bus_at(server) as bus:
        await bus.publish(numbered(3))
    leaving, staying, third = (Group(store, PLAIN, name) for name in ("leaving", "staying", "third"))
    begun, _ = await read_once(leaving, 2)
    assert await leaving.leave([begun.id]) == 2
    [running] = await read_once(staying, 1)
    # Its connection broke, and another is made: what still runs stays.
    await (await staying.join([running.id])).disconnect()

    taken = await third.take(10)

    assert sorted(held.attempts for held in taken.held) == [0, 1]
    assert pending(server) == 3
    assert running.id not in {held.id for held in taken.held}
    assert "leaving" not in str(server.execute("XINFO", "CONSUMERS", stream_key("tasks"), "worker"))


async def test_close_takes_less_than_ten_seconds_whatever_handlers_do(server: RedisServer) -> None:
    let_go, ended, asked = asyncio.Event(), asyncio.Event(), 0

    async def stubborn(delivery: Delivery) -> Outcome:
        nonlocal asked
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                asked += 1
        ended.set()
        return Outcome.ACK

    bus = RedisBus(server.url, SystemClock(), max_bytes=MAX_DATA_BYTES)
    await bus.subscribe(PLAIN, stubborn)
    await bus.publish(numbered(1))
    await until(lambda: pending(server) == 1)
    began = time.monotonic()
    await bus.close()
    took = time.monotonic() - began

    assert asked == 1
    assert 6 < took < 10
    assert server.execute("ZCARD", held_key(PLAIN)) == 1
    let_go.set()
    await ended.wait()
