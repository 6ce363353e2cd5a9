"""Patterns: ways of working together that take several steps. The registry; what a pattern is made of is in stages.py."""

from dataclasses import replace

from shared.errors import InputError
from shared.workflows.debate import DEBATE
from shared.workflows.planning import PLAN
from shared.workflows.stages import Child, Completed, Expanded, Parameter, Pattern, Stage
from shared.workflows.suggestions import quoted, suggestion

PATTERNS: dict[str, Pattern] = {pattern.name: pattern for pattern in (DEBATE, PLAN)}
"""Every pattern, by the name that a definition uses."""


def expand(name: str, stage: Stage) -> Expanded | Completed:
    """What comes of a stage of pattern `name`.

    Raises InputError for a pattern that is not there or rendered values that do not fit it.
    """
    pattern = PATTERNS.get(name)
    if pattern is None:
        raise InputError(f"there is no pattern {quoted(name)}, {suggestion(name, PATTERNS, what='patterns')}")
    return pattern.expand(replace(stage, values=pattern.complete(stage.values)))


__all__ = ["PATTERNS", "Child", "Completed", "Expanded", "Parameter", "Pattern", "Stage", "expand"]
