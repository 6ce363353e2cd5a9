"""Turns payloads into sealed messages under ids that say what they mean."""

from dataclasses import dataclass

from shared.bus import Message
from shared.clock import Clock
from shared.errors import InputError
from shared.ids import dispatch_id, finished_id
from shared.messages import Envelope, Payload, Ring, StepDispatched, WorkflowFinished, WorkflowRequested, seal

WORKFLOW_EVENTS = "workflow-events"
WORKFLOW_REQUESTS = "workflow-requests"
WORKFLOW_RESULTS = "workflow-results"
WORKFLOW_SCHEDULES = "workflow-schedules"
_STATE = "state"
"""The source of what `advance` commands: whoever carries a command out once more sends a copy, not another message."""
KEY_ROTATION = "key-rotation"
UNSIGNED_TOPICS = frozenset({KEY_ROTATION, WORKFLOW_SCHEDULES})
"""They carry plain messages, from publishers that IAM lets in."""


@dataclass(frozen=True, slots=True)
class Sender:
    """Writes the envelopes of one function."""

    function: str
    ring: Ring
    clock: Clock
    ttl_seconds: float
    max_bytes: int

    def message(
        self,
        topic: str,
        payload: Payload,
        *,
        id: str,
        subject: str,
        workflow: str,
        cause: str | None = None,
        traceparent: str | None = None,
        source: str | None = None,
    ) -> Message:
        """A sealed message, from this function or from `source`. Raises InputError when it would be too large."""
        envelope = Envelope.create(
            payload,
            id=id,
            source_function=self.function if source is None else source,
            subject=subject,
            now=self.clock.now(),
            ttl_seconds=self.ttl_seconds,
            correlation_id=workflow,
            causation_id=cause,
            traceparent=traceparent,
        )
        data, attributes = seal(envelope, topic, self.ring, max_bytes=self.max_bytes)
        return Message(topic, data, attributes)

    def dispatch(self, payload: StepDispatched, *, cause: str | None, traceparent: str | None) -> Message:
        """The message that starts an attempt, to its agent's topic."""
        return self.message(
            f"agent-{payload.agent}",
            payload,
            id=dispatch_id(payload.workflow, payload.step, payload.attempt, payload.deferrals),
            source=_STATE,
            subject=f"{payload.workflow}/{payload.step}",
            workflow=payload.workflow,
            cause=cause,
            traceparent=traceparent,
        )

    def finished(self, payload: WorkflowFinished, *, resumed: int, cause: str | None, traceparent: str | None) -> Message:
        """The message that tells of a workflow's end; one that was `resumed` ends once more, which is news."""
        return self.message(
            WORKFLOW_RESULTS,
            payload,
            id=finished_id(payload.workflow, resumed),
            source=_STATE,
            subject=payload.workflow,
            workflow=payload.workflow,
            cause=cause,
            traceparent=traceparent,
        )

    def request(self, payload: WorkflowRequested, *, id: str, traceparent: str | None = None) -> Message:
        """The message that asks for a workflow; the same `id` always asks for the same one."""
        return self.message(WORKFLOW_REQUESTS, payload, id=id, subject=payload.workflow, workflow=id, traceparent=traceparent)


def too_large(error: InputError) -> InputError:
    """The error of a message that is too large where nothing can be kept apart."""
    advice = "; or set OUTPUTS_URL, and what is large is kept apart" if "MAX_PAYLOAD_BYTES" in str(error) else ""
    return InputError(f"{error}{advice}")
