"""What the API takes and gives, as its documentation shows it.

Answers come from the state as they are; a test holds them to these models.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from shared.messages import Budget, Decision, Usage, WorkflowRequested
from shared.messages.payloads import Name, StepId, WorkflowId
from shared.runtime.redrive import DEFAULT_RATE, MAX_RATE, PAGE
from shared.state import LetterState

MAX_INPUT_FIELDS = 1000
"""No definition has as many; more of them would only cost the time to list each as unknown."""

WorkflowStatus = Literal["QUEUED", "RUNNING", "WAITING", "SUCCESS", "FAILED", "CANCELLED"]
StepStatus = Literal["PENDING", "RUNNING", "WAITING", "SUCCESS", "FAILED", "SKIPPED", "CANCELLED"]
_EXAMPLE_ID = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SubmitRequest(WorkflowRequested):
    """A workflow to run."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "workflow": "report",
                    "input": {"brief": "Why do ferries to Oban run late, and what can be done about it?"},
                    "budget": {"max_cost_usd": 0.5, "deadline_seconds": 900},
                }
            ]
        }
    )

    workflow: Annotated[Name, Field(description="The definition to run.", examples=["report"])]
    input: Annotated[dict[str, Any], Field(max_length=MAX_INPUT_FIELDS)] = Field(
        default_factory=dict, description="The fields that the definition takes.", examples=[{"brief": "Why do ferries run late?"}]
    )
    budget: Budget = Field(default=Budget(), description="Limits that replace the definition's; what is left out stays as it is.")
    priority: int = Field(default=0, ge=-100, le=100, description="Where others wait for a slot too, the highest comes first.")


class CancelRequest(_Part):
    """Why a workflow is cancelled."""

    # PostgreSQL's jsonb has no NUL.
    reason: str = Field(
        default="", max_length=500, pattern=r"^[^\x00]*$", description="Kept with the workflow.", examples=["asked for twice"]
    )


class SignalRequest(_Part):
    """What a step that waits is told."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"decision": "approve", "comment": "Good to go.", "by": "ann@example.com"}]}
    )

    decision: Decision | None = Field(default=None, description="For an approval, and for nothing else.")
    data: Any = Field(default=None, description="What the step's output shall hold; of `amend`, the value that counts instead.")
    comment: str = Field(default="", max_length=2000, description="Kept in the history.")
    by: str = Field(default="", max_length=200, description="Who says so. Nobody checks it.", examples=["ann@example.com"])

    @model_validator(mode="after")
    def _has_its_value(self) -> "SignalRequest":
        if self.decision == "amend" and self.data is None:
            raise ValueError("amend needs the value that is to count instead, as data")
        return self


class Links(_Part):
    """Where to look next."""

    self: str = Field(examples=[f"/v1/workflows/{_EXAMPLE_ID}"])
    history: str = Field(examples=[f"/v1/workflows/{_EXAMPLE_ID}/history"])


class Accepted(_Part):
    """The workflow that a request was about, durable by now."""

    id: WorkflowId = Field(examples=[_EXAMPLE_ID])
    status: WorkflowStatus = Field(description="As of this answer.")
    links: Links


class Signalled(Accepted):
    """A signal, durable by now."""

    name: str = Field(examples=["approve"])
    outcome: Literal["woken", "kept"] = Field(
        description="`kept`: no step waits for it yet, and the first that will is going to find it."
    )


class Failure(_Part):
    """Why something failed."""

    type: str = Field(examples=["BudgetExceeded"])
    message: str = Field(examples=["the workflow passed its max_tokens"])
    step: StepId | None = Field(default=None, description="The step that failed the workflow.")


class Limits(_Part):
    """The budget in force; null means no limit."""

    max_steps: int | None
    max_tokens: int | None
    max_cost_microdollars: int | None = Field(description="Millionths of a dollar.")
    deadline_seconds: float | None = Field(description="Counted from the start of the first step.")


_EXAMPLE_MODELS = {
    "gemini-2.5-pro": {"model_calls": 2, "input_tokens": 1800, "output_tokens": 420, "cost_microdollars": 6450},
    "gemini-2.5-flash": {"model_calls": 1, "input_tokens": 300, "output_tokens": 90, "cost_microdollars": 315},
}


class WorkflowHead(_Part):
    """One run of a definition, without its steps."""

    id: WorkflowId = Field(examples=[_EXAMPLE_ID])
    workflow: Name = Field(description="The definition.", examples=["report"])
    version: int = Field(description="Of the definition, as it was at the request.")
    status: WorkflowStatus
    priority: int
    seq: int = Field(description="The number of the last history entry.")
    steps_total: int = Field(description="Steps so far: plans and debates add more as they go.")
    steps_open: int = Field(description="Steps that have not ended.")
    error: Failure | None
    usage: Usage = Field(description="Of all steps and all their attempts; cost in millionths of a dollar.")
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None


class Waiting(_Part):
    """What a step waits for."""

    for_: Literal["approval", "signal", "time"] = Field(alias="for")
    name: str = Field(description="Under which it can be signalled.")
    prompt: str | None = Field(default=None, description="What is to be decided; of an approval only.")
    since: AwareDatetime
    until: AwareDatetime | None = Field(description="When it waits no longer; null for never.")


class Step(_Part):
    """One unit of agent work."""

    id: StepId = Field(examples=["research/0"])
    parent: StepId | None = Field(description="The step that added this one.", examples=["research"])
    agent: str = Field(examples=["researcher"])
    status: StepStatus
    attempt: int = Field(description="The last attempt, counted from 1; 0 before the first.")
    needs: list[StepId]
    output: Any = None
    error: Failure | None
    waiting: Waiting | None = Field(description="Null unless it waits for people, time or a signal.")
    started_at: AwareDatetime | None
    finished_at: AwareDatetime | None
    usage: Usage = Field(description="Of all attempts, those that came too late to count included.")
    models: dict[str, Usage] = Field(
        description="The usage by the model that was asked; empty where no model was.", examples=[_EXAMPLE_MODELS]
    )


class Workflow(WorkflowHead):
    """One run of a definition, with its steps, input and output."""

    input: dict[str, Any]
    output: Any = Field(description="Null until the workflow ended with SUCCESS.")
    budget: Limits
    models: dict[str, Usage] = Field(description="The usage of all steps by the model that was asked.", examples=[_EXAMPLE_MODELS])
    steps: list[Step]


class WorkflowPage(_Part):
    """Workflows, the newest first."""

    items: list[WorkflowHead]
    next_cursor: str | None = Field(description="Give this as `cursor` for the next page; null on the last.")


class HistoryEntry(_Part):
    """Something that happened."""

    seq: int
    at: AwareDatetime
    type: str = Field(examples=["step.completed"])
    step: StepId | None
    attempt: int | None
    data: Any = None


class HistoryPage(_Part):
    """History entries, the oldest first."""

    items: list[HistoryEntry]
    next_after: int | None = Field(description="Give this as `after` for the next page; null when there is no more so far.")


class LastError(_Part):
    """Why a delivery failed."""

    type: str = Field(description="The error's class.", examples=["StoreUnavailable"])
    message: str = Field(description="Empty where it is not one of ours, which may quote what it worked on.")
    at: AwareDatetime


class DeadLetter(_Part):
    """A message that used up its delivery attempts."""

    id: int
    message_id: str = Field(description="The envelope's, or else the bus's.", examples=[f"{_EXAMPLE_ID}/draft/1"])
    subscription: str = Field(description="What gave it up.", examples=["agent-writer.writer"])
    topic: str = Field(examples=["agent-writer"])
    function: str = Field(examples=["writer"])
    cause: str = Field(description="The group of its reason.", examples=["store", "rejected:signature", "timeout"])
    reason: str = Field(examples=["attempts exhausted"])
    last_error: LastError | None = Field(description="Of the last delivery that said why it failed.")
    attempts: int | None = Field(description="Deliveries, where the bus told.")
    workflow: str | None
    step: str | None
    attempt: int | None = Field(description="The attempt that it was to start; null for every other message.")
    state: LetterState = Field(
        description="`waiting`: never redriven; `redriven`: sent, nothing heard since; `again`: dead again after its last redrive."
    )
    redrive_count: int
    redriven_at: AwareDatetime | None
    recorded_at: AwareDatetime
    size_bytes: int = Field(description="Of its data.")


class DeadLetterPage(_Part):
    """Dead letters, the newest first."""

    items: list[DeadLetter]
    next_cursor: int | None = Field(description="Give this as `cursor` for the next page; null on the last.")


class DeadLetterWhole(DeadLetter):
    """A dead letter with what is needed to understand it."""

    attributes: dict[str, str] = Field(description="Of the message, as it arrived.")
    blocked: str | None = Field(description="Why its step cannot be resumed; null where it can, or where it is about no step.")
    data: str | None = Field(description="Base64; null unless asked for.")


class RedriveRequest(_Part):
    """Which dead letters to send again: those of `ids`, or those that fit the filter."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"cause": "store", "dry_run": True}]})

    ids: list[Annotated[int, Field(ge=1, le=2**63 - 1)]] = Field(default_factory=list, max_length=1000)
    cause: str | None = Field(
        default=None, min_length=1, max_length=200, pattern=r"^[^\x00]*$", description="A cause, or the part before its colon."
    )
    function: Name | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    again: bool = Field(
        default=False,
        description="Also those that are dead again after a redrive and, of `ids`, those of which nothing was heard.",
    )
    rate: float = Field(default=DEFAULT_RATE, gt=0, le=MAX_RATE, description="Letters per second.")
    dry_run: bool = Field(default=True, description="Only tell what would be done.")
    cursor: int | None = Field(default=None, ge=1, le=2**63 - 1, description="`next_cursor` of the page before.")
    limit: int = Field(default=PAGE, ge=1, le=500, description="How many letters to look at. At a low rate many take long.")

    @model_validator(mode="after")
    def _is_one(self) -> "RedriveRequest":
        if self.ids and any(given is not None for given in (self.cause, self.function, self.since, self.until)):
            raise ValueError("give ids or a filter, not both")
        return self


class Refused(_Part):
    """A dead letter that is left as it is."""

    id: int
    reason: str = Field(examples=["its workflow is CANCELLED and does not wait for it"])


class RedriveAnswer(_Part):
    """What became of one page of letters or, after a dry run, would become of it."""

    matched: int = Field(description="How many letters are wanted, on all pages.")
    redriven: int
    ids: list[int] = Field(description="Of those that were redriven.")
    refused: list[Refused]
    next_cursor: int | None = Field(description="Give this as `cursor` for the next page; null on the last.")
    dry_run: bool


class Health(_Part):
    """The gateway answers."""

    status: Literal["ok"]
    timestamp: AwareDatetime
    uptime: float = Field(description="Seconds since this instance began to answer.", examples=[12.5])


Verdict = Literal["healthy", "unhealthy"]


class Ready(_Part):
    """Whether the gateway can do its work, and what of it cannot."""

    status: Verdict = Field(description="`healthy` when every check is.")
    checks: dict[str, Verdict] = Field(
        description="`redis` or `firestore` only where they are used.",
        examples=[{"database": "healthy", "redis": "healthy", "ai_service": "healthy"}],
    )
    latency_ms: dict[str, float] = Field(description="How long each check took.", examples=[{"database": 1.9}])
    errors: dict[str, str] = Field(description="For each unhealthy check what is wrong, where, and how to mend it.", examples=[{}])


class FieldMistake(_Part):
    """One thing that is wrong with a request."""

    field: str = Field(description="Dotted; `body` for the body as a whole.", examples=["budget.max_tokens"])
    message: str = Field(examples=["Input should be greater than or equal to 0"])


class Problem(BaseModel):
    """What went wrong: https://www.rfc-editor.org/rfc/rfc9457."""

    type: str = Field(
        description="`about:blank` where the status says it all.", examples=["urn:agent-team:problem:invalid-request"]
    )
    title: str = Field(examples=["The request is not valid"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["workflow: Field required"])
    errors: list[FieldMistake] | None = Field(default=None, description="With 422: every mistake, without the value that was sent.")
