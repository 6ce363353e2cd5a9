"""What the driver and the network raise becomes the platform's errors, and nothing that they quote gets out."""

import asyncio
import inspect
import socket
import ssl
from contextlib import suppress
from typing import Any

import asyncpg
import orjson
import pytest
from asyncpg.exceptions import _base

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable
from shared.state.postgres import PostgresCaller, connected, translate
from tests.conftest import Postgres

SECRET = "hunter2"

# By SQLSTATE class, https://www.postgresql.org/docs/current/errcodes-appendix.html
TRANSIENT_CLASSES = {"08", "40", "53", "55", "57", "58", "XX"}
CONFIGURATION_CLASSES = {"28", "3D", "3F", "42"}
EXCEPTIONS: dict[str, type[AgentTeamError]] = {
    "25006": StoreUnavailable,  # read only: a failover, or a full disk
    "26000": ConfigurationError,  # a pooler that mixes sessions
}


def _intended(code: str | None) -> type[AgentTeamError]:
    if code is None:
        return StoreUnavailable
    if code in EXCEPTIONS:
        return EXCEPTIONS[code]
    if code[:2] in TRANSIENT_CLASSES:
        return StoreUnavailable
    return ConfigurationError if code[:2] in CONFIGURATION_CLASSES else Permanent


def _classes(base: type[BaseException]) -> list[type[BaseException]]:
    found = {cls for module in (asyncpg.exceptions, _base) for _, cls in inspect.getmembers(module, inspect.isclass)}
    return sorted((cls for cls in found if issubclass(cls, base)), key=lambda cls: (cls.__module__, cls.__name__))


SERVER_ERRORS = [cls for cls in _classes(asyncpg.PostgresError) if cls is not asyncpg.InvalidCachedStatementError]


@pytest.mark.parametrize("cls", SERVER_ERRORS, ids=lambda cls: cls.__name__)
def test_each_error_of_the_server_is_translated_by_its_sqlstate(cls: type[asyncpg.PostgresError]) -> None:
    error = cls(f"Key (password)=({SECRET}) already exists")
    error.detail = f"Failing row contains ({SECRET})"
    translated = translate(error)
    assert type(translated) is _intended(cls.sqlstate)
    _says_one_clear_line(translated)


def test_the_walk_over_the_driver_s_errors_finds_them() -> None:
    assert len(SERVER_ERRORS) > 200
    assert {_intended(cls.sqlstate) for cls in SERVER_ERRORS if issubclass(cls, asyncpg.PostgresError)} == {
        StoreUnavailable,
        ConfigurationError,
        Permanent,
    }


CLIENT_ERRORS: dict[type[BaseException], type[AgentTeamError]] = {
    asyncpg.InvalidCachedStatementError: StoreUnavailable,
    asyncpg.InterfaceError: StoreUnavailable,
    asyncpg.InternalClientError: StoreUnavailable,
    asyncpg.OutdatedSchemaCacheError: StoreUnavailable,
    asyncpg.ProtocolError: StoreUnavailable,
    asyncpg.TargetServerAttributeNotMatched: StoreUnavailable,
    asyncpg.ClientConfigurationError: ConfigurationError,
    asyncpg.UnsupportedClientFeatureError: ConfigurationError,
    asyncpg.UnsupportedServerFeatureError: ConfigurationError,
    _base.DataError: Permanent,
    ConnectionRefusedError: StoreUnavailable,
    ConnectionResetError: StoreUnavailable,
    FileNotFoundError: StoreUnavailable,
    PermissionError: StoreUnavailable,
    socket.gaierror: StoreUnavailable,
    ssl.SSLError: StoreUnavailable,
    OSError: StoreUnavailable,
    TimeoutError: StoreUnavailable,
    asyncio.TimeoutError: StoreUnavailable,
    ValueError: ConfigurationError,
    orjson.JSONEncodeError: Permanent,
    RuntimeError: StoreUnavailable,
    KeyError: StoreUnavailable,
}


@pytest.mark.parametrize("cls", CLIENT_ERRORS, ids=lambda cls: cls.__name__)
def test_each_error_of_the_driver_and_the_network_is_translated(cls: type[BaseException]) -> None:
    translated = translate(cls(f"cannot use {SECRET}"))
    assert type(translated) is CLIENT_ERRORS[cls]
    _says_one_clear_line(translated)


def test_no_error_class_of_the_driver_is_left_out() -> None:
    raised = _classes(asyncpg.InterfaceError) + _classes(asyncpg.InternalClientError)
    assert set(raised) <= CLIENT_ERRORS.keys()


def _says_one_clear_line(error: AgentTeamError) -> None:
    message = str(error)
    assert len(message) > 20
    assert "\n" not in message
    assert SECRET not in message


@pytest.mark.parametrize(
    "dsn",
    [
        "mysql://host/name",
        "nonsense",
        "postgresql://host:port/name",
        "postgresql://[::1/name",
        "postgresql://h/n?statement_cache_size=x",
    ],
)
async def test_what_is_no_connection_string_is_a_configuration_error(dsn: str) -> None:
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a PostgreSQL connection string"):
        await PostgresCaller(dsn).call("get_workflow", {"id": "wf_1"})
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not a PostgreSQL connection string"):
        async with connected(dsn):
            pass


@pytest.mark.parametrize("dsn", ["postgresql://postgres@/postgres?host=/nowhere", "postgresql://postgres@127.0.0.1:1/postgres"])
async def test_a_server_that_is_not_there_is_unavailable(dsn: str) -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        await PostgresCaller(dsn).call("get_workflow", {"id": "wf_1"})


async def test_an_unknown_database_is_a_configuration_error(postgres: Postgres) -> None:
    with pytest.raises(ConfigurationError, match="no database of the name in DATABASE_URL"):
        await PostgresCaller(postgres.dsn("nowhere")).call("get_workflow", {"id": "wf_1"})


async def test_an_unknown_user_is_a_configuration_error(postgres: Postgres) -> None:
    dsn = postgres.dsn("postgres").replace("postgres:@", "stranger:@")
    with pytest.raises(ConfigurationError, match="DATABASE_URL's user or password"):
        await PostgresCaller(dsn).call("get_workflow", {"id": "wf_1"})


async def test_a_database_that_is_not_migrated_says_how_to_migrate_it(empty_database: str) -> None:
    caller = PostgresCaller(empty_database)
    with pytest.raises(ConfigurationError, match="run `agent-team migrate`"):
        await caller.call("get_workflow", {"id": "wf_1"})
    await caller.close()


@pytest.fixture(params=["", "&statement_cache_size=0"], ids=["prepared", "unprepared"])
def dsn(database: str, request: pytest.FixtureRequest) -> str:
    return database + str(request.param)


async def test_calls_pass_json_in_and_out(dsn: str) -> None:
    caller = PostgresCaller(dsn)
    assert await caller.call("advance", {"events": [{"type": "tick"}], "max_running": 1}) == []
    assert await caller.call("get_workflow", {"id": "wf_1"}) is None
    letter = {
        "message_id": "m",
        "subscription": "s",
        "topic": "t",
        "function": "f",
        "cause": "c",
        "reason": "r",
        "data": "AAE=",
        "attributes": {},
    }
    first = await caller.call("record_dead_letter", {"letter": letter})
    assert await caller.call("record_dead_letter", {"letter": {**letter, "attempts": 5}}) == first
    await caller.close()


@pytest.mark.parametrize(
    "event",
    [{"type": "?", "secret": SECRET}, {"type": SECRET * 100_000}, {"type": "tick", "limit": SECRET}, {"type": "\0"}, {"type": {1}}],
)
async def test_what_cannot_be_applied_is_refused_without_being_quoted(database: str, event: dict[str, Any]) -> None:
    caller = PostgresCaller(database)
    with pytest.raises(Permanent) as raised:
        await caller.call("advance", {"events": [event]})
    assert type(raised.value) is Permanent
    _says_one_clear_line(raised.value)
    await caller.close()


async def test_the_pool_recovers_when_its_connections_were_ended(postgres: Postgres, database: str) -> None:
    caller = PostgresCaller(database)
    await caller.call("list_workflows", {})
    postgres.execute("select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'agent-team'")
    with suppress(StoreUnavailable):  # unless the driver has noticed already
        await caller.call("list_workflows", {})
    assert await caller.call("list_workflows", {}) == []
    await caller.close()


async def test_a_call_that_is_cut_off_is_unavailable(postgres: Postgres, database: str) -> None:
    caller = PostgresCaller(database)
    # What a transaction sees of the other connections stays as it was at its first look, so another one looks.
    async with connected(database) as holder, connected(database) as onlooker, holder.transaction():
        await holder.execute("lock table workflows")
        call = asyncio.create_task(caller.call("list_workflows", {}))
        cut_off = (
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(10):
            while await onlooker.fetchval(cut_off) is None:
                pass
        with pytest.raises(StoreUnavailable):
            await call
    await caller.close()


async def test_a_closed_caller_frees_its_connections_and_opens_new_ones_on_demand(postgres: Postgres, database: str) -> None:
    caller = PostgresCaller(database)
    await caller.close()
    await asyncio.gather(*(caller.call("list_workflows", {}) for _ in range(20)))
    await caller.close()
    async with connected(database) as connection:
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        async with asyncio.timeout(10):
            while await connection.fetchval(others):  # a process of the server's ends after its connection
                pass
    assert await caller.call("list_workflows", {}) == []
    await caller.close()
