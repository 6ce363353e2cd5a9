"""What the messages say: one model per event type, and the JSON that `advance` and the agents exchange.

Unknown fields are refused where people and agents write them, so that a misspelt field is an error and not a silent default. In a
signed message they come from a later build of ours and are ignored (shared/messages/envelope.py). A field that is new must have a
default; one that is no longer needed is sent for one release more.
"""

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, model_validator

WorkflowId = Annotated[str, StringConstraints(pattern=r"^wf_[0-9A-HJKMNP-TV-Z]{26}$")]
"""`wf_<ulid>`."""
StepId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/@?[A-Za-z0-9_-]+)*$", max_length=200)]
"""A step's name in its workflow; `research/0` is the first child of `research`. `@` begins what no definition declares."""
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=63)]
"""The name of an agent, a function or a workflow definition."""
SignalName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$", max_length=200)]
"""The name of a signal, or the id of a step that waits; one in a nested workflow has slashes: `report/approve`."""
Attempt = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""Counted from 1. Bounded, like all that PostgreSQL casts, because one value out of range would fail a whole batch."""
Amount = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""Tokens or money used."""


class Payload(BaseModel):
    """Base of everything that travels: immutable; misspelt fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Usage(Payload):
    """What a step, an attempt or a workflow has used up."""

    model_calls: int = Field(default=0, ge=0, le=2**31 - 1, description="Calls of models.", examples=[3])
    input_tokens: Amount = Field(default=0, description="Tokens that models were given.", examples=[2100])
    output_tokens: Amount = Field(default=0, description="Tokens that models wrote.", examples=[510])
    cost_microdollars: Amount = Field(default=0, description="Millionths of a dollar.", examples=[6765])

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            model_calls=self.model_calls + other.model_calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_microdollars=self.cost_microdollars + other.cost_microdollars,
        )


UsageByModel = Annotated[dict[Annotated[str, StringConstraints(max_length=100)], Usage], Field(max_length=20)]
"""The same usage by the name of the model that was asked."""


class PromptUsed(Payload):
    """A prompt that an attempt asked a model with: as its file says, and what tells whether the text is the same."""

    name: str = Field(max_length=200, description="Whose: the agent, and the file unless that is prompt.md.", examples=["writer"])
    version: int = Field(ge=1, lt=2**31, description="As its front matter declares it.", examples=[3])
    sha256: str = Field(
        pattern=r"^[0-9a-f]{12}$", description="The first 12 digits of its content's hash.", examples=["5f70bf18a086"]
    )


PromptsUsed = Annotated[tuple[PromptUsed, ...], Field(max_length=20)]
"""Each prompt of one attempt once, in the order of their first use."""


class ErrorInfo(Payload):
    """Why something failed: the error's class name and one line without payload or secret."""

    type: str = Field(max_length=100)
    message: str = Field(max_length=2000)


class Remaining(Payload):
    """What a workflow may still use; None means no limit."""

    tokens: int | None = None
    cost_microdollars: int | None = None
    max_tokens: int | None = None
    """Of which `tokens` are left."""
    max_cost_microdollars: int | None = None
    steps: int | None = None
    """Steps that this one may still add."""


class SpawnedStep(Payload):
    """A further step that an agent adds under its own: its id becomes `<the agent's step>/<id>`.

    `input` is taken literally: nothing in it is evaluated. `needs` names other steps of the same spawn; their outputs reach the
    agent as `task.upstream`, by these names.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)]
    agent: Name
    input: Any = None
    needs: tuple[str, ...] = ()
    timeout_seconds: float | None = Field(default=None, gt=0, le=86_400)
    max_retries: int | None = Field(default=None, ge=0, le=100)
    on_failure: Literal["fail", "continue"] = "fail"


class Budget(Payload):
    """The limits of one workflow; None means no limit."""

    max_steps: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=0)
    max_cost_usd: float | None = Field(default=None, ge=0)
    deadline_seconds: float | None = Field(default=None, gt=0)


CallbackUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048)]
"""Where a workflow's end is told. Which addresses may be called is checked where it is taken, and again when it is called."""


class WorkflowRequested(Payload):
    """`agentteam.workflow.requested.v1`: somebody wants a workflow run."""

    workflow: Name
    input: dict[str, Any] = Field(default_factory=dict)
    budget: Budget = Budget()
    priority: int = Field(default=0, ge=-100, le=100)
    callback_url: CallbackUrl | None = None


class StepDispatched(Payload):
    """`agentteam.step.dispatched.v1`: an agent shall work on one attempt of a step.

    It has `timeout_seconds` once it begins; nobody waits for its answer after `deadline`.
    """

    workflow: WorkflowId
    step: StepId
    attempt: Attempt
    deferrals: int = Field(default=0, ge=0, le=2**31 - 1)
    agent: Name
    input: Any = None
    upstream: dict[str, Any] = Field(default_factory=dict)
    timeout_seconds: float = Field(default=300.0, gt=0)
    deadline: AwareDatetime
    remaining: Remaining = Remaining()
    resumed: int = Field(default=0, ge=0, le=2**31 - 1)
    """How often the workflow went on after it had failed: an end before that is none for this attempt."""


class StepCompleted(Payload):
    """`agentteam.step.completed.v1`: one attempt gave a result.

    `join` says what the step's output becomes once every spawned step has ended: None keeps `output`, `*` is the list of their
    outputs in order, and an id is that step's output.
    """

    workflow: WorkflowId
    step: StepId
    attempt: Attempt
    output: Any = None
    usage: Usage = Usage()
    models: UsageByModel = Field(default_factory=dict)
    prompts: PromptsUsed = ()
    spawn: tuple[SpawnedStep, ...] = ()
    join: str | None = None


class StepFailed(Payload):
    """`agentteam.step.failed.v1`: one attempt gave an error; `permanent` errors are not tried again."""

    workflow: WorkflowId
    step: StepId
    attempt: Attempt
    error: ErrorInfo
    permanent: bool = False
    retry_after_seconds: float | None = Field(default=None, ge=0, le=366 * 86_400)
    usage: Usage = Usage()
    models: UsageByModel = Field(default_factory=dict)
    prompts: PromptsUsed = ()


class StepDeferred(Payload):
    """`agentteam.step.deferred.v1`: the attempt shall start again at `not_before`; this burns no attempt."""

    workflow: WorkflowId
    step: StepId
    attempt: Attempt
    deferrals: int = Field(default=0, ge=0)
    not_before: AwareDatetime
    usage: Usage = Usage()
    models: UsageByModel = Field(default_factory=dict)
    prompts: PromptsUsed = ()


class WorkflowCancelled(Payload):
    """`agentteam.workflow.cancelled.v1`: somebody wants a workflow stopped."""

    workflow: WorkflowId
    reason: str = Field(default="", max_length=500)
    by: str = Field(default="", max_length=200)


class WorkflowPaused(Payload):
    """`agentteam.workflow.paused.v1`: somebody wants nothing more of a workflow to start for now.

    `by` is whoever the sender says it is.
    """

    workflow: WorkflowId
    reason: str = Field(default="", max_length=500)
    by: str = Field(default="", max_length=200)


class WorkflowUnpaused(Payload):
    """`agentteam.workflow.unpaused.v1`: somebody wants a paused workflow to go on."""

    workflow: WorkflowId
    reason: str = Field(default="", max_length=500)
    by: str = Field(default="", max_length=200)


Decision = Literal["approve", "reject", "amend"]
"""What a person makes of an approval; who amends gives the value that is to count instead."""


class WorkflowSignalled(Payload):
    """`agentteam.workflow.signalled.v1`: somebody decides on an approval, or sends a signal that a step waits for.

    `name` is the step's id or the signal's name. `by` is whoever the sender says it is.
    """

    workflow: WorkflowId
    name: SignalName
    decision: Decision | None = None
    data: Any = None
    comment: str = Field(default="", max_length=2000)
    by: str = Field(default="", max_length=200)

    @model_validator(mode="after")
    def _has_its_value(self) -> "WorkflowSignalled":
        if self.decision == "amend" and self.data is None:
            raise ValueError("amend needs the value that is to count instead, as data")
        return self


class WorkflowFinished(Payload):
    """`agentteam.workflow.finished.v1`: a workflow ended.

    `output_omitted`: there is an output, which is too large for a message; the state has it.
    """

    workflow: WorkflowId
    name: Name
    status: Literal["SUCCESS", "FAILED", "CANCELLED"]
    output: Any = None
    output_omitted: bool = False
    error: ErrorInfo | None = None
    usage: Usage = Usage()
    callback_url: CallbackUrl | None = None


TYPES: dict[str, type[Payload]] = {
    "agentteam.workflow.requested.v1": WorkflowRequested,
    "agentteam.workflow.cancelled.v1": WorkflowCancelled,
    "agentteam.workflow.paused.v1": WorkflowPaused,
    "agentteam.workflow.unpaused.v1": WorkflowUnpaused,
    "agentteam.workflow.signalled.v1": WorkflowSignalled,
    "agentteam.workflow.finished.v1": WorkflowFinished,
    "agentteam.step.dispatched.v1": StepDispatched,
    "agentteam.step.completed.v1": StepCompleted,
    "agentteam.step.failed.v1": StepFailed,
    "agentteam.step.deferred.v1": StepDeferred,
}
"""CloudEvents type → payload model. A type that is not here is refused."""

TYPE_OF: dict[type[Payload], str] = {model: name for name, model in TYPES.items()}
