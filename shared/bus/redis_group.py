"""One subscription in Redis: a consumer group of the topic's stream, and the set of what it holds back.

A message is an entry of its topic's stream. From its first delivery until it is settled it is *pending* in the group, whatever
happens to it: Redis keeps who has it, since when, and how often it was delivered. What failed stays pending too, with a consumer
that nobody is (`HOLDER`), and the sorted set says when it is due, on the server's clock. So nothing is ever copied, and every
change of hands is one script on keys of one hash slot: no crash in between loses a message or its count. Redis 6.2 or later.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson
from redis.asyncio.connection import AbstractConnection

from shared.bus.base import Message, Subscription
from shared.bus.policy import backoff_seconds
from shared.errors import AgentTeamError
from shared.redis.connections import Argument, ask_over
from shared.redis.store import Command, RedisStore

LUA: Final = Path(__file__).parent / "lua"
HOLDER: Final = "-held-back-"
SILENCE_SECONDS: Final = 15.0
"""A consumer that has not looked for so long is taken for dead: it looks twice a second while it lives."""
_FORGET_MILLISECONDS: Final = 3_600_000  # after this long a consumer that reads twice a second is gone
_IDS_AT_ONCE: Final = 1_000  # what Lua can unpack is limited


class Entry(NamedTuple):
    """A message in the stream."""

    id: str
    data: bytes
    attributes: Mapping[str, str]
    message_id: str

    @property
    def published_at(self) -> datetime:
        """When the server stored it."""
        return datetime.fromtimestamp(published_milliseconds(self.id) / 1000, UTC)


class Held(NamedTuple):
    """A message whose time has come again. `entry` is None when the stream does not have it any more."""

    id: str
    attempts: int
    entry: Entry | None


class Taken(NamedTuple):
    """What `Group.take` found. `now_milliseconds` is the server's time; `due_seconds` None when nothing is held back."""

    now_milliseconds: int
    due_seconds: float | None
    overdue: int
    held: list[Held]


class Failed(NamedTuple):
    """A delivery that failed."""

    id: str
    attempt: int


def stream_key(topic: str) -> str:
    """The key of a topic's stream; its hash tag is the topic."""
    return f"agent-team:topic:{{{topic}}}"


def held_key(subscription: Subscription) -> str:
    """The key of the set of what the subscription holds back, in the hash slot of the topic."""
    return f"agent-team:held:{{{subscription.topic}}}:{subscription.name}"


def looked_key(subscription: Subscription) -> str:
    """The key of the set that says when each consumer last looked."""
    return f"agent-team:looked:{{{subscription.topic}}}:{subscription.name}"


def add_command(message: Message, *, message_id: str | None = None) -> Command:
    """Stores a message. With `message_id` that is its id, else its place in the stream is."""
    words: tuple[Argument, ...] = ("XADD", stream_key(message.topic), "*", "d", message.data, "a", orjson.dumps(message.attributes))
    if message_id is not None:
        words = (*words, "i", message_id)
    return Command(words, words)


def published_milliseconds(id: str) -> int:
    """When the entry was stored, since 1970, on the server's clock."""
    return int(id.partition("-")[0])


class Group:
    """The calls that one consumer makes. They raise BusUnavailable or ConfigurationError."""

    def __init__(
        self, store: RedisStore, subscription: Subscription, consumer: str, *, silence_seconds: float = SILENCE_SECONDS
    ) -> None:
        self._store = store
        self._subscription = subscription
        self._consumer = consumer
        self._stream = stream_key(subscription.topic)
        self._silence_seconds = silence_seconds
        self._keys = (self._stream, held_key(subscription))
        self._join, self._settle, self._fail, self._take, self._hand_back, self._lag = (
            store.script(name) for name in ("join", "settle", "fail", "take", "hand_back", "lag")
        )

    async def join(self, running: Collection[str]) -> AbstractConnection:
        """Be a consumer, and get a connection to read on. What was delivered to it and is not `running` is handed back."""
        group = self._subscription.name
        await self._store.execute(self._join.command((self._stream,), group))
        await self._store.execute(self._hand_back.command(self._keys, group, HOLDER, self._consumer, "stays", *running))
        return await self._store.connection(self._stream)

    async def read(self, connection: AbstractConnection, most: int, *, block_seconds: float) -> list[Entry]:
        """New messages, as soon as there are any. Raises the driver's errors."""
        words: tuple[Argument, ...] = (
            *("XREADGROUP", "GROUP", self._subscription.name, self._consumer, "COUNT", most),
            *("BLOCK", max(1, int(block_seconds * 1000)), "STREAMS", self._stream, ">"),
        )
        [reply] = await ask_over(connection, [words])
        if isinstance(reply, Exception):
            raise reply
        if not reply:
            return []
        # The third version of the protocol has maps.
        [entries] = reply.values() if isinstance(reply, dict) else (entries for _, entries in reply)
        return [_entry(id, fields) for id, fields in entries]

    async def take(self, most: int) -> Taken:
        """Hold back what is overdue or with the dead, and take up to `most` that are due. Whoever looks so is alive."""
        rules = self._subscription
        now, due, overdue, held = await self._store.execute(
            self._take.command(
                (*self._keys, looked_key(rules)),
                rules.name,
                HOLDER,
                self._consumer,
                most,
                _milliseconds(rules.ack_deadline_seconds),
                _milliseconds(rules.min_backoff_seconds),
                _milliseconds(rules.max_backoff_seconds),
                0 if rules.dead_letter_topic is None else rules.max_attempts,
                max(_FORGET_MILLISECONDS, _milliseconds(rules.ack_deadline_seconds)),
                _milliseconds(self._silence_seconds),
            )
        )
        return Taken(
            now,
            None if due < 0 else due / 1000,
            overdue,
            [Held(id.decode(), attempts, _entry(id, fields) if fields else None) for id, attempts, fields in held],
        )

    async def note(self, settled: Sequence[str], failed: Sequence[Failed]) -> float | None:
        """Write down what became of deliveries. Returns the seconds until the first message that is held back is due."""
        group = self._subscription.name
        commands = [
            self._settle.command((self._stream,), group, *settled[start : start + _IDS_AT_ONCE])
            for start in range(0, len(settled), _IDS_AT_ONCE)
        ]
        if not failed:
            await self._store.execute_all(commands)
            return None
        commands.append(self._fail.command(self._keys, group, HOLDER, *self._pauses(failed)))
        due = (await self._store.execute_all(commands))[-1]
        return None if due < 0 else due / 1000

    async def leave(self, started: Collection[str]) -> int:
        """Be no consumer any more. All it has can be delivered to others at once; those `started` count as deliveries."""
        group = self._subscription.name
        back: int = await self._store.execute(
            self._hand_back.command(self._keys, group, HOLDER, self._consumer, "leaves", *started)
        )
        return back

    async def lag(self) -> tuple[int, float]:
        """Messages in the stream, and the age in seconds of the oldest that the group has not settled."""
        backlog, oldest = await self._store.execute(self._lag.command((self._stream,), self._subscription.name))
        return backlog, oldest / 1000

    def translated(self, error: Exception) -> AgentTeamError:
        """The platform's error for what a call here raised."""
        translated = self._store.translated(error)
        if translated is not error:
            translated.__cause__ = error
        return translated

    def _pauses(self, failed: Sequence[Failed]) -> Iterator[Argument]:
        for id, attempt in failed:
            yield from (id, attempt, _milliseconds(backoff_seconds(self._subscription, attempt)))


def _entry(id: bytes, fields: Sequence[Any]) -> Entry:
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    own_id = id.decode()
    message_id: bytes | None = values.get(b"i")
    return Entry(
        own_id, values.get(b"d", b""), _attributes(values.get(b"a", b"{}")), own_id if message_id is None else message_id.decode()
    )


def _attributes(text: bytes) -> dict[str, str]:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    # Not the platform's. Without attributes nobody trusts it, and it ends like every other message that nobody trusts.
    return found if isinstance(found, dict) else {}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
