"""What the Redis guards promise beyond all guards, on real servers and their own clock: see tests/conformance for the rest."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, nullcontext

import pytest
from redis import crc

from shared.clock import ManualClock, SystemClock
from shared.errors import AgentTeamError, CircuitOpen, ConfigurationError, StoreUnavailable
from shared.guards import Done, Guards, InFlight, New, Window, open_guards
from shared.guards.redis import LUA, key_of, open_redis
from shared.redis.store import RedisStore
from tests.support.servers import RedisServer, patience, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as one:
        yield one


@pytest.fixture(autouse=True)
def patient(request: pytest.FixtureRequest) -> Iterator[None]:
    """Only where nobody answers is it given up in time."""
    with nullcontext() if "silent" in request.node.name else patience():
        yield


@asynccontextmanager
async def guards_at(url: str) -> AsyncIterator[Guards]:
    """Guards whose store's errors come through as they are."""
    guards = open_redis(url, SystemClock())
    try:
        yield guards
    finally:
        await guards.close()


@pytest.fixture
async def guards(server: RedisServer) -> AsyncIterator[Guards]:
    server.execute("FLUSHALL")
    async with guards_at(server.url) as opened:
        yield opened


async def claim(guards: Guards, key: str = "k", *, lease: float = 10.0) -> New | InFlight | Done:
    return await guards.idempotency.claim(key, lease_seconds=lease, ttl_seconds=100)


WINDOWS = [Window("minute", 1000, 10, 60, 60), Window("day", 100, 1, 3600, 86_400)]


async def everything(guards: Guards, name: str = "x") -> None:
    """Each operation once."""
    answer = await claim(guards, name)
    assert isinstance(answer, New)
    assert await guards.idempotency.complete(name, token=answer.token, result=b"r")
    assert not await guards.idempotency.release(name, token=answer.token)
    assert await guards.limiter.reserve(name, rate=1, burst=1, windows=WINDOWS) == 0
    await guards.limiter.settle(name, window="minute", cost=-3, age_seconds=0)
    await guards.limiter.penalise(name, 1)
    await guards.breaker.before(name)
    await guards.breaker.after(name, success=False)
    assert await guards.breaker.state(name) == "CLOSED"
    await guards.cache.put(name, b"v", ttl_seconds=5)
    assert await guards.cache.get(name) == b"v"


async def test_leases_and_waits_are_kept_by_the_servers_clock(guards: Guards) -> None:
    # What is asked in one turn is decided in one go.
    first, running = await asyncio.gather(claim(guards, lease=1.0), claim(guards))
    assert isinstance(first, New)
    assert isinstance(running, InFlight)
    assert 0 < running.seconds <= 1.0
    now, later = await asyncio.gather(*(guards.limiter.reserve("b", rate=1, burst=1) for _ in range(2)))
    assert (now, 0 < later <= 1.0) == (0, True)

    await asyncio.sleep(running.seconds)

    assert not await guards.idempotency.complete("k", token=first.token, result=None)
    assert isinstance(await claim(guards), New)


async def test_every_key_has_a_time_to_live(server: RedisServer, guards: Guards) -> None:
    await everything(guards)

    keys = server.execute("KEYS", "*")
    assert len(keys) == 5
    assert all(0 < server.execute("PTTL", key) <= 86_400_000 for key in keys)


async def test_every_operation_is_one_call_of_one_script(server: RedisServer, guards: Guards) -> None:
    await everything(guards, "warm")
    server.execute("CONFIG", "RESETSTAT")
    await everything(guards)

    calls = {name: figures["calls"] for name, figures in server.execute("INFO", "commandstats").items()}
    assert (calls["cmdstat_evalsha"], calls.get("cmdstat_eval", 0)) == (9, 0)
    assert calls["cmdstat_get"] == 1


async def test_many_callers_share_round_trips_and_each_gets_its_own_answer(server: RedisServer, guards: Guards) -> None:
    await claim(guards, "warm")
    before = server.execute("INFO", "stats")["total_reads_processed"]
    await asyncio.gather(*(guards.cache.put(str(number), str(number).encode(), ttl_seconds=60) for number in range(500)))
    values = await asyncio.gather(*(guards.cache.get(str(number)) for number in range(500)))
    after = server.execute("INFO", "stats")["total_reads_processed"]

    assert values == [str(number).encode() for number in range(500)]
    assert after - before < 100


async def test_an_error_of_one_caller_leaves_the_others_untouched(server: RedisServer, guards: Guards) -> None:
    server.execute("SET", key_of("claim", "7"), "not a record")

    answers = await asyncio.gather(*(claim(guards, str(number)) for number in range(20)), return_exceptions=True)

    assert [number for number, answer in enumerate(answers) if not isinstance(answer, New)] == [7]
    assert isinstance(answers[7], StoreUnavailable)


async def test_a_cancelled_caller_leaves_the_others_untouched(guards: Guards) -> None:
    tasks = [asyncio.create_task(claim(guards, str(number))) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(answer, New) for answer in answers[1::2])
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert isinstance(await claim(guards, "next"), New)


async def test_closing_lets_calls_under_way_end(server: RedisServer) -> None:
    guards = open_redis(server.url, SystemClock())
    tasks = [asyncio.create_task(claim(guards, f"closing-{number}")) for number in range(20)]
    await asyncio.sleep(0)

    await guards.close()

    answers = await asyncio.gather(*tasks)
    assert all(isinstance(answer, New) for answer in answers)


async def test_a_claim_whose_answer_was_lost_can_be_asked_for_again(server: RedisServer) -> None:
    store = RedisStore(server.url, LUA)
    script, key = store.script("claim"), key_of("claim", "lost answer")
    first = await store.run(script, key, "token", 10.0, 10_000)
    again = await store.run(script, key, "token", 10.0, 10_000)
    other = await store.run(script, key, "another", 10.0, 10_000)
    await store.close()

    assert (first, again, other[0]) == ([b"new"], [b"new"], b"in_flight")


async def test_a_correction_whose_answer_was_lost_gives_back_once(server: RedisServer, guards: Guards) -> None:
    store = RedisStore(server.url, LUA)
    script, keys = store.script("settle"), (key_of("bucket", "b"), f"{key_of('settled', 'b')}:mark")
    for limit in ([Window("minute", 10, 10, 60, 60)], []):
        await guards.limiter.reserve("b", rate=10, burst=10, windows=limit)
    answers = [await store.run(script, keys, "minute", -4.0, 0.0, 60_000) for _ in range(2)]
    await store.close()

    assert answers == [1, 0]
    assert await guards.limiter.reserve("b", rate=10, burst=10, windows=[Window("minute", 10, 4, 60, 60)]) == 0
    assert await guards.limiter.reserve("b", rate=10, burst=10, windows=[Window("minute", 10, 1, 60, 60)]) > 50


async def test_a_window_outlives_its_bucket_by_itself(server: RedisServer, guards: Guards) -> None:
    key = key_of("bucket", "b")
    await guards.limiter.reserve("b", rate=1, burst=1, windows=WINDOWS)
    await guards.limiter.reserve("b", rate=1, burst=1)
    await guards.limiter.penalise("b", 1)

    assert server.execute("PTTL", key) == pytest.approx(2 * 3_600_000, abs=10_000)


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer, guards: Guards) -> None:
    await everything(guards, "before")
    server.execute("SCRIPT", "FLUSH")

    await everything(guards, "alone")
    server.execute("SCRIPT", "FLUSH")
    claims = await asyncio.gather(*(claim(guards, f"many {number}") for number in range(50)))
    assert all(isinstance(one, New) for one in claims)


async def test_that_a_breaker_is_closed_is_believed_for_a_second_and_no_longer(server: RedisServer, guards: Guards) -> None:
    clock = ManualClock()
    here = open_redis(server.url, clock)
    await here.breaker.before("m")
    for _ in range(5):
        await guards.breaker.after("m", success=False)

    await clock.advance(0.99)
    await here.breaker.before("m")
    await clock.advance(0.01)
    with pytest.raises(CircuitOpen):
        await here.breaker.before("m")
    await here.close()


async def test_a_restarted_server_is_found_again_without_an_error() -> None:
    with redis_server("--appendonly", "yes") as server:
        async with guards_at(server.url) as guards:
            await asyncio.gather(*(everything(guards, f"before {number}") for number in range(10)))
            server.kill(signal.SIGTERM)
            await asyncio.to_thread(server.start)

            assert await claim(guards, "before 3") == Done(b"r")
            await asyncio.gather(*(everything(guards, f"after {number}") for number in range(10)))


# Errors


async def refusal(url: str) -> AgentTeamError:
    """The one error that every operation that writes gives."""
    async with guards_at(url) as guards:
        errors = await asyncio.gather(
            claim(guards),
            guards.limiter.reserve("b", rate=1, burst=1),
            guards.breaker.after("m", success=False),
            guards.cache.put("k", b"v", ttl_seconds=1),
            return_exceptions=True,
        )
    assert len({str(error) for error in errors}) == 1, errors
    assert isinstance(errors[0], AgentTeamError)
    return errors[0]


@pytest.mark.parametrize("login", ["", ":wrong-password@", "somebody:wrong-password@"])
async def test_a_refused_login_is_one_clear_error_without_the_password(login: str) -> None:
    with redis_server(password="right-password") as server:
        error = await refusal(f"redis://{login}127.0.0.1:{server.port}/0")

        assert isinstance(error, ConfigurationError)
        assert str(error) == f"Redis at redis://127.0.0.1:{server.port}/0 refuses REDIS_URL's user or password; correct it"
        async with guards_at(server.url) as guards:
            await everything(guards)


async def test_a_user_who_may_not_do_it_is_told_what_to_grant() -> None:
    with redis_server() as server:
        for rules in ("+@all ~nothing:*", "+eval +evalsha ~*"):
            server.execute("ACL", "SETUSER", "limited", "on", ">pass", "reset", "on", ">pass", *rules.split())
            async with guards_at(f"redis://limited:pass@127.0.0.1:{server.port}") as guards:
                with pytest.raises(ConfigurationError, match="does not allow"):
                    await claim(guards)


async def test_a_full_server_says_so() -> None:
    with redis_server("--maxmemory", "1") as server:
        error = await refusal(server.url)

    assert isinstance(error, StoreUnavailable)
    assert "is full; raise its maxmemory" in str(error)


async def test_a_read_only_replica_says_so() -> None:
    with redis_server("--replicaof", "127.0.0.1", "1") as server:  # where nobody listens
        error = await refusal(server.url)

    assert isinstance(error, StoreUnavailable)
    assert "is a read-only replica; REDIS_URL must name the primary" in str(error)


async def test_a_server_that_is_not_there_is_reported_at_once() -> None:
    started = time.monotonic()
    error = await refusal("redis://user:secret@127.0.0.1:1/0")

    assert isinstance(error, StoreUnavailable)
    assert "cannot be reached" in str(error)
    assert "secret" not in str(error)
    assert time.monotonic() - started < 5


@asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[int]:
    """Something that is not Redis; without an answer it is silent."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer and await reader.read(1024):
            writer.write(answer)
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


async def test_a_server_that_is_not_redis_is_a_mistake_in_the_url() -> None:
    async with listening(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        error = await refusal(f"redis://127.0.0.1:{port}")

    assert isinstance(error, ConfigurationError)
    assert "is not Redis; correct REDIS_URL" in str(error)


async def test_a_silent_server_is_given_up_in_time_by_all_who_wait_for_it() -> None:
    started = time.monotonic()
    async with listening(b"") as port, guards_at(f"redis://127.0.0.1:{port}") as guards:
        errors = await asyncio.gather(*(claim(guards, str(number)) for number in range(5000)), return_exceptions=True)

    assert {type(error) for error in errors} == {StoreUnavailable}
    assert {str(error) for error in errors} == {f"Redis at redis://127.0.0.1:{port} does not answer in time"}
    # An answer is waited for for 2 s. Were one batch given up after the other, it would take 20.
    assert time.monotonic() - started < 10


async def test_the_error_is_logged_once_and_the_guards_fall_back(caplog: pytest.LogCaptureFixture) -> None:
    with redis_server(password="right-password") as server:
        guards = open_guards("redis", SystemClock(), redis_url=f"redis://:wrong@127.0.0.1:{server.port}/0", instances=2)
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                with pytest.raises(StoreUnavailable, match="user or password"):
                    await claim(guards)
                await guards.cache.put("k", b"v", ttl_seconds=1)
                await guards.breaker.before("m")
                assert await guards.limiter.reserve("b", rate=1, burst=100) == 0
        await guards.close()

    assert sorted(getattr(record, "guard", "") for record in caplog.records) == ["breaker", "cache", "idempotency", "limiter"]


# Redis Cluster


@pytest.mark.parametrize("name", ["gemini-2.5-pro", "researcher:/agent-team/orchestrator#wf_1/plan/1", "with {braces"])
def test_all_records_of_a_name_share_a_hash_slot_and_names_are_spread(name: str) -> None:
    keys = [
        *(key_of(guard, name) for guard in ("claim", "bucket", "breaker", "cache")),
        f"{key_of('settled', name)}:0123456789abcdef",
    ]
    assert len({crc.key_slot(key.encode()) for key in keys}) == 1
    assert len({crc.key_slot(key_of("claim", f"{name}/{number}").encode()) for number in range(100)}) > 90


async def test_a_cluster_is_recognised_and_every_operation_works_there() -> None:
    with ExitStack() as stack:
        nodes = [stack.enter_context(redis_server("--cluster-enabled", "yes")) for _ in range(2)]
        nodes[0].execute("CLUSTER", "ADDSLOTS", *range(8192))
        nodes[1].execute("CLUSTER", "ADDSLOTS", *range(8192, 16384))
        nodes[1].execute("CLUSTER", "SET-CONFIG-EPOCH", 2)
        nodes[0].execute("CLUSTER", "MEET", "127.0.0.1", nodes[1].port)
        async with asyncio.timeout(10):
            while any(b"cluster_state:ok" not in node.execute("CLUSTER", "INFO") for node in nodes):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        async with guards_at(nodes[0].url) as guards:
            await asyncio.gather(*(everything(guards, f"name-{number}") for number in range(50)))

        assert all(node.execute("DBSIZE") > 20 for node in nodes)
