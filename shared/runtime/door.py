"""The push door: an HTTP request that carries a Pub/Sub message becomes a delivery, its outcome a status.

It takes raw Pub/Sub pushes (https://cloud.google.com/pubsub/docs/push) and the same message inside a CloudEvent of type
`google.cloud.pubsub.topic.v1.messagePublished`, binary or structured. 204 acknowledges; 503 asks for another delivery.

Where tokens are asked for, a push without the right one is refused before its body is read: 401. Pub/Sub takes that for "again", so
a wrong setting here loses no message, and a forger gains nothing by it.
"""

import base64
import binascii
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from shared.bus import Delivery, Handler, Outcome
from shared.errors import EnvelopeRejected, Transient
from shared.telemetry import describe_error, metrics

if TYPE_CHECKING:
    from shared.runtime.oidc import PushTokens

_log = logging.getLogger(__name__)
_WRAPPING_BYTES = 64 * 1024
"""What attributes, ids and the wrapping of a message may take."""


async def push(
    request: Request, handlers: Mapping[str, Handler], *, max_bytes: int, tokens: "PushTokens | None" = None
) -> Response:
    """Hand the message in `request` to the handler of its topic. Anything that is not a push is refused for good: 204.

    With `tokens`, the request has to show one of them: else it is refused with 401, or 503 while nobody can tell.
    """
    try:
        if tokens is not None:
            # Where this header is there, Cloud Run checks it instead of the other, which then proves nothing.
            alone = "x-serverless-authorization" not in request.headers
            await tokens.check(request.headers.get("authorization") if alone else None)
    except EnvelopeRejected as error:
        _reject(error)
        return Response(status_code=401, headers={"www-authenticate": "Bearer"})
    except Transient as error:
        _log.error("a push will be tried again", extra={"error": describe_error(error), "status": "retry"})
        return Response(status_code=503)
    try:
        delivery = read_push(await _body(request, max_bytes * 4 // 3 + _WRAPPING_BYTES), request.headers)
        handler = handlers.get(delivery.topic)
        if handler is None:
            raise EnvelopeRejected("type", f"no subscription to topic {delivery.topic} here; check the push endpoint's address")
    except EnvelopeRejected as error:
        _reject(error)
        return Response(status_code=204)
    try:
        outcome = await handler(delivery)
    except Exception as error:
        # Left to the framework it would be a 500 that shows the error's text to the caller.
        _log.error("message %s will be tried again", delivery.message_id, extra={"error": describe_error(error), "status": "retry"})
        outcome = Outcome.RETRY
    return Response(status_code=204 if outcome is Outcome.ACK else 503)


def _reject(error: EnvelopeRejected) -> None:
    metrics.count("envelope.rejected", reason=error.reason)
    _log.warning("%s", error, extra={"status": "rejected", "reason": error.reason})


def read_push(body: bytes, headers: Mapping[str, str]) -> Delivery:
    """The delivery that a push body holds. Raises EnvelopeRejected (schema) for anything else."""
    try:
        document = orjson.loads(body)
        topic = None
        if "cloudevents+json" in headers.get("content-type", ""):
            topic = _topic_of_source(document["source"])
            document = document["data"]
        elif "ce-source" in headers:
            topic = _topic_of_source(headers["ce-source"])
        return _delivery(document, topic)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        kind = type(error).__name__
        raise EnvelopeRejected(
            "schema", f"the request is not a Pub/Sub push ({kind}); point only push subscriptions here"
        ) from None


def _delivery(document: dict[str, Any], topic: str | None) -> Delivery:
    message = document["message"]
    subscription = _text(document["subscription"]).rpartition("/")[2]
    attributes = message.get("attributes") or {}
    attempt = document.get("deliveryAttempt")
    return Delivery(
        subscription=subscription,
        # Subscriptions are called <topic>.<function>; a plain push does not name its topic.
        topic=subscription.rpartition(".")[0] if topic is None else topic,
        data=_decoded(message.get("data", "")),
        attributes={_text(key): _text(value) for key, value in attributes.items()},
        message_id=_text(message["messageId"]),
        attempt=attempt if isinstance(attempt, int) else None,
    )


def _topic_of_source(source: Any) -> str:
    return _text(source).rpartition("/topics/")[2]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _decoded(data: Any) -> bytes:
    try:
        return base64.b64decode(_text(data), validate=True)
    except binascii.Error:
        raise ValueError from None


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise EnvelopeRejected("size", f"the push is over {limit} bytes; raise MAX_PAYLOAD_BYTES where it was sent and here")
    return bytes(body)
