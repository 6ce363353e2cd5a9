"""The way to Redis: scripts and single commands, coalesced, over a small pool of connections.

A script is called by its hash and sent whole when the server does not know it, as after a restart. A caller who finds a connection
free uses it at once; what is asked meanwhile goes out together over the next free one, so many callers share a round trip and none
waits for a timer. A server that turns out to be part of a Redis Cluster is talked to as one from then on: every call names keys of
one slot. Redis 6 or later; no functions, no modules.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import ConnectionError as DriverConnectionError
from redis.exceptions import MovedError, NoScriptError, ResponseError

from shared.config import redact_url
from shared.errors import AgentTeamError, BusUnavailable, ConfigurationError, StoreUnavailable
from shared.redis.errors import translate

SERVER_TIME: Final = Path(__file__).with_name("server_time.lua").read_text(encoding="utf-8")

_CONNECT_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 2.0
_CONNECTION_SECONDS: Final = 2.0
_CONNECTIONS: Final = 2  # one event loop can't keep more busy; the second goes on when an answer is late on the first
_BATCH: Final = 256
_CLUSTER_CONNECTIONS: Final = _CONNECTIONS * _BATCH  # to each server: commands of a batch go out side by side
_RETRIES: Final = 2

Argument = str | bytes | int | float


class Script(NamedTuple):
    """A Lua script and the name that the server knows it by."""

    source: str
    sha: str

    def command(self, keys: Sequence[str], *arguments: "Argument") -> "Command":
        """The call of the script. In a cluster its keys must share a hash tag."""
        tail = (len(keys), *keys, *arguments)
        return Command(("EVALSHA", self.sha, *tail), ("EVAL", self.source, *tail))


class Command(NamedTuple):
    """Words of a command; and of its twin that carries the script's source, where it is a script."""

    words: tuple[Argument, ...]
    whole: tuple[Argument, ...]


class _Asked(NamedTuple):
    commands: Sequence[Command]
    answers: asyncio.Future[list[Any]]


class RedisStore:
    """Calls to one Redis, or one Redis Cluster. Nothing is connected before the first call, which belongs to one event loop.

    Its scripts are in the folder `lua`; `now_lua` is the Lua that sets `now`, in seconds, for each of them. `unavailable` is what
    is raised when the server cannot be used for now. Raises ConfigurationError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        lua: Path,
        *,
        now_lua: str = SERVER_TIME,
        unavailable: type[StoreUnavailable] | type[BusUnavailable] = StoreUnavailable,
    ) -> None:
        self._url = url
        self._where = redact_url(url)
        self._lua = lua
        self._now_lua = now_lua
        self._unavailable = unavailable
        self._client: Redis | RedisCluster = Redis.from_pool(_pool(url, self._where))
        self._retired: Redis | None = None
        self._waiting: deque[_Asked] = deque()
        self._flights = 0
        self._landed = asyncio.Event()
        self._batches: set[asyncio.Task[None]] = set()
        """Nobody else holds on to these tasks."""

    def script(self, name: str) -> Script:
        """The script in `name`.lua."""
        source = self._now_lua + (self._lua / f"{name}.lua").read_text(encoding="utf-8")
        return Script(source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())

    async def run(self, script: Script, keys: str | tuple[str, ...], *arguments: Argument) -> Any:
        """The answer of a script over one key, or several with the same hash tag.

        It must change nothing for the worse when it is run twice: a lost answer is asked for again.
        """
        return await self.execute(script.command((keys,) if isinstance(keys, str) else keys, *arguments))

    async def call(self, *words: Argument) -> Any:
        """The answer of a command whose second word is its key."""
        return await self.execute(Command(words, words))

    async def execute(self, command: Command) -> Any:
        """The answer. Raises the transient error or ConfigurationError, see `shared.redis.errors`."""
        [answer] = await self.execute_all([command])
        return answer

    async def execute_all(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, in order. Raises like `execute` when a command failed; the others may have been carried out."""
        try:
            if self._flights < _CONNECTIONS and not self._waiting:
                answers = await self._fly_alone(commands)
            else:
                asked: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
                self._waiting.append(_Asked(commands, asked))
                answers = await asked
        except Exception as error:
            raise self.translated(error) from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise self.translated(answer) from answer
        return answers

    async def connection(self, key: str) -> AbstractConnection:
        """A connection of the caller's own to the server that holds `key`, for calls that block."""
        client = self._client
        if isinstance(client, RedisCluster):
            await client.initialize()
            node = client.get_node_from_key(key)
            if node is None:
                raise self._unavailable(f"the Redis Cluster at {self._where} cannot answer now")
            connection = node.connection_class(**node.connection_kwargs)
        else:
            connection = client.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection

    def translated(self, error: Exception) -> AgentTeamError:
        """The platform's error for what went wrong on a connection."""
        return translate(error, self._where, unavailable=self._unavailable)

    async def close(self) -> None:
        """Let calls under way end, and close the connections."""
        while self._flights:
            self._landed.clear()
            await self._landed.wait()
        await self._client.aclose()
        if self._retired is not None:
            await self._retired.aclose()

    async def _fly_alone(self, commands: Sequence[Command]) -> list[Any]:
        self._flights += 1
        try:
            return await self._answers(commands)
        except Exception as error:
            self._fail_waiting(error)
            raise
        finally:
            self._land()

    async def _fly_together(self, batch: Sequence[_Asked]) -> None:
        commands = [command for asked in batch for command in asked.commands]
        answers: list[Any] = [self._unavailable(f"a call of Redis at {self._where} was cut off")] * len(commands)
        try:
            answers = await self._answers(commands)
        except Exception as error:
            answers = [error] * len(commands)
            self._fail_waiting(error)
        finally:
            following = iter(answers)
            for asked in batch:
                own = list(islice(following, len(asked.commands)))
                if not asked.answers.done():  # its caller may be gone
                    asked.answers.set_result(own)
            self._land()

    def _land(self) -> None:
        """Hand the connection on to those who wait."""
        self._flights -= 1
        if self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
            self._flights += 1
            task = asyncio.get_running_loop().create_task(self._fly_together(batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)
        self._landed.set()

    def _fail_waiting(self, error: Exception) -> None:
        """A flight that was lost has used up the time that a call may take: who waits behind it must not wait for another."""
        while self._waiting:
            _, answers = self._waiting.popleft()
            if not answers.done():
                answers.set_exception(error)

    async def _answers(self, commands: Sequence[Command]) -> list[Any]:
        answers = await self._send([command.words for command in commands])
        again = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError | MovedError)]
        if again:
            if any(isinstance(answers[index], MovedError) for index in again):
                self._become_cluster()
            for index, answer in zip(again, await self._send([commands[index].whole for index in again]), strict=True):
                answers[index] = answer
        return answers

    async def _send(self, commands: Sequence[tuple[Argument, ...]]) -> list[Any]:
        client = self._client
        if isinstance(client, RedisCluster):
            # Keys live on different servers, so commands go out one by one.
            return await asyncio.gather(*(client.execute_command(*words) for words in commands), return_exceptions=True)
        if len(commands) == 1:
            try:
                return [await client.execute_command(*commands[0])]  # type: ignore[no-untyped-call]
            except ResponseError as error:
                return [error]
        pipeline = client.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        return await pipeline.execute(raise_on_error=False)

    def _become_cluster(self) -> None:
        if isinstance(self._client, Redis):
            self._retired = self._client  # another flight may still be using it
            self._client = RedisCluster.from_url(
                self._url,
                socket_timeout=_ANSWER_SECONDS,
                socket_connect_timeout=_CONNECT_SECONDS,
                max_connections=_CLUSTER_CONNECTIONS,
            )


def _pool(url: str, where: str) -> BlockingConnectionPool:
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_CONNECTION_SECONDS,
            socket_timeout=_ANSWER_SECONDS,
            socket_connect_timeout=_CONNECT_SECONDS,
            # A server that does not answer is not asked again: the caller has waited long enough. A broken connection is made anew.
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=0.2), _RETRIES, (DriverConnectionError,)),
        )
        pool.make_connection()  # type: ignore[no-untyped-call]  # refuses options that no connection has; connects nothing
    except (ValueError, TypeError) as error:
        raise ConfigurationError(f"REDIS_URL ({where}) is not a Redis URL: redis://user:password@host:6379/0") from error
    return pool
