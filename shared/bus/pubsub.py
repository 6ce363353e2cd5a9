"""Google Cloud Pub/Sub as the bus: https://cloud.google.com/pubsub/docs.

In the cloud this bus publishes, and Pub/Sub pushes to the functions. It can pull as well: from an emulator, and where somebody
wants to. Topics and subscriptions are there before they are used: Terraform makes them, `create` does for an emulator.

Backoff, dead letters and retention are the service's own, as the subscription says there: the deadline is 10 s at least, and
there are 5 attempts at least. The emulator's backoff is not exact, and its first is none.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from shared.bus.base import Handler, Message, Subscription
from shared.bus.policy import MAX_DATA_BYTES, check_messages
from shared.bus.pubsub_pull import Puller
from shared.bus.pubsub_service import PubSubService
from shared.clock import Clock
from shared.errors import BusUnavailable, Conflict

_log = logging.getLogger(__name__)

_REQUEST_MESSAGES: Final = 1_000
_REQUEST_BYTES: Final = 9_000_000  # the service takes 10 MB, its framing included
_FRAMING_BYTES: Final = 20


class PubSubBus:
    """The bus in the cloud: see the module. `grace_seconds` is how long `close` lets running handlers finish."""

    def __init__(
        self,
        project: str,
        clock: Clock,
        *,
        emulator: str | None = None,
        max_bytes: int = MAX_DATA_BYTES,
        grace_seconds: float = 10.0,
    ) -> None:
        self.project = project
        self._clock = clock
        self._max_bytes = max_bytes
        self._grace_seconds = grace_seconds
        self._service = PubSubService(project, emulator=emulator)
        self._pullers: dict[str, Puller] = {}
        self._closed = False

    async def publish(self, messages: Sequence[Message]) -> None:
        """Store every message, in as few requests as the service allows, at once.

        Raises InputError, storing none, when one is too large; BusUnavailable; ConfigurationError where topic or role is missing.
        """
        self._refuse_when_closed()
        check_messages(messages, max_bytes=self._max_bytes)
        chunks = list(_chunks(messages))
        if len(chunks) == 1:
            await self._service.publish(chunks[0][0].topic, chunks[0])
            return
        # Each is waited for: what is still on its way when an error is raised would outlive the call.
        sent = await asyncio.gather(*(self._service.publish(chunk[0].topic, chunk) for chunk in chunks), return_exceptions=True)
        for error in sent:
            if error is not None:
                raise error

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        """Pull for `handler` from now on, whatever happens to the connection; each delivery has a task with this call's context.

        Raises Conflict when the subscription's name is taken.
        """
        self._refuse_when_closed()
        if subscription.name in self._pullers:
            raise Conflict(f"subscription {subscription.name} has a handler already; give each handler a subscription of its own")
        puller = Puller(self._service, subscription, handler, self._clock)
        self._pullers[subscription.name] = puller
        puller.start()

    async def close(self) -> None:
        """Stop pulling and publishing; let running handlers finish for the grace period, then cancel them and nack."""
        self._closed = True
        await asyncio.gather(*(puller.close(self._grace_seconds) for puller in self._pullers.values()))
        await self._service.close()

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise BusUnavailable("the Pub/Sub bus is closed; it takes no more messages or subscriptions")


async def create(project: str, subscriptions: Iterable[Subscription], *, emulator: str) -> None:
    """Give an emulator the subscriptions that it lacks, to be pulled, and their topics, dead-letter topics included.

    Deadlines become whole seconds from 10 to 600, backoffs at most 600 s, attempts 5 to 100: what Pub/Sub can keep.
    """
    wanted = list(subscriptions)
    topics = {one.topic for one in wanted} | {one.dead_letter_topic for one in wanted if one.dead_letter_topic is not None}
    service = PubSubService(project, emulator=emulator)
    try:
        await asyncio.gather(*(service.create_topic(topic) for topic in sorted(topics)))
        await asyncio.gather(*(service.create_subscription(one) for one in wanted))
    finally:
        await service.close()


def _chunks(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """The messages in requests: of one topic each, as full as the service allows."""
    by_topic: defaultdict[str, list[Message]] = defaultdict(list)
    for message in messages:
        by_topic[message.topic].append(message)
    for of_topic in by_topic.values():
        chunk: list[Message] = []
        chunk_bytes = 0
        for message in of_topic:
            size = _size(message)
            if chunk and (len(chunk) == _REQUEST_MESSAGES or chunk_bytes + size > _REQUEST_BYTES):
                yield chunk
                chunk, chunk_bytes = [], 0
            chunk.append(message)
            chunk_bytes += size
        yield chunk


def _size(message: Message) -> int:
    """No less than what the message takes in a request."""
    attributes = sum(4 * (len(key) + len(value)) + _FRAMING_BYTES for key, value in message.attributes.items())
    return len(message.data) + attributes + _FRAMING_BYTES
