"""The state over a connection: asyncpg, pooled, errors translated.

Works through a transaction pooler too: nothing relies on a session, and `statement_cache_size=0` (in `DATABASE_URL` as a query
parameter of that name) turns server-side prepared statements off.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
import orjson

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable

_CONNECT_SECONDS = 10.0
_CALL_SECONDS = 60.0
_JSON_ARGUMENTS = {"events": "jsonb", "letter": "jsonb"}


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
        values = [orjson.dumps(value).decode() if name in _JSON_ARGUMENTS else value for name, value in arguments.items()]
        try:
            pool = self._pool or await self._open()
            answer = await pool.fetchval(statement, *values, timeout=_CALL_SECONDS)
        except Exception as error:
            raise translate(error) from error
        return orjson.loads(answer) if isinstance(answer, str) else answer

    async def close(self) -> None:
        if self._pool is not None:
            await self._pool.close()
            self._pool = None

    async def _open(self) -> asyncpg.Pool:
        async with self._opening:
            if self._pool is None:
                self._pool = await asyncpg.create_pool(
                    self._dsn,
                    min_size=1,
                    max_size=self._connections,
                    timeout=_CONNECT_SECONDS,
                    reset=_leave_as_is,
                    server_settings={"application_name": "agent-team"},
                )
        return self._pool


def _statement(function: str, names: tuple[str, ...]) -> str:
    casts = (f"{name} => ${index}{_cast(name)}" for index, name in enumerate(names, start=1))
    return f"select {function}({', '.join(casts)})"


def _cast(name: str) -> str:
    return f"::text::{_JSON_ARGUMENTS[name]}" if name in _JSON_ARGUMENTS else ""


async def _leave_as_is(_connection: Any) -> None:
    """Calls leave no session state behind, so the pool's round trip to reset one is not needed."""


_TRANSIENT_CLASSES = ("08", "40", "53", "55", "57", "58", "XX")
_CONFIGURATION_CLASSES = ("28", "3D", "3F", "42")


def translate(error: BaseException) -> AgentTeamError:
    """The platform's error for one of asyncpg's or the network's; https://www.postgresql.org/docs/current/errcodes-appendix.html."""
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or "XX000"
        if code == "42883":
            return ConfigurationError("the database's schema is not the platform's; run `agent-team migrate`")
        if code == "42501":
            return ConfigurationError("the database user may not call the platform's functions; check DATABASE_URL's user")
        if code.startswith(_CONFIGURATION_CLASSES):
            return ConfigurationError(f"the database refuses DATABASE_URL or its schema is not the platform's (SQLSTATE {code})")
        if code.startswith(_TRANSIENT_CLASSES):
            return StoreUnavailable(f"the database cannot work now (SQLSTATE {code}, {type(error).__name__})")
        return Permanent(f"the database refuses the call (SQLSTATE {code}, {type(error).__name__})")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError("DATABASE_URL is not a PostgreSQL connection string: postgresql://user:password@host:port/name")
    if isinstance(error, asyncpg.DataError):
        return Permanent(f"the database driver refuses an argument ({type(error).__name__})")
    if isinstance(error, OSError | asyncio.TimeoutError | asyncpg.InterfaceError | asyncpg.InternalClientError):
        return StoreUnavailable(f"the database cannot be reached ({type(error).__name__})")
    return StoreUnavailable(f"the database call failed ({type(error).__name__})")
