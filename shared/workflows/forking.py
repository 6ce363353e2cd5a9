"""Which steps of a workflow a fork of it may reuse. Pure functions over what the state's `fork_plan` tells.

A step that had ended by the chosen history entry is reused as it ended; one that had become many is reused as such, and each of its
children by itself. Changed input fields take back whatever they may have had a part in: the steps whose templates look them up, and
all that need those, come from them or wait for them as their children.

A nested workflow is not made anew when its input changes: its first child is that input, and what looks up a changed field of it is
affected as outside. The nested workflow then waits for those of its steps. One that failed while the workflow went on is reused
with whatever became of its steps.

A failure counts as an ending only where the workflow was meant to go on after it (`on_failure: continue`).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from shared.errors import InputError
from shared.templates import paths
from shared.workflows.definitions import Definition
from shared.workflows.nesting import TEMPLATES
from shared.workflows.suggestions import quoted, suggestion

_Steps = Sequence[Mapping[str, Any]]


class Reuse(NamedTuple):
    """The ids of the steps that a fork takes over."""

    finished: list[str]
    expanded: list[str]
    """Those that wait for their children, of which some may have to run."""


def reusable(steps: _Steps, changed: Collection[str]) -> Reuse:
    """What a fork may take over of `steps` (`{id, parent, needs, spec, on_failure, last}`) when these input fields change."""
    anew, reopened = _affected(steps, changed) if changed else (set(), set())
    ended = {step["id"] for step in steps if _has_ended(step)} - anew
    given_up = {step["id"] for step in steps if step["last"] == "step.failed"} & ended - reopened
    below = {step["id"] for step in steps if not given_up.isdisjoint(_parents(step["id"]))}
    expanded = ({step["id"] for step in steps if step["last"] == "step.expanded"} | reopened & ended) - anew - below
    finished = ended - expanded | below
    return Reuse([step["id"] for step in steps if step["id"] in finished], [step["id"] for step in steps if step["id"] in expanded])


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


def _affected(steps: _Steps, changed: Collection[str]) -> tuple[set[str], set[str]]:
    """The steps to be made anew, because of a look-up or of where they come from; and those that only wait for such steps again."""
    by_id = {step["id"]: step for step in steps}
    fields = _changed_fields(steps, changed)
    heirs: dict[str, list[str]] = defaultdict(list)
    children: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        for need in step["needs"]:
            # What needs a nested input is affected by the fields of it that it looks up.
            if need not in fields:
                heirs[need].append(step["id"])
        if step["parent"] is not None:
            children[step["parent"]].append(step["id"])
    anew: set[str] = set()
    reopened: set[str] = set()
    waiting = [(step["id"], True) for step in steps if _is_touched(step, fields, has_children=step["id"] in children)]
    while waiting:
        id, made_anew = waiting.pop()
        if id in anew or (id in reopened and not made_anew):
            continue
        (anew if made_anew else reopened).add(id)
        waiting += [(heir, True) for heir in heirs[id]]
        if made_anew:
            # A parent's children are what it made of its input, and its output is what they made of theirs.
            waiting += [(child, True) for child in children[id]]
        parent = by_id[id]["parent"]
        if parent is not None:
            waiting.append((parent, "workflow" not in by_id[parent]["spec"]))
    return anew, reopened - anew


def _changed_fields(steps: _Steps, changed: Collection[str]) -> dict[str, Collection[str]]:
    """The fields that differ of every input in which any does: that of the workflow, `""`, and nested ones by their step."""
    fields: dict[str, Collection[str]] = {"": changed}
    # A nested input may look up that of the workflow around it, which is less deep.
    for step in sorted(steps, key=lambda step: str(step["id"]).count("/")):
        if "takes" in step["spec"]:
            template = step["spec"].get("template")
            if isinstance(template, Mapping):
                found = [name for name, value in template.items() if _looks_up(value, fields)]
            else:
                found = list(step["spec"]["takes"]["fields"]) if _looks_up(template, fields) else []
            if found:
                fields[step["id"]] = found
    return fields


def _is_touched(step: Mapping[str, Any], fields: Mapping[str, Collection[str]], *, has_children: bool) -> bool:
    # A literal input and an item are data, whatever braces they hold. Once a nested workflow began its input is a step of its own.
    spec = step["spec"]
    names = [name for name in TEMPLATES if not (name == "template" and "workflow" in spec and has_children)]
    return step["id"] in fields or _looks_up([spec.get(name) for name in names], fields)


def _looks_up(template: Any, fields: Mapping[str, Collection[str]]) -> bool:
    """Whether it looks up a field that differs, of the workflow's input or of a nested one."""
    for path in paths(template):
        if path[0] == "input":
            of, name = "", path[1:2]
        elif path[0] == "steps" and len(path) > 1:
            of, name = str(path[1]), path[3:4]
        else:
            continue
        if of in fields and (not name or name[0] in fields[of]):
            return True
    return False


def _parents(id: str) -> Iterator[str]:
    while "/" in id:
        id = id.rpartition("/")[0]
        yield id


def _text(value: Any) -> bytes:
    """JSON that is the same for the same value alone: in Python 1, 1.0 and True are one."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
