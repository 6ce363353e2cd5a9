"""A bridge from an emulator's pull subscription to a function's push door.

The emulator itself pushes two messages at a time, without the attempt; this carries as many as the subscription allows, and each
request is the service's own: https://cloud.google.com/pubsub/docs/push.
"""

import asyncio
import base64
import logging
from typing import Any, Final

import httpx
import orjson

from shared.bus import Delivery, Outcome, Subscription
from shared.bus.pubsub import PubSubBus

_log = logging.getLogger(__name__)

_ACKNOWLEDGED: Final = frozenset({102, 200, 201, 202, 204})


async def carry(bus: PubSubBus, subscription: Subscription, endpoint_url: str, client: httpx.AsyncClient) -> None:
    """From now on, and until the bus is closed, POST what the subscription holds to `endpoint_url`.

    What is not acknowledged with 102, 200, 201, 202 or 204 within the subscription's deadline comes again.
    """
    name, deadline_seconds = f"projects/{bus.project}/subscriptions/{subscription.name}", subscription.ack_deadline_seconds

    async def deliver(delivery: Delivery) -> Outcome:
        body = orjson.dumps(push_body(name, delivery))
        try:
            async with asyncio.timeout(deadline_seconds):
                answer = await client.post(
                    endpoint_url, content=body, headers={"content-type": "application/json"}, timeout=deadline_seconds
                )
        except (httpx.HTTPError, TimeoutError) as error:
            _log.warning("message %s cannot be pushed to %s (%s)", delivery.message_id, endpoint_url, type(error).__name__)
            return Outcome.RETRY
        if answer.status_code in _ACKNOWLEDGED:
            return Outcome.ACK
        _log.info("message %s was answered %d by %s and comes again", delivery.message_id, answer.status_code, endpoint_url)
        return Outcome.RETRY

    await bus.subscribe(subscription, deliver)


def push_body(subscription: str, delivery: Delivery) -> dict[str, Any]:
    """What Pub/Sub posts for a delivery to `subscription`, a full name: fields of the message in both spellings."""
    message: dict[str, Any] = {
        "data": base64.b64encode(delivery.data).decode(),
        "attributes": dict(delivery.attributes),
        "messageId": delivery.message_id,
        "message_id": delivery.message_id,
    }
    if delivery.published_at is not None:
        published = delivery.published_at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message |= {"publishTime": published, "publish_time": published}
    body: dict[str, Any] = {"message": message, "subscription": subscription}
    if delivery.attempt is not None:
        body["deliveryAttempt"] = delivery.attempt
    return body
