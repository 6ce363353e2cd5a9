"""workflow-events → advance → publish."""

import logging
from collections.abc import Collection, Sequence
from typing import Any

from shared.bus import Message
from shared.errors import EnvelopeRejected, InputError
from shared.messages import (
    Envelope,
    StepCompleted,
    StepDeferred,
    StepFailed,
    WorkflowCancelled,
    WorkflowPaused,
    WorkflowSignalled,
    WorkflowUnpaused,
)
from shared.runtime import Handlers, Runtime, on_messages, worker
from shared.workflows import signal_event, spawned

_log = logging.getLogger(__name__)


def _event(envelope: Envelope, agents: Collection[str]) -> dict[str, Any]:
    match envelope.data:
        case StepCompleted() as completed:
            try:
                return spawned(completed, agents=agents)
            except InputError as error:
                # What the attempt used is used, whatever became of it.
                about = completed.model_dump(mode="json", include={"workflow", "step", "attempt", "usage", "models", "prompts"})
                failure = {"type": error.code, "message": str(error)[:2000]}
                return {"type": "step.failed", **about, "permanent": True, "error": failure}
        case StepFailed() as failed:
            return {"type": "step.failed", **failed.model_dump(mode="json")}
        case StepDeferred() as deferred:
            return {"type": "step.deferred", **deferred.model_dump(mode="json")}
        case WorkflowCancelled() as cancelled:
            return {"type": "workflow.cancelled", **cancelled.model_dump(mode="json")}
        # With a key a copy that comes after the opposite changes nothing.
        case WorkflowPaused() as paused:
            return {"type": "workflow.paused", "key": envelope.id, **paused.model_dump(mode="json")}
        case WorkflowUnpaused() as unpaused:
            return {"type": "workflow.unpaused", "key": envelope.id, **unpaused.model_dump(mode="json")}
        case WorkflowSignalled() as signalled:
            return signal_event(signalled, signal=envelope.id)
        case _:
            raise EnvelopeRejected("type", f"{envelope.type} is not for workflow-events")


def _handlers(live: Runtime) -> Handlers:
    dispatcher = live.dispatcher("orchestrator")
    agents = [name for name, spec in live.functions.items() if spec.is_agent]

    async def work(envelope: Envelope) -> Sequence[Message]:
        answers, messages = await dispatcher.decide([_event(envelope, agents)], cause=envelope.id, traceparent=envelope.traceparent)
        for answer in answers:
            if answer["type"] == "refused":  # whoever sent it hears nothing on a bus
                what = "signal" if isinstance(envelope.data, WorkflowSignalled) else "message"
                fields = {"workflowId": answer["workflow"], "messageId": envelope.id}
                _log.warning("%s refused: %s", what, answer["reason"], extra=fields)
        return messages

    return {"workflow-events": worker(live, "orchestrator", work)}


orchestrator = on_messages(__file__, _handlers)
