"""Commands over plain connections to one server.

redis-py connects, with encryption, login and database, and reads what comes back. What its client does around every call costs more
time than the call itself, so commands are packed here, go out in one write, and have one time limit together.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from hiredis import pack_command
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import ResponseError

from shared.errors import ConfigurationError

CONNECT_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 2.0
_RETRIES: Final = 2

Argument = str | bytes | int | float


class Connections:
    """As many connections as there are calls of `ask` at once; they are kept. Nothing is connected before the first.

    `where` is the server's address, fit to be shown. Raises ConfigurationError for a URL that is none.
    """

    def __init__(self, url: str, where: str) -> None:
        try:
            self._factory = ConnectionPool.from_url(
                url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                # A broken connection is made anew. A server that does not answer is not asked again: that has taken long enough.
                retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.2), _RETRIES, (DriverConnectionError,)),
            )
            self.make()  # refuses options that no connection has; connects nothing
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"REDIS_URL ({where}) is not a Redis URL: redis://user:password@host:6379/0") from error
        self._free: list[AbstractConnection] = []

    def make(self) -> AbstractConnection:
        """A connection for the caller alone, not connected yet."""
        connection: AbstractConnection = self._factory.make_connection()  # type: ignore[no-untyped-call]
        return connection

    async def ask(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        """The answers, see `ask_over`. When the connection breaks all is asked again, though it may have been carried out."""
        connection = self._free.pop() if self._free else self.make()
        try:
            if connection.is_connected and await connection.can_read():
                await connection.disconnect()  # the server has closed it
            await connect(connection)
            answers: list[Any] = await connection.retry.call_with_retry(
                partial(ask_over, connection, commands), lambda _: connection.disconnect(nowait=True)
            )
        finally:
            self._free.append(connection)
        return answers

    async def close(self) -> None:
        """Close what nobody uses."""
        while self._free:
            await self._free.pop().disconnect()


async def connect(connection: AbstractConnection) -> None:
    """Connect, unless it is. Raises the driver's errors."""
    if not connection.is_connected:
        connection.socket_timeout = ANSWER_SECONDS
        await connection.connect()  # type: ignore[no-untyped-call]
        connection.socket_timeout = None  # from here on `ask_over` limits the time


async def ask_over(connection: AbstractConnection, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
    """The answers, in order, a ResponseError for what the server refuses. Raises the driver's errors and TimeoutError."""
    packed = [pack_command(words) for words in commands]  # type: ignore[arg-type]  # its stub means any number of words
    try:
        async with asyncio.timeout(ANSWER_SECONDS) as limit:
            await connection.send_packed_command(packed)
            limit.reschedule(asyncio.get_running_loop().time() + ANSWER_SECONDS)
            return [await _answer(connection) for _ in packed]
    except BaseException:
        await connection.disconnect(nowait=True)  # answers may be on their way: the next call must not take them for its own
        raise


async def _answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
