"""Which steps of a workflow a fork of it may reuse. Pure functions over what the state's `fork_plan` tells.

A step that had ended by the chosen history entry is reused as it ended; one that had become many is reused as such, and each of its
children by itself. Changed input fields take back whatever they may have had a part in: the steps whose templates look them up, and
all that need those, come from them or wait for them as their children.

A failure counts as an ending only where the workflow was meant to go on after it (`on_failure: continue`).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from shared.errors import InputError
from shared.templates import paths
from shared.workflows.definitions import Definition
from shared.workflows.suggestions import quoted, suggestion

_TEMPLATES = ("template", "when", "for_each", "with", "approval", "wait")


class Reuse(NamedTuple):
    """The ids of the steps that a fork takes over."""

    finished: list[str]
    expanded: list[str]
    """Those that wait for their children, of which some may have to run."""


def reusable(steps: Sequence[Mapping[str, Any]], changed: Collection[str]) -> Reuse:
    """What a fork may take over of `steps` (`{id, parent, needs, spec, on_failure, last}`) when these input fields change."""
    affected = _affected(steps, changed) if changed else set()
    finished = [step["id"] for step in steps if step["id"] not in affected and _has_ended(step)]
    expanded = [step["id"] for step in steps if step["id"] not in affected and step["last"] == "step.expanded"]
    return Reuse(finished, expanded)


def changed_input(
    plan: Mapping[str, Any], params: Mapping[str, Any], definition: Definition | None
) -> tuple[dict[str, Any], list[str]]:
    """The input of a fork with `params` laid over the original's, and the names of the fields that differ.

    `definition` is the one that the original was started with, None where it is there no longer: then only the fields' names can
    be checked. Raises InputError.
    """
    known: dict[str, Any] = plan["input"]
    if definition is not None:
        given = {name: value for name, value in known.items() if value is not None}
        complete = definition.check_input(given | dict(params)) if params else known
    else:
        for name in params:
            if name not in known:
                raise InputError(
                    f"input of {plan['workflow']}: {quoted(name)} is unknown, {suggestion(name, known, what='fields')}"
                )
        complete = known | dict(params)
    return complete, [name for name, value in complete.items() if _text(value) != _text(known.get(name))]


def _has_ended(step: Mapping[str, Any]) -> bool:
    last = step["last"]
    return last in ("step.completed", "step.skipped") or (last == "step.failed" and step["on_failure"] == "continue")


def _affected(steps: Sequence[Mapping[str, Any]], changed: Collection[str]) -> set[str]:
    """The steps that look a changed field up, and whatever came of those."""
    heirs: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        for need in step["needs"]:
            heirs[need].append(step["id"])
        if step["parent"] is not None:
            # A parent's children are what it made of its input, and its output is what they made of theirs.
            heirs[step["parent"]].append(step["id"])
            heirs[step["id"]].append(step["parent"])
    found: set[str] = set()
    waiting = [step["id"] for step in steps if _looks_up(step["spec"], changed)]
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            waiting += heirs[id]
    return found


def _looks_up(spec: Mapping[str, Any], changed: Collection[str]) -> bool:
    # A literal input and an item are data, whatever braces they hold.
    looked_up = paths([spec.get(name) for name in _TEMPLATES])
    return any(path[0] == "input" and (len(path) == 1 or path[1] in changed) for path in looked_up)


def _text(value: Any) -> bytes:
    """JSON that is the same for the same value alone: in Python 1, 1.0 and True are one."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
