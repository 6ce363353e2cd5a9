"""The way to Redis: scripts and single commands, coalesced, over a small pool of connections.

A script is called by its hash and sent whole when the server does not know it, as after a restart. What is asked in one turn of the
event loop goes out together over a free connection, and what is asked while none is free over the next one: many callers share a
round trip and none waits for a timer. A server that turns out to be part of a Redis Cluster is talked to as one from then on: every
call names keys of one slot. Redis 6 or later; no functions, no modules.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis.asyncio import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import MovedError, NoScriptError

from shared.config import redact_url
from shared.errors import AgentTeamError, BusUnavailable, StoreUnavailable
from shared.redis.connections import ANSWER_SECONDS, CONNECT_SECONDS, Argument, Connections, connect
from shared.redis.errors import translate

SERVER_TIME: Final = Path(__file__).with_name("server_time.lua").read_text(encoding="utf-8")

_CONNECTIONS: Final = 2  # one event loop can't keep more busy; the second goes on when an answer is late on the first
_BATCH: Final = 256
_CLUSTER_CONNECTIONS: Final = _CONNECTIONS * _BATCH  # to each server: commands of a batch go out side by side


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
        self._connections = Connections(url, self._where)
        self._cluster: RedisCluster | None = None
        self._waiting: deque[_Asked] = deque()
        self._flights = 0
        self._landed = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
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
        asked: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(commands, asked))
        if len(self._waiting) == 1:
            self._take_off()
        try:
            answers = await asked
        except Exception as error:
            raise self.translated(error) from error
        for answer in answers:
            if isinstance(answer, Exception):
                raise self.translated(answer) from answer
        return answers

    async def connection(self, key: str) -> AbstractConnection:
        """A connection of the caller's own to the server that holds `key`, for calls that block."""
        cluster = self._cluster
        if cluster is None:
            connection = self._connections.make()
        else:
            await cluster.initialize()
            node = cluster.get_node_from_key(key)
            if node is None:
                raise self._unavailable(f"the Redis Cluster at {self._where} cannot answer now")
            connection = node.connection_class(**node.connection_kwargs)
        await connect(connection)
        return connection

    def translated(self, error: Exception) -> AgentTeamError:
        """The platform's error for what went wrong on a connection."""
        return translate(error, self._where, unavailable=self._unavailable)

    async def close(self) -> None:
        """Let calls under way end, and close the connections."""
        while self._flights:
            self._landed.clear()
            await self._landed.wait()
        await self._connections.close()
        if self._cluster is not None:
            await self._cluster.aclose()

    def _take_off(self) -> None:
        """Unless all connections are busy, what waits goes out in the next turn of the loop, with what is asked until then."""
        if self._waiting and self._flights < _CONNECTIONS:
            self._flights += 1
            task = asyncio.get_running_loop().create_task(self._fly())
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    async def _fly(self) -> None:
        """Keep one connection busy until nobody waits."""
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _BATCH))]
                self._take_off()  # what has no place here need not wait for this answer
                await self._carry(batch)
        finally:
            self._flights -= 1
            self._landed.set()
            self._take_off()  # where this one was cut off

    async def _carry(self, batch: Sequence[_Asked]) -> None:
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
        cluster = self._cluster
        if cluster is None:
            return await self._connections.ask(commands)
        await cluster.initialize()  # once: many callers of an unready one cut off each other's connections
        # Keys live on different servers, so commands go out one by one.
        return await asyncio.gather(*(cluster.execute_command(*words) for words in commands), return_exceptions=True)

    def _become_cluster(self) -> None:
        if self._cluster is None:
            self._cluster = RedisCluster.from_url(
                self._url,
                socket_timeout=ANSWER_SECONDS,
                socket_connect_timeout=CONNECT_SECONDS,
                max_connections=_CLUSTER_CONNECTIONS,
            )
