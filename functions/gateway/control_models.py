"""What the routes that stop a workflow, for good or for a while, take and answer."""

from pydantic import AwareDatetime, ConfigDict, Field

from functions.gateway.models import EXAMPLE_MOMENT, EXAMPLE_USAGE, Accepted, Part, WorkflowStatus
from shared.messages import Usage
from shared.messages.payloads import StepId

_BY = "Who says so. Nobody checks it while the API is open; else it is the caller's own name, whatever stands here."


class CancelRequest(Part):
    """Why a workflow is cancelled."""

    model_config = ConfigDict(strict=True)

    # PostgreSQL's jsonb has no NUL.
    reason: str = Field(
        default="", max_length=500, pattern=r"^[^\x00]*$", description="Kept with the workflow.", examples=["asked for twice"]
    )
    by: str = Field(default="", max_length=200, pattern=r"^[^\x00]*$", description=_BY, examples=["ann@example.com"])


class RunningStep(Part):
    """A step that was at work."""

    step: StepId = Field(description="Its name in the workflow.", examples=["research/0"])
    agent: str = Field(description="Who worked on it.", examples=["researcher"])
    attempt: int = Field(description="Counted from 1.", examples=[1])
    since: AwareDatetime = Field(description="When the attempt started.", examples=[EXAMPLE_MOMENT])


class Receipt(Part):
    """What a cancellation found and stopped. It stays the same, however often it is asked for."""

    at: AwareDatetime = Field(description="When it was cancelled.", examples=[EXAMPLE_MOMENT])
    by: str = Field(description="By whom; empty where nobody said so.", examples=["ann@example.com"])
    reason: str = Field(description="As given.", examples=["asked for twice"])
    was: WorkflowStatus = Field(description="The workflow's status until then.", examples=["RUNNING"])
    running: int = Field(description="Steps that were at work.", examples=[1])
    running_steps: list[RunningStep] = Field(
        description="Those, at most 50. Their calls are told to stop within a second; what they still use is added to the "
        "workflow's usage, not to this receipt."
    )
    stopped: int = Field(description="Steps that were not at work: they had not begun, or waited.", examples=[2])
    stopped_steps: list[StepId] = Field(description="Those, at most 50.", examples=[["draft", "review"]])
    finished: int = Field(description="Steps that had ended; their results stay.", examples=[3])
    usage: Usage = Field(description="Of the whole workflow by then.", examples=[EXAMPLE_USAGE])
    usage_may_grow: bool = Field(description="Whether calls were under way that may still be counted.", examples=[True])


class Cancelled(Accepted):
    """A workflow that was to be cancelled, as it is now."""

    receipt: Receipt | None = Field(description="Null for a workflow that had ended otherwise.")


class PauseRequest(Part):
    """Why a workflow is paused, or goes on."""

    model_config = ConfigDict(strict=True)

    reason: str = Field(
        default="",
        max_length=500,
        pattern=r"^[^\x00]*$",
        description="Kept in the history.",
        examples=["the budget is being looked at"],
    )
    by: str = Field(default="", max_length=200, pattern=r"^[^\x00]*$", description=_BY, examples=["ann@example.com"])


class Pause(Accepted):
    """A workflow that is paused, or is no longer."""

    paused_at: AwareDatetime | None = Field(description="Since when; null when it goes on.", examples=[EXAMPLE_MOMENT])
    paused_by: str | None = Field(description="By whom; null when it goes on.", examples=["ann@example.com"])
