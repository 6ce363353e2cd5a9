"""A workflow definition: a named, versioned DAG of steps, and the input that it takes."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from shared.errors import InputError
from shared.messages import Budget
from shared.messages.payloads import Name
from shared.templates import paths
from shared.workflows.suggestions import quoted, suggestion
from shared.workflows.waiting import LONGEST_WAIT_SECONDS

MAX_STEPS = 1000
"""Steps that a definition may declare."""

FieldName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$", max_length=60)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputField(_Part):
    """One field of a workflow's input. One that is not required and has no default is null when it is not given."""

    type: Literal["string", "integer", "number", "boolean", "array", "object"]
    required: bool = False
    default: Any = None
    description: str = ""

    def takes(self, value: Any) -> bool:
        """Whether `value` is of this field's type."""
        return _TAKES[self.type](value)


LEAST_INTEGER, LARGEST_INTEGER = -(2**63) + 1, 2**64 - 1
"""What messages can hold. JSON beyond is read as a float, the first one below as -2⁶³ itself: that would be another number."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    # JSON has one kind of number: 3.0 is 3.
    return _is_number(value) and LEAST_INTEGER <= value <= LARGEST_INTEGER and value == int(value)


_TAKES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "array": lambda value: isinstance(value, list | tuple),
    "object": lambda value: isinstance(value, Mapping),
}


class Approval(_Part):
    """A decision that a person makes. `prompt` is what they are asked; unanswered in time, `default` is the answer."""

    prompt: str = Field(min_length=1)
    timeout_seconds: float | None = Field(default=None, gt=0, le=LONGEST_WAIT_SECONDS)
    default: Literal["approve", "reject"] | None = None


class Wait(_Part):
    """A pause: some seconds, until a moment, or until a signal comes. The first two may be templates."""

    seconds: Any = None
    until: Any = None
    signal: FieldName | None = None
    timeout_seconds: float | None = Field(default=None, gt=0, le=LONGEST_WAIT_SECONDS)


class SpawnLimits(_Part):
    """What an agent may spawn under its step, and what it spawned under theirs; None is the platform's limit.

    Of `max_steps` each spawned step may spawn an equal share of what its siblings leave; of `max_depth` one less.
    """

    agents: tuple[Name, ...] | None = None
    max_steps: int | None = Field(default=None, ge=0, le=10_000)
    max_depth: int | None = Field(default=None, ge=0, le=5)


class Step(_Part):
    """One step as declared: an agent or a workflow with an input template, a pattern with its parameters, an approval or a wait.

    `max_retries` None means the platform's default. `on_failure: continue` lets the steps that need it go on with null.
    """

    id: FieldName
    agent: Name | None = None
    workflow: Name | None = None
    pattern: str | None = None
    approval: Approval | None = None
    wait: Wait | None = None
    with_: dict[str, Any] = Field(default_factory=dict, alias="with")
    needs: tuple[str, ...] = ()
    for_each: Any = None
    input: Any = None
    spawn: SpawnLimits | None = None
    when: Any = None
    timeout_seconds: float = Field(default=300.0, gt=0, le=86_400)
    max_retries: int | None = Field(default=None, ge=0, le=100)
    on_failure: Literal["fail", "continue"] = "fail"

    @cached_property
    def spec(self) -> dict[str, Any]:
        """What `decide` needs to know when the step is about to be dispatched; opaque to everybody else.

        Of a nested workflow the name stands here, and a run has the definition in its place.
        """
        declared = {
            "template": self.input,
            "when": self.when,
            "for_each": self.for_each,
            "workflow": self.workflow,
            "pattern": self.pattern,
            "with": None if self.pattern is None else self.with_,
            "approval": None if self.approval is None else self.approval.model_dump(exclude_none=True),
            "wait": None if self.wait is None else self.wait.model_dump(exclude_none=True),
            "spawn": None if self.spawn is None else self.spawn.model_dump(mode="json", exclude_none=True),
        }
        return {key: value for key, value in declared.items() if value is not None}

    @cached_property
    def uses_input(self) -> bool:
        """Whether a template of this step looks up the workflow's input."""
        return uses_input([self.spec.get(key) for key in ("template", "when", "for_each", "with", "approval", "wait")])

    @cached_property
    def kind(self) -> str:
        """Who or what it is for: an agent's name, `workflow:<name>`, `pattern:<name>`, or `wait:` and approval, time or signal."""
        if self.approval is not None:
            return "wait:approval"
        if self.wait is not None:
            return "wait:time" if self.wait.signal is None else "wait:signal"
        if self.workflow is not None:
            return f"workflow:{self.workflow}"
        return f"pattern:{self.pattern}" if self.agent is None else self.agent

    @cached_property
    def signal(self) -> str | None:
        """The signal that wakes the step; None for one that does not wait. Its own id always does."""
        if self.approval is None and self.wait is None:
            return None
        return self.id if self.wait is None or self.wait.signal is None else self.wait.signal


class Schedule(_Part):
    """When a workflow starts by itself: a cron expression (UTC), what becomes of missed ticks, and the input of each run."""

    cron: str
    catch_up: Literal["skip", "last", "all"] = "skip"
    input: dict[FieldName, Any] = Field(default_factory=dict)


class Definition(_Part):
    """A checked definition; made by `load_definition`, which is what holds its steps to be a DAG."""

    name: Name
    version: int = Field(ge=1, lt=2**31)
    description: str = ""
    schedule: Schedule | None = None
    input: dict[FieldName, InputField] = Field(default_factory=dict)
    budget: Budget = Budget()
    steps: tuple[Step, ...] = Field(min_length=1, max_length=MAX_STEPS)
    output: Any = None

    @field_validator("schedule", mode="before")
    @classmethod
    def _from_its_expression(cls, value: Any) -> Any:
        return Schedule(cron=value) if isinstance(value, str) else value

    @cached_property
    def output_template(self) -> Any:
        """The declared output; else the output of the only step that no other needs, or those of all such steps by id."""
        if self.output is not None:
            return self.output
        needed = {need for step in self.steps for need in step.needs}
        sinks = {step.id: f"{{{{ steps.{step.id}.output }}}}" for step in self.steps if step.id not in needed}
        return next(iter(sinks.values())) if len(sinks) == 1 else sinks

    @cached_property
    def output_needs(self) -> tuple[str, ...]:
        """The steps whose outputs the output is made of."""
        return used_steps(self.output_template)

    @cached_property
    def output_uses_input(self) -> bool:
        """Whether the output looks up the workflow's input."""
        return uses_input(self.output_template)

    @cached_property
    def nests(self) -> tuple[str, ...]:
        """The workflows that are steps of this one, each once."""
        return tuple(dict.fromkeys(step.workflow for step in self.steps if step.workflow is not None))

    def check_input(self, input: Mapping[str, Any]) -> dict[str, Any]:
        """`input` with defaults filled in; null counts as not given. Raises InputError naming every field that is wrong."""
        return complete_input(self.name, self.input, input)


def complete_input(workflow: str, fields: Mapping[str, InputField], input: Mapping[str, Any]) -> dict[str, Any]:
    """`input` of `workflow` with the defaults of `fields` filled in. Raises InputError naming every field that is wrong."""
    problems = [
        f"{quoted(name)} is unknown, {suggestion(str(name), fields, what='fields')}" for name in input if name not in fields
    ]
    complete: dict[str, Any] = {}
    for name, field in fields.items():
        value = input.get(name)
        if value is None:
            value = field.default
            if field.required:
                problems.append(f"{name!r} is missing, give a value of type {field.type}")
        elif not field.takes(value):
            problems.append(f"{name!r} must be of type {field.type}, not {type_name(value)}")
        complete[name] = int(value) if field.type == "integer" and field.takes(value) else value
    if problems:
        raise InputError(f"input of {workflow}: {'; '.join(problems)}")
    return complete


def type_name(value: Any) -> str:
    """What JSON calls a value of this kind."""
    return next((name for name in ("boolean", "integer", "number", "string", "array", "object") if _TAKES[name](value)), "no JSON")


def uses_input(template: Any) -> bool:
    """Whether `template` looks up the workflow's input."""
    return any(path[0] == "input" for path in paths(template))


def used_steps(template: Any) -> tuple[str, ...]:
    """The ids of the steps whose outputs `template` looks up, each once, in the order of their first use."""
    return tuple(dict.fromkeys(str(path[1]) for path in paths(template) if path[0] == "steps" and len(path) > 1))


LARGEST_BUDGET = {"max_steps": 1_000_000, "max_tokens": 10**12, "max_cost_usd": 1_000_000.0, "deadline_seconds": 366 * 86_400.0}


def budget_problems(budget: Budget) -> Iterator[tuple[str, str]]:
    """Each limit that is too large to be counted or to be meant, with the reason."""
    for name, largest in LARGEST_BUDGET.items():
        value = getattr(budget, name)
        if value is not None and not value <= largest:
            yield name, f"budget.{name} should be at most {largest:,.0f}; leave it out for no limit"
