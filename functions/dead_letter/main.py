"""Dead-letter topic → recorded, ready to be redriven.

A dead letter fails its step only if no claim on that attempt is alive or done: a copy that gave up must not fail work that goes on.
"""

import base64
import logging
from typing import Any

from shared.bus import Delivery, Outcome
from shared.errors import ConfigurationError, EnvelopeRejected, Permanent
from shared.guards import New
from shared.messages import Envelope, StepDispatched, open_envelope
from shared.runtime import Handlers, Runtime, on_messages
from shared.runtime.pipeline import claim_key
from shared.telemetry import describe_error, metrics

_log = logging.getLogger(__name__)
_SOURCE = "CloudPubSubDeadLetterSource"
_CLAIM_SECONDS = 60.0


def _handlers(live: Runtime) -> Handlers:
    async def handle(delivery: Delivery) -> Outcome:
        subscription = delivery.attributes.get(f"{_SOURCE}Subscription", "")
        topic, _, function = subscription.rpartition(".")
        envelope, reason = _opened(live, topic, delivery)
        letter: dict[str, Any] = {
            "message_id": delivery.message_id if envelope is None else envelope.id,
            "subscription": subscription,
            "topic": topic,
            "attempts": _count(delivery.attributes.get(f"{_SOURCE}DeliveryCount")),
            "reason": reason,
            "data": base64.b64encode(delivery.data).decode(),
            "attributes": dict(delivery.attributes),
        }
        if envelope is not None and isinstance(envelope.data, StepDispatched):
            letter |= {"workflow": envelope.data.workflow, "step": envelope.data.step}
        try:
            await live.store.record_dead_letter(letter)
        except ConfigurationError:
            raise  # somebody will put it right; until then the message waits on the bus
        except Permanent as error:
            _log.error("dead letter %s cannot be recorded", delivery.message_id, extra={"error": describe_error(error)})
            return Outcome.ACK
        metrics.count("dead_letter.count")
        _log.error("dead letter", extra={"subscription": subscription, "messageId": letter["message_id"], "status": "dead"})
        if envelope is not None and isinstance(envelope.data, StepDispatched):
            await _fail_step(live, function, envelope, envelope.data)
        return Outcome.ACK

    return {"dead-letters": handle}


async def _fail_step(live: Runtime, function: str, envelope: Envelope, order: StepDispatched) -> None:
    guard = live.guards.idempotency
    key = claim_key(function, envelope)
    claim = await guard.claim(key, lease_seconds=_CLAIM_SECONDS, ttl_seconds=live.link.ttl_seconds)
    if not isinstance(claim, New):
        return
    about = {"workflow": order.workflow, "step": order.step, "attempt": order.attempt}
    error = {"type": "DeadLettered", "message": f"no delivery to {function} succeeded; see the dead letter of {envelope.id}"}
    event = {"type": "step.failed", **about, "permanent": True, "error": error}
    try:
        await live.dispatcher("dead_letter").apply([event], cause=envelope.id, traceparent=envelope.traceparent)
    except BaseException:
        # Or our own claim would pass for work that goes on when this letter comes again.
        await guard.release(key, token=claim.token)
        raise
    await guard.complete(key, token=claim.token, result=None)


def _opened(live: Runtime, topic: str, delivery: Delivery) -> tuple[Envelope | None, str]:
    """The envelope if it can be trusted, and why it was not handled as far as one can tell."""
    try:
        link = live.link
        opened = open_envelope(
            topic, delivery.data, delivery.attributes, ring=link.ring, now=live.clock.now(), max_bytes=link.max_bytes
        )
    except EnvelopeRejected as error:
        return None, f"rejected: {error.reason}"
    return opened, "attempts exhausted"


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


dead_letter = on_messages(__file__, _handlers)
