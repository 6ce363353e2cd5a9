"""Workflows: definitions → DAG, and what the commands of `advance` mean. All pure functions; only the loader reads files."""

from typing import TYPE_CHECKING

from shared.workflows.comparing import compare
from shared.workflows.decisions import decide, render_output, spawned
from shared.workflows.definitions import Definition, InputField, Schedule, Step
from shared.workflows.forking import changed_input, reusable
from shared.workflows.patterns import PATTERNS
from shared.workflows.requests import TASK_BUDGET, TASK_STEP, fork_hash, requested, requested_task, signal_event

if TYPE_CHECKING:
    from shared.workflows.loader import load_definition, load_definitions, parse_definition
else:

    def __getattr__(name: str) -> object:
        # PyYAML costs 15 ms of a cold start; whoever only decides commands never pays for it.
        if name in ("load_definition", "load_definitions", "parse_definition"):
            from shared.workflows import loader

            return getattr(loader, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "PATTERNS",
    "TASK_BUDGET",
    "TASK_STEP",
    "Definition",
    "InputField",
    "Schedule",
    "Step",
    "changed_input",
    "compare",
    "decide",
    "fork_hash",
    "load_definition",
    "load_definitions",
    "parse_definition",
    "render_output",
    "requested",
    "requested_task",
    "reusable",
    "signal_event",
    "spawned",
]
