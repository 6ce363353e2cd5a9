"""What the API answers, as its documentation shows it. What it takes is in `request_models`.

Answers come from the state as they are; a test holds them to these models.
"""

from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from shared.messages import PromptUsed, Usage
from shared.messages.payloads import Name, StepId, WorkflowId

WorkflowStatus = Literal["QUEUED", "RUNNING", "WAITING", "SUCCESS", "FAILED", "CANCELLED"]
StepStatus = Literal["PENDING", "RUNNING", "WAITING", "SUCCESS", "FAILED", "SKIPPED", "CANCELLED"]
EXAMPLE_ID = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
EXAMPLE_MOMENT = "2026-11-24T09:30:00Z"
EXAMPLE_USAGE = {"model_calls": 3, "input_tokens": 2100, "output_tokens": 510, "cost_microdollars": 6765}


class Part(BaseModel):
    """What answers and bodies are made of."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Links(Part):
    """Where to look next."""

    self: str = Field(description="The workflow.", examples=[f"/v1/workflows/{EXAMPLE_ID}"])
    history: str = Field(description="What happened to it.", examples=[f"/v1/workflows/{EXAMPLE_ID}/history"])
    events: str = Field(description="The same as it happens.", examples=[f"/v1/workflows/{EXAMPLE_ID}/events"])


class Accepted(Part):
    """The workflow that a request was about, durable by now."""

    id: WorkflowId = Field(description="Of the workflow.", examples=[EXAMPLE_ID])
    status: WorkflowStatus = Field(description="As of this answer.", examples=["RUNNING"])
    links: Links = Field(description="Where to look next.")


class Failure(Part):
    """Why something failed."""

    type: str = Field(description="The error's class.", examples=["BudgetExceeded"])
    message: str = Field(description="One line, without data.", examples=["the workflow passed its max_tokens"])
    step: StepId | None = Field(default=None, description="The step that failed the workflow.", examples=["draft"])


class Limits(Part):
    """The budget in force; null means no limit."""

    max_steps: int | None = Field(description="Steps, those that are added on the way included.", examples=[50])
    max_tokens: int | None = Field(description="Tokens in and out, of all steps.", examples=[200_000])
    max_cost_microdollars: int | None = Field(description="Millionths of a dollar.", examples=[500_000])
    deadline_seconds: float | None = Field(description="Counted from the start of the first step.", examples=[900])


_EXAMPLE_MODELS = {
    "gemini-2.5-pro": {"model_calls": 2, "input_tokens": 1800, "output_tokens": 420, "cost_microdollars": 6450},
    "gemini-2.5-flash": {"model_calls": 1, "input_tokens": 300, "output_tokens": 90, "cost_microdollars": 315},
}


class Place(Part):
    """Where a workflow stands in the queue: by priority, and within one tenants take turns."""

    position: int = Field(
        description="1 comes next. Counted as if all that runs went on; ends of others and new requests change it.", examples=[3]
    )
    ahead: int = Field(description="How many come before it.", examples=[2])
    exact: bool = Field(
        description="False for an estimate: some of a higher priority come first, or counting ended at 1,000 workflows "
        "or 100 tenants.",
        examples=[True],
    )


class WorkflowHead(Part):
    """One run of a definition, without its steps."""

    id: WorkflowId = Field(description="`wf_` and a ULID: later ones sort after earlier ones.", examples=[EXAMPLE_ID])
    workflow: Name = Field(description="The definition; of one agent's task the agent.", examples=["report"])
    version: int = Field(description="Of the definition, as it was at the request.", examples=[1])
    status: WorkflowStatus = Field(description="SUCCESS, FAILED and CANCELLED are ends.", examples=["SUCCESS"])
    priority: int = Field(description="As asked for.", examples=[0])
    seq: int = Field(description="The number of the last history entry.", examples=[21])
    steps_total: int = Field(description="Steps so far: plans and debates add more as they go.", examples=[9])
    steps_open: int = Field(description="Steps that have not ended.", examples=[0])
    error: Failure | None = Field(description="Why it ended without success.", examples=[None])
    usage: Usage = Field(
        description="Of all steps and all their attempts; cost in millionths of a dollar.", examples=[EXAMPLE_USAGE]
    )
    created_at: AwareDatetime = Field(description="When it was asked for.", examples=[EXAMPLE_MOMENT])
    started_at: AwareDatetime | None = Field(description="When its first step could start.", examples=[EXAMPLE_MOMENT])
    finished_at: AwareDatetime | None = Field(description="When it ended.", examples=[EXAMPLE_MOMENT])
    forked_from: WorkflowId | None = Field(description="The workflow whose finished steps it took over.", examples=[None])
    forked_at: int | None = Field(description="The entry of that one's history up to which it did.", examples=[None])
    tenant: str = Field(
        description="Who asked for it: the name of their API key; empty where none was shown. Tenants share the slots.",
        examples=["ci"],
    )
    paused_at: AwareDatetime | None = Field(description="Since when nothing of it starts; null when all may.", examples=[None])
    paused_by: str | None = Field(description="Who paused it.", examples=[None])
    queue: Place | None = Field(description="Its place while it is QUEUED; else null.", examples=[None])


class Waiting(Part):
    """What a step waits for."""

    for_: Literal["approval", "signal", "time"] = Field(alias="for", description="What ends it.", examples=["approval"])
    name: str = Field(description="Under which it can be signalled.", examples=["approve"])
    prompt: str | None = Field(
        default=None, description="What is to be decided; of an approval only.", examples=["Send this answer?"]
    )
    since: AwareDatetime = Field(description="When it began to wait.", examples=[EXAMPLE_MOMENT])
    until: AwareDatetime | None = Field(description="When it waits no longer; null for never.", examples=[None])


class StepLinks(Part):
    """Where a step can be decided."""

    approve: str = Field(
        description="A page for whoever is to decide, who needs no key: pass it on to them alone. It lasts as long as the approval "
        "waits, 7 days where that has no end, and is good for one decision.",
        examples=["https://team.example.com/approve/WyJ3Zl8w….qJmt6wzV…"],
    )


class Step(Part):
    """One unit of agent work."""

    id: StepId = Field(description="Its name in the workflow.", examples=["research/0"])
    parent: StepId | None = Field(description="The step that added this one.", examples=["research"])
    agent: str = Field(
        description="Who works on it; `pattern:` or `workflow:` and a name where it stands for others.", examples=["researcher"]
    )
    status: StepStatus = Field(description="SUCCESS, FAILED, SKIPPED and CANCELLED are ends.", examples=["SUCCESS"])
    attempt: int = Field(description="The last attempt, counted from 1; 0 before the first.", examples=[1])
    needs: list[StepId] = Field(description="The steps that end before it starts.", examples=[["plan"]])
    output: Any = Field(
        default=None,
        description="Null until it ended with SUCCESS. Over 64 KB a reference: `$output` with sha256, bytes and href.",
        examples=[{"findings": []}],
    )
    error: Failure | None = Field(description="Of its last attempt that failed.", examples=[None])
    waiting: Waiting | None = Field(description="Null unless it waits for people, time or a signal.", examples=[None])
    links: StepLinks | None = Field(
        default=None, description="Only while it waits for an approval, and only for callers who may `submit`.", examples=[None]
    )
    started_at: AwareDatetime | None = Field(description="When its first attempt started.", examples=[EXAMPLE_MOMENT])
    finished_at: AwareDatetime | None = Field(description="When it ended.", examples=[EXAMPLE_MOMENT])
    usage: Usage = Field(description="Of all attempts, those that came too late to count included.", examples=[EXAMPLE_USAGE])
    models: dict[str, Usage] = Field(
        description="The usage by the model that was asked; empty where no model was.", examples=[_EXAMPLE_MODELS]
    )
    prompts: list[PromptUsed] = Field(
        description="What its last attempt asked models with, each prompt once; empty where it asked none.",
        examples=[[{"name": "researcher", "version": 2, "sha256": "5f70bf18a086"}]],
    )
    reused: bool = Field(
        description="Taken over from the workflow that this one is a fork of, where its usage is counted.", examples=[False]
    )


class Workflow(WorkflowHead):
    """One run of a definition, with its steps, input and output."""

    input: dict[str, Any] = Field(description="As asked for, defaults filled in.", examples=[{"brief": "Why do ferries run late?"}])
    output: Any = Field(description="Null until the workflow ended with SUCCESS.", examples=[{"text": "# Why ferries run late"}])
    budget: Limits = Field(description="The limits in force.")
    models: dict[str, Usage] = Field(description="The usage of all steps by the model that was asked.", examples=[_EXAMPLE_MODELS])
    steps: list[Step] = Field(description="Each step; the ones that others added after those.")


class StepThen(Part):
    """A step as it was."""

    id: StepId = Field(description="Its name in the workflow.", examples=["research/0"])
    parent: StepId | None = Field(description="The step that added this one.", examples=["research"])
    agent: str = Field(description="Who works on it.", examples=["researcher"])
    status: StepStatus = Field(description="After that entry.", examples=["SUCCESS"])
    output: Any = Field(default=None, description="Null until it ended with SUCCESS.", examples=[{"findings": []}])


class Snapshot(Part):
    """A workflow as it was after an entry of its history."""

    id: WorkflowId = Field(description="The workflow.", examples=[EXAMPLE_ID])
    workflow: Name = Field(description="The definition; of one agent's task the agent.", examples=["report"])
    version: int = Field(description="Of the definition.", examples=[1])
    seq: int = Field(description="The number of the entry.", examples=[7])
    status: WorkflowStatus = Field(description="After that entry.", examples=["RUNNING"])
    steps: list[StepThen] = Field(description="The steps that there were.")


class WorkflowPage(Part):
    """Workflows, the newest first."""

    items: list[WorkflowHead] = Field(description="One page of them.")
    next_cursor: str | None = Field(description="Give this as `cursor` for the next page; null on the last.", examples=[None])


class HistoryEntry(Part):
    """Something that happened."""

    seq: int = Field(description="Counted from 1, without gaps.", examples=[7])
    at: AwareDatetime = Field(description="When.", examples=[EXAMPLE_MOMENT])
    type: str = Field(description="What.", examples=["step.completed"])
    step: StepId | None = Field(description="Whose, if a step's.", examples=["plan"])
    attempt: int | None = Field(description="Of the step.", examples=[1])
    data: Any = Field(default=None, description="More of it, by type.", examples=[None])


class HistoryPage(Part):
    """History entries, the oldest first."""

    items: list[HistoryEntry] = Field(description="One page of them.")
    next_after: int | None = Field(
        description="Give this as `after` for the next page; null when there is no more so far.", examples=[None]
    )


class Health(Part):
    """The gateway answers."""

    status: Literal["ok"] = Field(description="That it answers.", examples=["ok"])
    timestamp: AwareDatetime = Field(description="The time here.", examples=[EXAMPLE_MOMENT])
    uptime: float = Field(description="Seconds since this instance began to answer.", examples=[12.5])


Verdict = Literal["healthy", "unhealthy"]


class Ready(Part):
    """Whether the gateway can do its work, and what of it cannot."""

    status: Verdict = Field(description="`healthy` when every check is.", examples=["healthy"])
    checks: dict[str, Verdict] = Field(
        description="`redis` or `firestore` only where they are used.",
        examples=[{"database": "healthy", "redis": "healthy", "ai_service": "healthy"}],
    )
    latency_ms: dict[str, float] | None = Field(
        default=None, description="How long each check took; only for callers who may read.", examples=[{"database": 1.9}]
    )
    errors: dict[str, str] | None = Field(
        default=None,
        description="For each unhealthy check what is wrong, where, and how to mend it; only for callers who may read.",
        examples=[{}],
    )


class FieldMistake(Part):
    """One thing that is wrong with a request."""

    field: str = Field(description="Dotted; `body` for the body as a whole.", examples=["budget.max_tokens"])
    message: str = Field(description="What, and what it should be.", examples=["Input should be greater than or equal to 0"])


class Problem(BaseModel):
    """What went wrong: https://www.rfc-editor.org/rfc/rfc9457."""

    type: str = Field(
        description="`about:blank` where the status says it all.", examples=["urn:agent-team:problem:invalid-request"]
    )
    title: str = Field(description="The kind in words.", examples=["The request is not valid"])
    status: int = Field(description="The answer's status.", examples=[422])
    detail: str = Field(description="What was wrong this time, in one line.", examples=["workflow: Field required"])
    errors: list[FieldMistake] | None = Field(default=None, description="With 422: every mistake, without the value that was sent.")
