"""What the API takes, as its documentation shows it: bodies, read strictly."""

from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field

from functions.gateway.models import Part
from shared.messages import Budget, WorkflowRequested
from shared.messages.payloads import CallbackUrl, Name, StepId
from shared.workflows.definitions import LARGEST_BUDGET

_MAX_FIELDS = 1000
"""No definition has as many; more of them would only cost the time to list each as unknown."""


def _whole(given: Any) -> Any:
    # JSON has one kind of number: 3.0 is 3.
    return int(given) if isinstance(given, float) and given.is_integer() else given


WHOLE = BeforeValidator(_whole)
"""Makes an `int` of a body that is read strictly, where text and booleans are none, take 3.0 too. Limits stand before it."""
Fields = Annotated[dict[str, Any], Field(max_length=_MAX_FIELDS)]
Priority = Annotated[
    int,
    Field(ge=-100, le=100, description="Where others wait for a slot too, the highest comes first.", examples=[0]),
    WHOLE,
]
ToldAt = Annotated[
    CallbackUrl | None,
    Field(
        description="Where the end is told: a signed POST (standardwebhooks.com), again and again until it is accepted. "
        "An http or https address on the public internet.",
        examples=["https://example.org/hooks/agent-team"],
        json_schema_extra={"format": "public-url"},
    ),
]


class OwnBudget(Budget):
    """Limits of one run; those that are left out or null stay as they are."""

    model_config = ConfigDict(strict=True)

    max_steps: Annotated[int, Field(ge=1, le=LARGEST_BUDGET["max_steps"]), WHOLE] | None = Field(
        default=None,
        description="Steps, those that are added on the way included.",
        examples=[50],
    )
    max_tokens: Annotated[int, Field(ge=0, le=LARGEST_BUDGET["max_tokens"]), WHOLE] | None = Field(
        default=None, description="Tokens in and out, of all steps.", examples=[200_000]
    )
    max_cost_usd: float | None = Field(
        default=None, ge=0, le=LARGEST_BUDGET["max_cost_usd"], description="Dollars, by the models' list prices.", examples=[0.5]
    )
    deadline_seconds: float | None = Field(
        default=None,
        gt=0,
        le=LARGEST_BUDGET["deadline_seconds"],
        description="Counted from the start of the first step.",
        examples=[900],
    )


class SubmitRequest(WorkflowRequested):
    """A workflow to run."""

    model_config = ConfigDict(strict=True)

    workflow: Annotated[Name, Field(description="The definition to run.", examples=["report"])]
    input: Fields = Field(
        default_factory=dict, description="The fields that the definition takes.", examples=[{"brief": "Why do ferries run late?"}]
    )
    budget: OwnBudget = Field(default=OwnBudget(), description="Limits that replace the definition's.")
    priority: Priority = 0
    callback_url: ToldAt = None


class TaskRequest(Part):
    """Work for one agent."""

    model_config = ConfigDict(strict=True)

    input: Fields = Field(description="What the agent's prompt takes.", examples=[{"brief": "Why do ferries run late?"}])
    budget: OwnBudget = Field(
        default=OwnBudget(), description="Limits in place of 50 steps, 200,000 tokens, 1 dollar and an hour.", examples=[{}]
    )
    priority: Priority = 0
    callback_url: ToldAt = None


class ForkRequest(Part):
    """From where, and with which changes, a workflow runs once more."""

    model_config = ConfigDict(strict=True)

    at: Annotated[int, Field(ge=1, lt=2**31), WHOLE] | None = Field(
        default=None, description="The `seq` of a history entry; the last one when left out.", examples=[12]
    )
    params: Fields = Field(
        default_factory=dict,
        description="Input fields that change. Every step that they had a part in runs again.",
        examples=[{"brief": "Why do ferries to Mull run late?"}],
    )


class RerunRequest(Part):
    """Which step to go on from."""

    model_config = ConfigDict(strict=True)

    step: StepId | None = Field(
        default=None, description="To be sure: refused when another one failed the workflow.", examples=["draft"]
    )
