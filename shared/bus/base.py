"""What every bus promises, with Pub/Sub's rules: at least once, no order, bounded attempts.

A message published to a topic reaches every subscription of that topic at least once. A delivery that is not acknowledged (by
outcome, by an exception, or by not finishing before the acknowledgement deadline) comes again after a backoff that doubles, and
after `max_attempts` deliveries it moves to the subscription's dead-letter topic.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """What is published: opaque bytes and string attributes, as in Pub/Sub."""

    topic: str
    data: bytes
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One arrival of a message at a subscription. `attempt` counts from 1; what the bus does not tell is None."""

    subscription: str
    topic: str
    data: bytes
    attributes: Mapping[str, str]
    message_id: str
    attempt: int | None = None
    published_at: datetime | None = None


class Outcome(Enum):
    """What becomes of a delivery."""

    ACK = "ack"
    """Done, a duplicate, or never to be retried."""
    RETRY = "retry"
    """Deliver again after a backoff."""


Handler = Callable[[Delivery], Awaitable[Outcome]]


@dataclass(frozen=True, slots=True)
class Subscription:
    """Who gets a topic's messages, and how failures are treated. Times are in seconds."""

    name: str
    topic: str
    ack_deadline_seconds: float = 600.0
    max_attempts: int = 5
    min_backoff_seconds: float = 10.0
    max_backoff_seconds: float = 600.0
    dead_letter_topic: str | None = None
    concurrency: int = 8
    """Deliveries in progress at once."""


class Bus(Protocol):
    """A way to publish and, where the bus pulls, to be handed deliveries."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Return once every message is stored by the bus. Raises BusUnavailable; then any of them may have been stored."""
        ...

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        """Start handing deliveries to `handler`. A handler that raises counts as RETRY."""
        ...

    async def close(self) -> None:
        """Take no more messages, let running handlers finish, free what is held."""
        ...
