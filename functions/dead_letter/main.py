"""Dead-letter topic → recorded with the reason, ready to be redriven.

A dead letter fails its step only if no claim on that attempt is alive or done: a copy that gave up must not fail work that goes on.
"""

import base64
import logging
from typing import Any

from shared.bus import Delivery, Outcome
from shared.errors import ConfigurationError, EnvelopeRejected, Permanent
from shared.guards import New
from shared.messages import Envelope, StepDispatched, WorkflowRequested, reopen_envelope
from shared.runtime import Handlers, Runtime, on_messages
from shared.runtime.letters import EXHAUSTED, NOTHING_HEARD, NUMBER, cause_of, noted_failure
from shared.runtime.pipeline import claim_key
from shared.runtime.sender import UNSIGNED_TOPICS
from shared.telemetry import TraceContext, bind_task, describe_error, metrics, span

_log = logging.getLogger(__name__)
_SOURCE = "CloudPubSubDeadLetterSource"
_CLAIM_SECONDS = 60.0


def _handlers(live: Runtime) -> Handlers:
    async def handle(delivery: Delivery) -> Outcome:
        subscription = delivery.attributes.get(f"{_SOURCE}Subscription", "")
        topic, _, function = subscription.rpartition(".")
        envelope, flaw = _opened(live, topic, delivery)
        parent = None if envelope is None else TraceContext.parse(envelope.traceparent)
        if envelope is not None:
            bind_task(workflowId=envelope.correlationid)
        with span("queue.process", "dead_letter", parent=parent):
            error = None if envelope is None else await noted_failure(live.guards.cache, claim_key(function, envelope))
            reason = flaw or (EXHAUSTED if error is not None or topic in UNSIGNED_TOPICS else NOTHING_HEARD)
            letter = {
                "message_id": delivery.message_id if envelope is None else envelope.id,
                "subscription": subscription,
                "topic": topic,
                "function": function,
                "attempts": _count(delivery.attributes.get(f"{_SOURCE}DeliveryCount")),
                "reason": reason,
                "cause": cause_of(reason, error),
                "last_error": error,
                "redrive": _count(delivery.attributes.get(NUMBER)),
                "data": base64.b64encode(delivery.data).decode(),
                "attributes": dict(delivery.attributes),
                **({} if envelope is None else _about(envelope)),
            }
            recorded = await _record(live, letter, delivery.message_id)
            if recorded and envelope is not None and isinstance(envelope.data, StepDispatched):
                await _fail_step(live, function, envelope, envelope.data)
        return Outcome.ACK

    return {"dead-letters": handle}


async def _record(live: Runtime, letter: dict[str, Any], message_id: str) -> bool:
    """Whether the state has the letter now. One that it refuses for good is in the log alone."""
    try:
        await live.store.letters.record(letter)
    except ConfigurationError:
        raise  # somebody will put it right; until then the message waits on the bus
    except Permanent as refusal:
        _log.error("dead letter %s cannot be recorded", message_id, extra={"error": describe_error(refusal)})
        return False
    metrics.count("dead_letter.count")
    fields = {
        "subscription": letter["subscription"],
        "messageId": letter["message_id"],
        "reason": letter["cause"],
        "status": "dead",
    }
    _log.error("dead letter", extra=fields)
    return True


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
    """The envelope if it can be trusted, and what is wrong with it otherwise. Some topics carry none."""
    if topic in UNSIGNED_TOPICS:
        return None, ""
    try:
        # Of any age: it was young enough when its deliveries failed, and is recorded whenever we come to it.
        return reopen_envelope(topic, delivery.data, delivery.attributes, ring=live.link.ring, max_bytes=live.link.max_bytes), ""
    except EnvelopeRejected as error:
        return None, f"rejected: {error.reason}"


def _about(envelope: Envelope) -> dict[str, Any]:
    """The workflow that the message is about, and the attempt that it was to start."""
    match envelope.data:
        case WorkflowRequested():  # its workflow is a definition's name
            return {}
        case StepDispatched() as order:
            return {"workflow": order.workflow, "step": order.step, "attempt": order.attempt}
        case data:
            return {"workflow": getattr(data, "workflow", None), "step": getattr(data, "step", None)}


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None


dead_letter = on_messages(__file__, _handlers)
