"""The Redis bus and its server: restarts, outages, refusals, clusters, and what it costs."""

import asyncio
import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pytest
from redis import crc

from shared.bus import Delivery, Message, Outcome, open_bus
from shared.bus.redis_group import LUA, Group, held_key, stream_key
from shared.bus.redis_subscriber import Outages
from shared.clock import SystemClock
from shared.errors import AgentTeamError, BusUnavailable, ConfigurationError, Conflict
from shared.redis.store import RedisStore
from shared.telemetry import metrics
from tests.support.live import until
from tests.support.redis_bus import PLAIN, Hanging, Recorder, bus_at, make_due, numbered, plain
from tests.support.servers import RedisServer, patience, redis_server


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with redis_server() as one:
        yield one


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    shared_server.execute("FLUSHALL")
    return shared_server


# Restarts


async def test_of_two_thousand_messages_none_is_lost_when_the_server_is_killed_in_the_middle(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder = Recorder(Outcome.RETRY)
    with redis_server("--appendonly", "yes") as server:
        async with bus_at(server) as bus, bus_at(server) as other:
            for one in (bus, other):
                await one.subscribe(plain(concurrency=20, ack_deadline_seconds=1.0), recorder)

            killed = asyncio.Event()

            async def publish(messages: Sequence[Message]) -> None:
                for number, message in enumerate(messages):
                    if number == 30:
                        await killed.wait()  # or all could be published before the server is killed
                    while True:
                        try:
                            await bus.publish([message])
                            break
                        except BusUnavailable:
                            await asyncio.sleep(0.02)

            messages = numbered(2_000)
            publishing = asyncio.gather(*(publish(messages[start::50]) for start in range(50)))
            await until(lambda: len(recorder.seen) > 500)
            server.kill(signal.SIGKILL)
            killed.set()
            await asyncio.to_thread(server.start)
            await asyncio.wait_for(publishing, 30)
            await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0, within_seconds=30)

    assert recorder.seen == {message.data for message in messages}
    first, second = (sorted({one.data for one in recorder.deliveries if one.attempt == attempt}) for attempt in (1, 2))
    assert first == second, "a count was lost"
    assert [record.getMessage() for record in caplog.records if "works again" in record.getMessage()]


async def test_what_is_held_back_is_still_held_back_after_a_restart() -> None:
    recorder = Recorder(Outcome.RETRY, Outcome.RETRY)
    with redis_server("--appendonly", "yes") as server:
        async with bus_at(server) as bus:
            await bus.subscribe(plain(min_backoff_seconds=600, max_backoff_seconds=600), recorder)
            await bus.publish(numbered(3))
            await until(lambda: server.execute("ZCARD", held_key(PLAIN)) == 3)
            server.kill(signal.SIGKILL)
            await asyncio.to_thread(server.start)
            assert server.execute("ZCARD", held_key(PLAIN)) == 3
            make_due(server)
            await until(lambda: len(recorder.deliveries) == 6 and server.execute("ZCARD", held_key(PLAIN)) == 3)
            make_due(server)
            await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    assert sorted(recorder.attempts(), key=str) == [1, 1, 1, 2, 2, 2, 3, 3, 3]


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer) -> None:
    recorder = Recorder(Outcome.RETRY)
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, recorder)
        for _ in range(5):
            server.execute("SCRIPT", "FLUSH")
            await bus.publish(numbered(50))
            await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    assert len(recorder.deliveries) == 500


async def test_a_server_that_was_emptied_serves_again(server: RedisServer) -> None:
    recorder = Recorder()
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, recorder)
        server.execute("FLUSHALL")
        await bus.publish(numbered(20))
        await until(lambda: len(recorder.deliveries) == 20)


async def test_an_outage_is_told_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    with redis_server() as server, caplog.at_level(logging.WARNING):
        async with bus_at(server) as bus:
            await bus.subscribe(PLAIN, recorder)
            await bus.subscribe(plain(name="other", topic="other-topic"), recorder)
            server.kill()
            await until(lambda: len(caplog.records) >= 1)
            await asyncio.sleep(1.0)  # several tries of both
            await asyncio.to_thread(server.start)
            await until(lambda: "works again" in caplog.text)
            await bus.publish(numbered(1))
            await bus.publish(numbered(1, "other-topic"))
            await until(lambda: len(recorder.deliveries) == 2)

    told = [record.getMessage() for record in caplog.records]
    assert told[-1] == "the bus works again"
    assert len(told) == len(set(told)), told
    assert all(f"redis://127.0.0.1:{server.port}/0" in line for line in told[:-1])


def test_subscriptions_that_fail_in_different_ways_in_turn_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    outages = Outages()
    for _ in range(2):
        for _ in range(3):
            outages.began("one", BusUnavailable("cannot be reached"))
            outages.began("other", BusUnavailable("is full"))
        outages.ended("one")
        outages.ended("other")

    told = ["the bus waits: cannot be reached", "the bus waits: is full", "the bus works again"]
    assert [record.getMessage() for record in caplog.records] == told * 2


# Refusals


async def refusal(server: RedisServer, url: str | None = None) -> AgentTeamError:
    bus = open_bus("redis", SystemClock(), max_bytes=1000, redis_url=server.url if url is None else url)
    with patience():
        errors = await asyncio.gather(bus.publish(numbered(1)), bus.subscribe(PLAIN, Recorder()), return_exceptions=True)
        await bus.close()
    assert len({str(error) for error in errors}) == 1, errors
    assert isinstance(errors[0], AgentTeamError)
    assert "\n" not in str(errors[0])
    return errors[0]


async def test_a_wrong_password_is_one_clear_error_without_it() -> None:
    with redis_server(password="right-password") as server:
        error = await refusal(server, f"redis://:wrong@127.0.0.1:{server.port}/0")

    assert isinstance(error, ConfigurationError)
    assert str(error) == f"Redis at redis://127.0.0.1:{server.port}/0 refuses REDIS_URL's user or password; correct it"


async def test_a_full_server_says_so() -> None:
    with redis_server("--maxmemory", "1") as server:
        error = await refusal(server)

    assert isinstance(error, BusUnavailable)
    assert "is full; raise its maxmemory" in str(error)


async def test_a_full_server_can_be_emptied_by_a_worker_that_comes_back(server: RedisServer) -> None:
    recorder = Recorder()
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, recorder)
    async with bus_at(server) as bus:
        await bus.publish(numbered(100))
        server.execute("CONFIG", "SET", "maxmemory", 1)
        try:
            with pytest.raises(BusUnavailable, match="is full"):
                await bus.publish(numbered(1))
            await bus.subscribe(PLAIN, recorder)
            await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)
        finally:
            server.execute("CONFIG", "SET", "maxmemory", 0)

    assert len(recorder.deliveries) == 100


async def test_a_replica_says_so(server: RedisServer) -> None:
    with redis_server("--replicaof", "127.0.0.1", str(server.port)) as replica:
        await until(lambda: replica.execute("INFO", "replication")["master_link_status"] == "up")
        error = await refusal(replica)

    assert isinstance(error, BusUnavailable)
    assert "is a read-only replica" in str(error)


async def test_a_server_that_is_not_there_is_named() -> None:
    with redis_server() as server:
        pass
    error = await refusal(server)

    assert isinstance(error, BusUnavailable)
    assert f"Redis at redis://127.0.0.1:{server.port}/0 cannot be reached" in str(error)


def test_without_an_address_or_with_a_wrong_one_it_is_not_opened() -> None:
    with pytest.raises(ConfigurationError, match="set REDIS_URL"):
        open_bus("redis", SystemClock(), max_bytes=1000)
    with pytest.raises(ConfigurationError, match="is not a Redis URL"):
        open_bus("redis", SystemClock(), max_bytes=1000, redis_url="http://:secret@host")


async def test_a_subscription_takes_one_handler_and_a_closed_bus_takes_nothing(server: RedisServer) -> None:
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, Recorder())
        with pytest.raises(Conflict, match="worker has a handler already"):
            await bus.subscribe(PLAIN, Recorder())
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.publish(numbered(1))
    with pytest.raises(BusUnavailable, match="closed"):
        await bus.subscribe(PLAIN, Recorder())


@pytest.mark.parametrize("fields", [("x", "y"), ("d", "data", "a", "{"), ("d", "data", "a", "[1]")])
async def test_what_others_write_into_a_stream_is_delivered_without_attributes(
    server: RedisServer, fields: tuple[str, ...]
) -> None:
    recorder = Recorder()
    async with bus_at(server) as bus:
        await bus.subscribe(PLAIN, recorder)
        server.execute("XADD", stream_key("tasks"), "*", *fields)
        await until(lambda: len(recorder.deliveries) == 1)

    assert recorder.deliveries[0].attributes == {}


async def test_what_was_published_before_the_first_subscriber_came_is_delivered(server: RedisServer) -> None:
    recorder = Recorder()
    async with bus_at(server) as bus:
        await bus.publish(numbered(10))
        await bus.subscribe(PLAIN, recorder)
        await until(lambda: len(recorder.deliveries) == 10)


# What it costs


async def test_publishing_by_many_at_once_shares_round_trips(server: RedisServer) -> None:
    async with bus_at(server) as bus:
        await asyncio.gather(*(bus.publish([message]) for message in numbered(3)))
        before = server.execute("INFO", "stats")["total_reads_processed"]
        await asyncio.gather(*(bus.publish([message]) for message in numbered(200)))
        after = server.execute("INFO", "stats")["total_reads_processed"]

    assert server.execute("XLEN", stream_key("tasks")) == 203
    assert after - before <= 10


async def test_reading_and_acknowledging_take_few_calls(server: RedisServer) -> None:
    recorder = Recorder()
    async with bus_at(server) as bus:
        await bus.publish(numbered(2_000))
        server.execute("CONFIG", "RESETSTAT")
        await bus.subscribe(plain(concurrency=100), recorder)
        await until(lambda: server.execute("XLEN", stream_key("tasks")) == 0)

    calls = {name: figures["calls"] for name, figures in server.execute("INFO", "commandstats").items()}
    assert len(recorder.deliveries) == 2_000
    assert calls["cmdstat_xreadgroup"] < 100
    assert calls["cmdstat_xack"] < 100


async def test_how_far_a_subscription_is_behind_is_measured(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.bus.redis_subscriber._MEASURE_SECONDS", 0.0)
    hanging = Hanging()

    def backlog() -> float:
        return metrics.value("bus.backlog", subscription="measured")

    def oldest() -> float:
        return metrics.value("bus.oldest_unacked_seconds", subscription="measured")

    async with bus_at(server) as bus:
        await bus.publish(numbered(10))
        await bus.subscribe(plain(name="measured", concurrency=3), hanging)
        await until(lambda: backlog() == 10 and 0.5 < oldest() < 60)
        hanging.let_go.set()
        await until(lambda: backlog() == 0 and oldest() == 0)


async def test_the_oldest_is_what_nobody_has_read_or_what_nobody_has_settled(server: RedisServer) -> None:
    store = RedisStore(server.url, LUA, unavailable=BusUnavailable)
    group = Group(store, PLAIN, "reader")
    async with bus_at(server) as bus:
        await bus.publish(numbered(2))
        connection = await group.join(())
        measured = [await group.lag()]
        entries = await group.read(connection, 2, block_seconds=1)
        measured.append(await group.lag())
        await group.note([entry.id for entry in entries], [])
        measured.append(await group.lag())
        await connection.disconnect()
        await store.close()

    assert [backlog for backlog, _ in measured] == [2, 2, 0]
    assert 0 < measured[0][1] <= measured[1][1] < 60
    assert measured[2][1] == 0


# Redis Cluster


def test_the_keys_of_a_subscription_share_a_hash_slot() -> None:
    assert crc.key_slot(stream_key("tasks").encode()) == crc.key_slot(held_key(PLAIN).encode())
    assert len({crc.key_slot(stream_key(f"agent-{number}").encode()) for number in range(50)}) > 45


async def test_a_cluster_carries_every_topic_and_dead_letters_cross_it() -> None:
    topics = [f"topic-{number}" for number in range(8)]
    delivered, graveyard = Recorder(), Recorder()

    async def handler(delivery: Delivery) -> Outcome:
        await delivered(delivery)
        return Outcome.RETRY if delivery.data == b"0" else Outcome.ACK

    with ExitStack() as stack:
        nodes = [stack.enter_context(redis_server("--cluster-enabled", "yes")) for _ in range(2)]
        nodes[0].execute("CLUSTER", "ADDSLOTS", *range(8192))
        nodes[1].execute("CLUSTER", "ADDSLOTS", *range(8192, 16384))
        nodes[1].execute("CLUSTER", "SET-CONFIG-EPOCH", 2)
        nodes[0].execute("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
        await until(lambda: all(b"cluster_state:ok" in node.execute("CLUSTER", "INFO") for node in nodes))
        async with bus_at(nodes[0]) as bus:
            for topic in topics:
                await bus.subscribe(plain(name=f"{topic}.f", topic=topic, max_attempts=2), handler)
            await bus.subscribe(plain(name="graveyard", topic="dead", dead_letter_topic=None), graveyard)
            await bus.publish([message for topic in topics for message in numbered(20, topic)])
            # The dead letters may overtake what was not read with them.
            await until(lambda: len(graveyard.deliveries) == len(topics) and len(delivered.deliveries) == len(topics) * 21)

        assert all(node.execute("DBSIZE") > 0 for node in nodes)
    assert len(delivered.deliveries) == len(topics) * 21
