"""What every bus says of deliveries that go wrong, in the same words."""

import logging

from shared.bus.base import Delivery

_log = logging.getLogger(__name__)


def handler_raised(delivery: Delivery, error: Exception) -> None:
    """A handler raised, which counts as RETRY. What the error says may be payload."""
    _log.warning(
        "the handler of %s raised %s on message %s, attempt %s",
        delivery.subscription,
        type(error).__name__,
        delivery.message_id,
        delivery.attempt,
    )


def deadline_missed(subscription: str, message_id: str, attempt: int | None) -> None:
    """A handler has not finished in time: the message comes again while it still works."""
    _log.warning("the handler of %s missed the deadline of message %s, attempt %s", subscription, message_id, attempt)
