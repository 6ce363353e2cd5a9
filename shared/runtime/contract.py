"""The agent contract: `async def run(task: Task, team: Team) -> Result`."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from shared.ai import Prompt
from shared.clock import Clock
from shared.messages import Remaining, SpawnedStep, Usage


@dataclass(frozen=True, slots=True)
class Task:
    """What an agent is asked to do: one attempt of one step."""

    workflow: str
    step: str
    attempt: int
    input: Any
    """The step's rendered input, usually an object."""
    upstream: Mapping[str, Any]
    """Outputs of the steps it needs, when the step declares no input of its own."""
    deadline: datetime
    remaining: Remaining
    """What the workflow may still use."""


@dataclass(frozen=True, slots=True)
class Result:
    """What an agent gives back. `output` is JSON; usage is added up by the team.

    `spawn` adds steps under this one; `join` says what the step's output becomes when they ended (see StepCompleted).
    """

    output: Any
    spawn: tuple[SpawnedStep, ...] = ()
    join: str | None = None


class Team(Protocol):
    """All that an agent may use."""

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that knows the workflow, step and attempt."""
        ...

    @property
    def clock(self) -> Clock:
        """The only clock."""
        ...

    @property
    def prompt(self) -> Prompt | None:
        """The agent's own prompt.md; where a task needs a stricter schema, it is made from this one's."""
        ...

    @property
    def usage(self) -> Usage:
        """What this attempt has used so far."""
        ...

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        values: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> Any:
        """Ask the model: a prompt (the agent's own unless given) rendered with `values` (the task's input unless given).

        Beside the tools that the prompt names, the model may call `tools`: typed functions with a docstring (see shared.ai.tools).
        The answer is JSON that fits the prompt's schema, or `schema` where given. Raises what `Model.generate` raises, and
        BudgetExceeded when the workflow has nothing left to spend.
        """
        ...


Run = Callable[[Task, Team], Awaitable[Result]]
