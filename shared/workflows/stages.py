"""What a pattern is made of: its parameters, the stages that it is decided in, and what comes of each.

A pattern is a pure function from a parent step and parameters to child steps. Parameters travel in the children's `item`; they are
never written into a template, where they would be evaluated.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import InputError
from shared.templates import paths
from shared.workflows.suggestions import quoted, suggestion

Child = dict[str, Any]
"""A step as `step.expanded` adds it: `{"id", "agent", "needs", "spec", "uses_input"}`."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One key of `with`. `objection` says what a value has to be, None when it is; `schema` says the same in JSON Schema.

    What is `literal` stands in the definition and is not looked up. `names_agents` says that its values are agents, which have to
    be there.
    """

    objection: Callable[[Any], str | None]
    required: bool = False
    default: Any = None
    schema: Mapping[str, Any] = field(default_factory=dict)
    literal: bool = False
    names_agents: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a pattern stands: a step of it that is about to be decided on.

    A child may be a stage of its own (`spec.pattern`): it is decided on once what it needs has ended, and becomes further steps or
    the result. `state` is what the stage before left for it, and `upstream` the outputs of the steps it needs, by their full ids.
    """

    step: str
    values: Mapping[str, Any]
    state: Any = None
    upstream: Mapping[str, Any] = field(default_factory=dict)
    remaining: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Expanded:
    """The stage becomes `children`; `join` says what its output becomes when they ended (as in StepCompleted, with full ids)."""

    children: list[Child]
    join: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The stage is over: its output."""

    output: Any


@dataclass(frozen=True, slots=True)
class Pattern:
    """A named way of working together. `expand` is a pure function from a stage, with all parameters, to what comes of it."""

    name: str
    agents: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    expand: Callable[[Stage], Expanded | Completed]

    def problems(self, values: Mapping[str, Any], *, rendered: bool) -> Iterator[tuple[str, str]]:
        """What is wrong with `values`, by key. Unless they are rendered, those that hold look-ups are taken on trust."""
        for key in values.keys() - self.parameters.keys():
            yield key, f"pattern {self.name} has no {quoted(key)}, {suggestion(key, self.parameters, what='parameters')}"
        for key, parameter in self.parameters.items():
            value = values.get(key)
            if value is None:
                if parameter.required:
                    yield key, f"pattern {self.name} needs a value for {key!r}; add it under with"
            elif rendered or parameter.literal or not _has_places(value):
                objection = parameter.objection(value)
                if objection is not None:
                    yield key, f"{key!r} of pattern {self.name} must be {objection}"

    def complete(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Rendered `values` with defaults filled in. Raises InputError naming every one that is wrong."""
        problems = sorted(reason for _, reason in self.problems(values, rendered=True))
        if problems:
            raise InputError("; ".join(problems))
        given = {key: values.get(key) for key in self.parameters}
        return {key: self.parameters[key].default if value is None else value for key, value in given.items()}


def _has_places(value: Any) -> bool:
    try:
        return next(paths(value), None) is not None
    except InputError:
        return True  # braces that hold no look-up are reported where references are checked
