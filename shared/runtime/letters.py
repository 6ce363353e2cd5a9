"""Dead letters on the bus: why a delivery failed, for whom a redriven message is, and which causes there are.

**The last error.** The bus that gives a message up does not know why its deliveries failed. So whoever fails notes it beside the
claim, in the guards' cache, and the dead-letter function reads it there. It is a note and no more: without it nothing changes.

**Redriven messages** go to the topic that they came from, because that is the only way that every bus has. Their attributes say
for which subscription they are; the others drop them. They also carry the letter's message id, under which a message without an
envelope was known before, and the number of the redrive. None of this is signed: the signature covers what is done, and whoever
could change these attributes on the bus could as well drop the message or send it again as it is.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import orjson

from shared.bus import Delivery, Handler, Outcome
from shared.errors import AgentTeamError
from shared.guards import Cache
from shared.telemetry import describe_error

DEAD_LETTERS = "dead-letters"
"""The topic of messages that used up their attempts."""
FOR_SUBSCRIPTION = "redrive-subscription"
FOR_MESSAGE = "redrive-message-id"
NUMBER = "redrive-number"

NOTHING_HEARD = "no delivery said why it failed: none answered before its deadline, or its instance was killed"
EXHAUSTED = "attempts exhausted"

_NOTING_SECONDS = 2.0
_LONGEST_MESSAGE = 500
_CAUSES = {
    "StoreUnavailable": "store",
    "BusUnavailable": "bus",
    "HostUnavailable": "host",
    "ModelUnavailable": "model",
    "CircuitOpen": "model",
    "RateLimited": "quota",
    "ShareUsed": "quota",
    "ConfigurationError": "configuration",
}

_log = logging.getLogger(__name__)


def cause_of(reason: str, last_error: Mapping[str, Any] | None) -> str:
    """The group that a letter belongs to, of a small vocabulary, so that what failed alike can be redriven together.

    `rejected:<reason>`, store, bus, host (one that a webhook is for), model, quota, configuration, `unknown:<class>` by the class
    of the last error, timeout when no delivery said why it failed, and unknown for messages of which nobody would have noted it.
    """
    if reason.startswith("rejected: "):
        return f"rejected:{reason.removeprefix('rejected: ')}"
    if last_error is None:
        return "timeout" if reason == NOTHING_HEARD else "unknown"
    kind = str(last_error["type"])
    return _CAUSES.get(kind, f"unknown:{kind}")


async def note_failure(cache: Cache, claim: str, error: Exception, *, now: datetime, ttl_seconds: float) -> None:
    """Note why the delivery with this claim's key failed, as well as can be. Raises nothing."""
    # What a foreign exception says may be payload.
    message = str(error)[:_LONGEST_MESSAGE] if isinstance(error, AgentTeamError) else ""
    note = {"type": type(error).__name__, "message": message.replace("\0", ""), "at": now}
    try:
        async with asyncio.timeout(_NOTING_SECONDS):
            await cache.put(_key(claim), orjson.dumps(note), ttl_seconds=ttl_seconds)
    except Exception as failure:
        _log.warning("the reason of a failed delivery is not noted", extra={"error": describe_error(failure)})


async def noted_failure(cache: Cache, claim: str) -> dict[str, Any] | None:
    """What was noted last: `{type, message, at}`. None when nothing was, or when it can't be read. Raises nothing."""
    try:
        async with asyncio.timeout(_NOTING_SECONDS):
            note = await cache.get(_key(claim))
        return None if note is None else {name: str(orjson.loads(note)[name]) for name in ("type", "message", "at")}
    except Exception as failure:
        _log.warning("the reason of a dead letter cannot be read", extra={"error": describe_error(failure)})
        return None


def redrive_attributes(subscription: str, message_id: str, number: int) -> dict[str, str]:
    """What the message of redrive `number` carries besides its own attributes."""
    return {FOR_SUBSCRIPTION: subscription, FOR_MESSAGE: message_id, NUMBER: str(number)}


def addressed(handler: Handler) -> Handler:
    """`handler` for the deliveries that are meant for its subscription; redriven messages for another one are dropped."""

    async def handle(delivery: Delivery) -> Outcome:
        meant = delivery.attributes.get(FOR_SUBSCRIPTION)
        if meant is None:
            return await handler(delivery)
        # A dead letter tells of the subscription that gave it up, and is for whoever records it.
        if delivery.topic != DEAD_LETTERS and meant != delivery.subscription:
            return Outcome.ACK
        return await handler(replace(delivery, message_id=delivery.attributes.get(FOR_MESSAGE, delivery.message_id)))

    return handle


def _key(claim: str) -> str:
    return f"failure:{claim}"
