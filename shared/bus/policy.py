"""The rules of delivery that every bus without its own follows: size, backoff, retention, dead letters.

They are Pub/Sub's: https://cloud.google.com/pubsub/quotas#resource_limits (size), https://cloud.google.com/pubsub/docs/handling-failures
(backoff, dead letters and the attributes that they carry). All functions are pure.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from math import ldexp
from typing import Final

from shared.bus.base import Message, Subscription
from shared.errors import InputError

MAX_DATA_BYTES: Final = 524_288
"""What a message's data may take where nobody says otherwise; Pub/Sub itself would take 10 MB."""
RETENTION_SECONDS: Final = 7 * 86_400.0
"""How long an unacknowledged message is kept: Pub/Sub's default."""

_MAX_DOUBLINGS: Final = 60  # beyond any maximum; more would overflow a float after enough attempts


class Fate(Enum):
    """What becomes of a message whose delivery failed."""

    RETRY = "retry"
    DEAD_LETTER = "dead letter"
    EXPIRE = "expire"


def check_messages(messages: Sequence[Message], *, max_bytes: int) -> None:
    """Raises InputError when the data of a message is larger than `max_bytes`."""
    for message in messages:
        if len(message.data) > max_bytes:
            raise InputError(
                f"a message for topic {message.topic} has {len(message.data):,} bytes of data and the bus takes {max_bytes:,}; "
                "raise MAX_PAYLOAD_BYTES, or pass large data by reference"
            )


def backoff_seconds(subscription: Subscription, attempts: int) -> float:
    """The pause after the failed delivery number `attempts`, from 1: the minimum, then doubling up to the maximum."""
    return min(ldexp(subscription.min_backoff_seconds, min(attempts - 1, _MAX_DOUBLINGS)), subscription.max_backoff_seconds)


def fate(subscription: Subscription, *, attempts: int, age_seconds: float) -> Fate:
    """What becomes of a message after `attempts` failed deliveries, `age_seconds` after it was published.

    Without a dead-letter topic `max_attempts` means nothing: the message comes again until its retention is over.
    """
    if subscription.dead_letter_topic is not None and attempts >= subscription.max_attempts:
        return Fate.DEAD_LETTER
    return Fate.EXPIRE if age_seconds >= RETENTION_SECONDS else Fate.RETRY


def dead_letter(
    topic: str,
    data: bytes,
    attributes: Mapping[str, str],
    *,
    subscription: str,
    attempts: int,
    published_at: datetime,
    project: str = "local",
) -> Message:
    """The message that `subscription` sends to its dead-letter `topic`: data and attributes as they were, and their origin."""
    return Message(
        topic,
        data,
        {
            **attributes,
            "CloudPubSubDeadLetterSourceSubscription": subscription,
            "CloudPubSubDeadLetterSourceSubscriptionProject": project,
            "CloudPubSubDeadLetterSourceTopicPublishTime": published_at.isoformat().replace("+00:00", "Z"),
            "CloudPubSubDeadLetterSourceDeliveryCount": str(attempts),
        },
    )
