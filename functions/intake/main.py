"""workflow-requests (signed) and workflow-schedules (unsigned: IAM lets only the scheduler publish there) → new workflows."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from pydantic import ValidationError

from shared.bus import Delivery, Handler, Message, Outcome
from shared.errors import ConfigurationError, Conflict, EnvelopeRejected, Permanent
from shared.ids import workflow_id_for
from shared.messages import Envelope, WorkflowRequested
from shared.runtime import Handlers, Runtime, on_messages, worker
from shared.runtime.requests import request_event
from shared.runtime.schedules import start_due_of
from shared.telemetry import describe_error, metrics, span

_log = logging.getLogger(__name__)


def _says_when(live: Runtime, wanted: WorkflowRequested) -> bool:
    """Whether a message says no more than that a definition's own schedule has come: which tick that is, the state knows best."""
    definition = live.definitions.get(wanted.workflow)
    return definition is not None and definition.schedule is not None and wanted == WorkflowRequested(workflow=wanted.workflow)


@contextmanager
def _refusing(delivery: Delivery) -> Iterator[None]:
    """Whatever will never work is noted and done with."""
    try:
        yield
    except ValidationError:
        metrics.count("envelope.rejected", reason="schema")
        _log.warning("scheduled message %s holds no request for a workflow", delivery.message_id, extra={"status": "rejected"})
    except ConfigurationError:
        raise  # somebody will put it right; until then the message waits on the bus
    except Permanent as error:
        fields = {"error": describe_error(error), "status": "refused"}
        _log.error("scheduled message %s refused", delivery.message_id, extra=fields)


def _handlers(live: Runtime) -> Handlers:
    dispatcher = live.dispatcher("intake")

    async def start(wanted: WorkflowRequested, *, key: str, at: datetime, cause: str) -> list[Message]:
        event = request_event(live, wanted, workflow=workflow_id_for(key, at), request_key=key)
        answers, messages = await dispatcher.decide([event], cause=cause)
        if any(answer["type"] == "conflict" for answer in answers):
            raise Conflict(f"the id of message {cause} was used for another request; give each request an id of its own")
        return messages

    async def requested(envelope: Envelope) -> Sequence[Message]:
        if not isinstance(envelope.data, WorkflowRequested):
            raise EnvelopeRejected("type", f"{envelope.type} is not for workflow-requests")
        key = f"{envelope.source}#{envelope.id}"
        return await start(envelope.data, key=key, at=envelope.time, cause=envelope.id)

    async def scheduled(delivery: Delivery) -> Outcome:
        with span("queue.process", "intake", parent=None), _refusing(delivery):
            wanted = WorkflowRequested.model_validate_json(delivery.data)
            if _says_when(live, wanted):
                await start_due_of(live, dispatcher, wanted.workflow)
            else:
                # A copy of the message has the same id, so whatever id is made for it first is the one that counts.
                key = f"schedule#{delivery.message_id}"
                await live.bus.publish(await start(wanted, key=key, at=live.clock.now(), cause=delivery.message_id))
        return Outcome.ACK

    schedules: Handler = scheduled
    return {"workflow-requests": worker(live, "intake", requested), "workflow-schedules": schedules}


intake = on_messages(__file__, _handlers)
