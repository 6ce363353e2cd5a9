"""The state over a connection: asyncpg, pooled, errors translated.

Works through a transaction pooler (pgbouncer, Supabase's Supavisor) too. Nothing relies on a session, every call is one
transaction, and without prepared statements a call's parsing and execution reach the same server. They are off when `DATABASE_URL`
says `?statement_cache_size=0`, or `?pgbouncer=true` as the dashboard's own strings do, or names port 6543, where Supabase's
transaction pooler listens; a `statement_cache_size` that is given wins. The one setting that we ask for, the application's name,
is one that poolers keep per client.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import orjson

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable
from shared.state.sqlstates import error_for

_CONNECT_SECONDS = 10.0
_CALL_SECONDS = 60.0
_CLOSE_SECONDS = 10.0
_JSON_ARGUMENTS = {"events": "jsonb", "letter": "jsonb", "filter": "jsonb", "passages": "jsonb", "fork": "jsonb", "notes": "jsonb"}
_CACHE_SIZE = "statement_cache_size"
_POOLER = "pgbouncer"
_POOLER_PORT = ":6543"


class PostgresCaller:
    """Calls SQL functions over a small pool of connections, opened on first use in the running loop."""

    def __init__(self, dsn: str, *, connections: int = 4) -> None:
        self._dsn = dsn
        self._connections = connections
        self._pool: asyncpg.Pool | None = None
        self._opening = asyncio.Lock()
        self._statements: dict[tuple[str, ...], str] = {}

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        names = (function, *arguments)
        statement = self._statements.get(names)
        if statement is None:
            statement = self._statements[names] = _statement(function, tuple(arguments))
        try:
            values = [orjson.dumps(value).decode() if name in _JSON_ARGUMENTS else value for name, value in arguments.items()]
            pool = self._pool or await self._open()
            answer = await pool.fetchval(statement, *values, timeout=_CALL_SECONDS)
        except Exception as error:
            raise translate(error) from error
        return orjson.loads(answer) if isinstance(answer, str) else answer

    async def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            # When the time is up, asyncpg ends the connections that are still in use.
            with suppress(TimeoutError):
                await asyncio.wait_for(pool.close(), _CLOSE_SECONDS)

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                dsn, options = _options(self._dsn)
                self._pool = await asyncpg.create_pool(dsn, min_size=1, max_size=self._connections, reset=_leave_as_is, **options)
        return self._pool


@asynccontextmanager
async def connected(dsn: str, *, command_timeout_seconds: float = 30.0) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """One connection of its own, closed at the end. What the driver raises meanwhile is translated: errors as `Caller.call`."""
    try:
        bare, options = _options(dsn)
        connection = await asyncpg.connect(bare, command_timeout=command_timeout_seconds, **options)
    except Exception as error:
        raise translate(error) from error
    try:
        yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError) as error:
        raise translate(error) from error
    finally:
        with suppress(TimeoutError):
            await connection.close(timeout=_CLOSE_SECONDS)


def _options(dsn: str) -> tuple[str, dict[str, Any]]:
    """The connection string without what the server would not understand, and that and everything else as arguments."""
    options: dict[str, Any] = {"timeout": _CONNECT_SECONDS, "server_settings": {"application_name": "agent-team"}}
    bare, _, query = dsn.partition("?")
    kept, own = [], {}
    for parameter in query.split("&") if query else ():
        name, _, value = parameter.partition("=")
        if name in (_CACHE_SIZE, _POOLER):
            own[name] = value
        else:
            kept.append(parameter)
    if _CACHE_SIZE in own:
        options[_CACHE_SIZE] = int(own[_CACHE_SIZE])
    elif own.get(_POOLER) == "true" or any(host.endswith(_POOLER_PORT) for host in urlsplit(bare).netloc.split(",")):
        options[_CACHE_SIZE] = 0
    return (f"{bare}?{'&'.join(kept)}" if kept else bare), options


def _statement(function: str, names: tuple[str, ...]) -> str:
    casts = (f"{name} => ${index}{_cast(name)}" for index, name in enumerate(names, start=1))
    return f"select {function}({', '.join(casts)})"


def _cast(name: str) -> str:
    return f"::text::{_JSON_ARGUMENTS[name]}" if name in _JSON_ARGUMENTS else ""


async def _leave_as_is(_connection: Any) -> None:
    """Calls leave no session state behind, so the pool's round trip to reset one is not needed."""


_FIXES = {
    "28": "the database refuses DATABASE_URL's user or password; correct it",
    "3D": "the server has no database of the name in DATABASE_URL; correct it or create the database",
    "3F": "the database's schema is not the platform's; run `agent-team migrate`",
    "42": "the database's schema is not the platform's; run `agent-team migrate`",
    "42501": "the database user may not call the platform's functions; check DATABASE_URL's user",
    "26000": f"DATABASE_URL leads to a transaction pooler; add ?{_CACHE_SIZE}=0 to it",
    "42P05": f"DATABASE_URL leads to a transaction pooler; add ?{_CACHE_SIZE}=0 to it",
}
_NOT_A_DSN = "DATABASE_URL is not a PostgreSQL connection string: postgresql://user:password@host:port/name"


def translate(error: BaseException) -> AgentTeamError:
    """The platform's error for one of asyncpg's or the network's; https://www.postgresql.org/docs/current/errcodes-appendix.html.

    The message holds nothing of the driver's, which quotes values.
    """
    name = type(error).__name__
    match error:
        case asyncpg.InvalidCachedStatementError():
            return StoreUnavailable("the database's schema was changed meanwhile; the next call knows the new one")
        case asyncpg.PostgresError():
            return error_for(error.sqlstate or "XX000", name, fixes=_FIXES)
        case asyncpg.ClientConfigurationError():
            return ConfigurationError(_NOT_A_DSN)
        case asyncpg.UnsupportedClientFeatureError() | asyncpg.UnsupportedServerFeatureError():
            return ConfigurationError(f"DATABASE_URL asks for something that the driver or the server cannot do ({name})")
        case asyncpg.InterfaceError() if isinstance(error, ValueError):
            return Permanent(f"the database driver refuses an argument ({name})")
        case orjson.JSONEncodeError():
            return Permanent("an argument of the database call cannot be written as JSON")
        case ValueError():
            return ConfigurationError(_NOT_A_DSN)
        case OSError() | asyncpg.InterfaceError() | asyncpg.InternalClientError():
            return StoreUnavailable(f"the database cannot be reached ({name}); check DATABASE_URL, and that the server runs")
        case _:
            return StoreUnavailable(f"the database call failed ({name})")
