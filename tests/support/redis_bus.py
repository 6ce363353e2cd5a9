"""The Redis bus in tests: how to open it, handlers that remember or hang, and what the server has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.policy import MAX_DATA_BYTES
from shared.bus.redis import RedisBus
from shared.bus.redis_group import held_key, stream_key
from shared.clock import SystemClock
from tests.support.servers import RedisServer, patience

PLAIN = Subscription(
    "worker", "tasks", ack_deadline_seconds=60, min_backoff_seconds=0.05, max_backoff_seconds=0.2, dead_letter_topic="dead"
)


@asynccontextmanager
async def bus_at(server: RedisServer, **options: Any) -> AsyncIterator[RedisBus]:
    """A bus that nobody's being held up makes give up; it is closed in the end."""
    bus = RedisBus(server.url, SystemClock(), max_bytes=MAX_DATA_BYTES, **options)
    with patience():
        try:
            yield bus
        finally:
            await bus.close()


def plain(**changes: Any) -> Subscription:
    return Subscription(**{field: getattr(PLAIN, field) for field in Subscription.__slots__} | changes)


def numbered(count: int, topic: str = "tasks") -> list[Message]:
    return [Message(topic, str(number).encode()) for number in range(count)]


class Recorder:
    """Remembers deliveries; answers each message's first ones as told, then ACK."""

    def __init__(self, *answers: Outcome) -> None:
        self.deliveries: list[Delivery] = []
        self._answers = answers

    async def __call__(self, delivery: Delivery) -> Outcome:
        self.deliveries.append(delivery)
        assert delivery.attempt is not None
        return self._answers[delivery.attempt - 1] if delivery.attempt <= len(self._answers) else Outcome.ACK

    @property
    def seen(self) -> set[bytes]:
        return {delivery.data for delivery in self.deliveries}

    def attempts(self) -> list[int | None]:
        return [delivery.attempt for delivery in self.deliveries]


class Hanging:
    """Starts and does not finish, until it is let go or cancelled."""

    def __init__(self, outcome: Outcome = Outcome.ACK) -> None:
        self.started: list[Delivery] = []
        self.let_go = asyncio.Event()
        self._outcome = outcome

    async def __call__(self, delivery: Delivery) -> Outcome:
        self.started.append(delivery)
        await self.let_go.wait()
        return self._outcome


def make_due(server: RedisServer, subscription: Subscription = PLAIN) -> None:
    """Let the time of all that the subscription holds back have come, however far away it is."""
    for id in server.execute("ZRANGE", held_key(subscription), 0, -1):
        server.execute("ZADD", held_key(subscription), "XX", 0, id)


def pending(server: RedisServer, topic: str = "tasks", group: str = "worker") -> int:
    count: int = server.execute("XPENDING", stream_key(topic), group)["pending"]
    return count
