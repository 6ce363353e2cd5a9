"""Calls that share connections: whose answer is whose, whatever is refused, cut off or late."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from shared.guards.redis import LUA
from shared.redis.connections import Connections
from shared.redis.store import RedisStore
from tests.support.live import until
from tests.support.servers import RedisServer, patience, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as one:
        yield one


@pytest.fixture
async def connections(server: RedisServer) -> AsyncIterator[Connections]:
    server.execute("FLUSHALL")
    opened = Connections(server.url, server.url)
    yield opened
    await opened.close()


@pytest.fixture
async def store(server: RedisServer) -> AsyncIterator[RedisStore]:
    server.execute("FLUSHALL")
    opened = RedisStore(server.url, LUA)
    yield opened
    await opened.close()


@pytest.fixture
def patient() -> Iterator[None]:
    with patience():
        yield


def somebody_blocks(server: RedisServer) -> bool:
    return bool(server.execute("INFO", "clients")["blocked_clients"])


@pytest.mark.usefixtures("patient")
async def test_what_is_refused_leaves_the_other_answers_in_their_places(connections: Connections) -> None:
    answers = await connections.ask([("SET", "k", "v"), ("INCR", "k"), ("GET", "k"), ("NO SUCH",), ("GET", b"k")])

    assert [type(answer) for answer in answers] == [bytes, ResponseError, bytes, ResponseError, bytes]
    assert answers[::2] == [b"OK", b"v", b"v"]


@pytest.mark.usefixtures("patient")
async def test_words_arrive_as_they_are(connections: Connections) -> None:
    words = ("two words", b"\r\n\x00", "é", -3, 0.1 + 0.2, "x" * 1_000_000)

    [_, stored] = await connections.ask([("RPUSH", "list", *words), ("LRANGE", "list", 0, -1)])

    assert stored == [b"two words", b"\r\n\x00", "é".encode(), b"-3", b"0.30000000000000004", b"x" * 1_000_000]


@pytest.mark.usefixtures("patient")
async def test_the_answer_to_a_cancelled_call_is_given_to_nobody_else(server: RedisServer, connections: Connections) -> None:
    cancelled = asyncio.create_task(connections.ask([("ECHO", "not yours"), ("BLPOP", "empty", 30), ("ECHO", "nor this")]))
    await until(lambda: somebody_blocks(server))
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled

    assert await connections.ask([("ECHO", "yours")]) == [b"yours"]


async def test_the_answer_that_comes_too_late_is_given_to_nobody_else(server: RedisServer, connections: Connections) -> None:
    with pytest.raises(TimeoutError):
        await connections.ask([("ECHO", "not yours"), ("BLPOP", "empty", 30)])

    assert await connections.ask([("ECHO", "yours")]) == [b"yours"]


@pytest.mark.usefixtures("patient")
async def test_a_connection_that_the_server_closed_is_made_anew(server: RedisServer, connections: Connections) -> None:
    for number in range(3):
        assert await connections.ask([("INCR", "k")]) == [number + 1]
        server.execute("CLIENT", "KILL", "TYPE", "normal")


@pytest.mark.usefixtures("patient")
async def test_what_nobody_asked_for_is_nobodys_answer() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            if line in (b"CLIENT\r\n", b"ECHO\r\n"):
                writer.write(b"+OK\r\n" if line == b"CLIENT\r\n" else b"+yours\r\n-ERR closing an idle connection\r\n")
        writer.close()

    async with await asyncio.start_server(talk, "127.0.0.1", 0) as listening:
        url = f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}?protocol=2"
        connections = Connections(url, url)
        for _ in range(3):
            assert await connections.ask([("ECHO", "yours")]) == [b"yours"]
        await connections.close()


@pytest.mark.usefixtures("patient")
async def test_a_late_answer_holds_up_only_its_own_flight(server: RedisServer, store: RedisStore) -> None:
    late = asyncio.create_task(store.call("BLPOP", "list", 30))
    await until(lambda: somebody_blocks(server))

    assert await store.call("GET", "k") is None
    server.execute("RPUSH", "list", "v")
    assert await late == [b"list", b"v"]


@pytest.mark.usefixtures("patient")
async def test_what_finds_no_place_beside_a_late_answer_goes_without_it(server: RedisServer, store: RedisStore) -> None:
    late = asyncio.create_task(store.call("BLPOP", "list", 30))
    many = [asyncio.create_task(store.call("GET", "k")) for _ in range(1000)]

    assert await many[-1] is None
    assert not late.done()
    server.execute("RPUSH", "list", "v")
    await asyncio.gather(late, *many)


@pytest.mark.usefixtures("patient")
async def test_callers_of_one_turn_share_a_round_trip(server: RedisServer, store: RedisStore) -> None:
    await store.call("GET", "k")
    # On one connection, since how often the server reads of one that begins or ends depends on how fast it is.
    with Redis.from_url(server.url, single_connection_client=True) as onlooker:
        before = onlooker.info("stats")["total_reads_processed"]
        await asyncio.gather(*(store.call("GET", "k") for _ in range(100)))
        after = onlooker.info("stats")["total_reads_processed"]

    assert after - before == 2, "one for them all, and one for the question"
