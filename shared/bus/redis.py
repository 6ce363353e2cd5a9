"""A bus of Redis Streams, for any number of processes.

- A topic is a stream and a subscription a consumer group of it, see `redis_group`. The group is made when somebody first
  subscribes, and gets what is in the stream by then: what was published before the first worker started is not lost.
- At least once, in no promised order, with the rules of shared.bus.policy. What is not acknowledged before the deadline is taken
  over by whoever reads the subscription, and what a dead process had soon after its death. Redis itself counts deliveries.
- A handler that misses its deadline is treated as the memory bus does: its place is free, its late ACK settles the message, its
  RETRY says nothing.
- A dead letter has the id `<subscription>/<message id>`. After a crash at the wrong moment there are two of that id.
- `close` hands back what did not finish: others get it at once.
- What is settled is deleted where the topic has one subscription. Elsewhere publishers now and then trim what all subscriptions
  have settled, and everywhere what is older than the retention.

The server must not evict (`maxmemory-policy noeviction`) and should be durable (`appendonly yes`). Redis 6.2 or later; in a Redis
Cluster a topic lives in one slot.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from shared.bus.base import Handler, Message, Subscription
from shared.bus.policy import RETENTION_SECONDS, check_messages
from shared.bus.redis_group import LUA, SILENCE_SECONDS, Group, add_command, stream_key
from shared.bus.redis_subscriber import Outages, Subscriber
from shared.clock import Clock
from shared.errors import BusUnavailable, Conflict
from shared.redis.store import Command, RedisStore

_TRIM_SECONDS: Final = 60.0
_GRACE_SECONDS: Final = 6.5
_CLOSE_SECONDS: Final = 1.0


class RedisBus:
    """See the module. `close` waits for running handlers for `grace_seconds`.

    Raises ConfigurationError when `url` is not a Redis URL. Nothing is connected yet.
    """

    def __init__(
        self,
        url: str,
        clock: Clock,
        *,
        max_bytes: int,
        grace_seconds: float = _GRACE_SECONDS,
        silence_seconds: float = SILENCE_SECONDS,
    ) -> None:
        self._store = RedisStore(url, LUA, unavailable=BusUnavailable)
        self._clock = clock
        self._max_bytes = max_bytes
        self._grace_seconds = grace_seconds
        self._silence_seconds = silence_seconds
        self._trim = self._store.script("trim")
        self._trimmed_at: dict[str, float] = {}
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._subscribers: dict[str, Subscriber] = {}
        self._outages = Outages()
        self._closing = self._closed = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """Store every message. Raises InputError, storing none, when one is too large; BusUnavailable, ConfigurationError."""
        check_messages(messages, max_bytes=self._max_bytes)
        if messages:
            await self._store_all([add_command(message) for message in messages], {message.topic for message in messages})

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        """Hand deliveries to `handler`, each in a task of its own with the context variables of this call.

        Raises Conflict when this bus has a handler for that subscription, BusUnavailable, ConfigurationError.
        """
        if self._closing:
            raise BusUnavailable("the bus is closed; it takes no more subscriptions")
        if subscription.name in self._subscribers:
            raise Conflict(f"subscription {subscription.name} has a handler already; give each handler a subscription of its own")
        subscriber = Subscriber(
            subscription,
            handler,
            Group(self._store, subscription, self._consumer, silence_seconds=self._silence_seconds),
            bury=self._bury,
            clock=self._clock,
            outages=self._outages,
        )
        await subscriber.start()
        self._subscribers[subscription.name] = subscriber

    async def close(self) -> None:
        """Take no more messages, let running handlers finish for the grace period, hand back the rest. Takes 10 s at most."""
        self._closing = True
        subscribers, self._subscribers = self._subscribers, {}
        await asyncio.gather(*(one.close(grace_seconds=self._grace_seconds) for one in subscribers.values()))
        # Until here, since the last handlers publish what came of their work.
        self._closed = True
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._store.close()

    async def _bury(self, letter: Message, message_id: str) -> None:
        await self._store_all([add_command(letter, message_id=message_id)], {letter.topic})

    async def _store_all(self, commands: list[Command], topics: set[str]) -> None:
        if self._closed:
            raise BusUnavailable("the bus is closed; it takes no more messages")
        now = self._clock.monotonic()
        for topic in topics:
            if now - self._trimmed_at.get(topic, now - _TRIM_SECONDS) >= _TRIM_SECONDS:
                self._trimmed_at[topic] = now
                commands.append(self._trim.command((stream_key(topic),), round(RETENTION_SECONDS * 1000)))
        await self._store.execute_all(commands)
