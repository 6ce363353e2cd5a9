"""What a definition has to be: first its shape, then what its parts say about each other.

Everything wrong is noted in the Source, with its line, so that one look shows all of it.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from shared.errors import InputError
from shared.messages import Budget
from shared.templates import Path, paths
from shared.workflows.definitions import Approval, Definition, InputField, Schedule, SpawnLimits, Step, Wait, budget_problems
from shared.workflows.patterns import PATTERNS
from shared.workflows.schedules import objection
from shared.workflows.source import Source
from shared.workflows.suggestions import quoted, suggestion
from shared.workflows.waiting import seconds_objection, until_objection

_Part = TypeVar("_Part", bound=BaseModel)

_SHAPES = {"model_type": "a mapping", "dict_type": "a mapping", "tuple_type": "a list", "string_type": "text; put it in quotes"}
_SUBJECT = re.compile("^(Input|String|Tuple|Dictionary)")


@dataclass(frozen=True, slots=True)
class _Names:
    """What can be referred to: read from the raw values, so that one wrong step does not make every reference to it wrong."""

    agents: Collection[str]
    fields: Mapping[str, Any]
    steps: Collection[str]


def checked(source: Source, *, agents: Collection[str]) -> Definition:
    """The definition that `source` holds. Raises DefinitionError with everything that is wrong."""
    if not isinstance(source.value, dict):
        source.problem((), "a definition is a mapping; write name, version and steps")
        source.refuse()
    definition, steps = _shaped(source)
    fields = source.value.get("input")
    names = _Names(agents=agents, fields=fields if isinstance(fields, dict) else {}, steps=_step_ids(source))
    for index, step in steps.items():
        _check_step(source, index, step, names)
    _check_cycles(source, steps)
    for at, place in _places(source, ("output",), source.value.get("output")):
        _check_place(source, at, place, names, needs=names.steps, item=False)
    if definition is None:
        source.refuse()
    _check_input_fields(source, definition)
    _check_schedule(source, definition)
    _check_budget(source, definition)
    source.check()
    return definition


def _shaped(source: Source) -> tuple[Definition | None, dict[int, Step]]:
    """The definition if its shape is right, and each step whose own shape is right, by its index."""
    definition = _part(source, Definition, (), source.value)
    if definition is not None:
        return definition, dict(enumerate(definition.steps))
    steps = source.value.get("steps")
    shaped = {
        index: _part(source, Step, ("steps", index), raw) for index, raw in enumerate(steps if isinstance(steps, list) else ())
    }
    return None, {index: step for index, step in shaped.items() if step is not None}


def _part(source: Source, model: type[_Part], at: Path, value: Any) -> _Part | None:
    try:
        # As JSON, because strict validation takes a list for a tuple and an object for a model only there.
        return model.model_validate_json(orjson.dumps(value), strict=True)
    except ValidationError as exc:
        errors = exc.errors(include_url=False)
        for error in errors:
            if error["type"] == "too_short" and any(_within(other["loc"], error["loc"]) for other in errors):
                continue  # only items that are right were counted, and what is wrong with the others is told
            path = (*at, *(part for part in error["loc"] if part != "[key]"))
            source.problem(path, _reason(path, error["type"], error["msg"], error.get("ctx", {})))
        return None


def _within(inner: Path, outer: Path) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def _reason(path: Path, kind: str, message: str, context: Mapping[str, Any]) -> str:
    """One of pydantic's messages, as something to be done about a key of the file."""
    key = path[-1] if path else "it"
    if kind == "missing":
        return f"{key!r} is missing; add it"
    if kind == "extra_forbidden":
        return f"unknown key {quoted(key)}, {suggestion(str(key), _known_keys(path), what='keys')}"
    subject = f"item {key + 1}" if isinstance(key, int) else quoted(key)
    if kind == "string_pattern_mismatch":
        return f"{subject} should match {context['pattern']}; rename it"
    if kind in _SHAPES:
        return f"{subject} should be {_SHAPES[kind]}"
    return _SUBJECT.sub(lambda _: subject, message).replace(" after validation", "")


def _known_keys(path: Path) -> list[str]:
    models: dict[str | int, type[BaseModel]] = {"steps": Step, "input": InputField, "budget": Budget, "schedule": Schedule}
    within: dict[str | int, type[BaseModel]] = {"approval": Approval, "wait": Wait, "spawn": SpawnLimits}
    model = within.get(path[-2], models[path[0]]) if len(path) > 1 else Definition
    return [field.alias or name for name, field in model.model_fields.items()]


def _step_ids(source: Source) -> Collection[str]:
    steps = source.value.get("steps")
    first: dict[str, int] = {}
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        step_id = step.get("id") if isinstance(step, dict) else None
        if not isinstance(step_id, str):
            continue
        if step_id in first:
            line = source.line(("steps", first[step_id], "id"))
            source.problem(("steps", index, "id"), f"duplicate step {quoted(step_id)}, first on line {line}; rename one of them")
        else:
            first[step_id] = index
    return first.keys()


def _check_step(source: Source, index: int, step: Step, names: _Names) -> None:
    at: Path = ("steps", index)
    if [step.agent, step.workflow, step.pattern, step.approval, step.wait].count(None) != 4:
        source.problem(at, f"step {step.id!r} needs one of agent, workflow, pattern, approval and wait, and not more")
    elif step.workflow is not None:
        _check_nested(source, at, step)
    elif step.agent is not None:
        _check_agent(source, at, step, names)
    elif step.pattern is not None:
        _check_pattern(source, at, step, names)
    else:
        _check_wait(source, at, step, names)
    if step.spawn is not None and step.agent is None:
        source.problem((*at, "spawn"), "spawn limits what an agent adds, and this step has no agent; remove it")
    _check_needs(source, at, step, names)
    _check_conditions(source, at, step, names)
    declared: dict[Path, Any] = {("input",): step.input, ("with",): step.with_, ("when",): step.when, ("for_each",): step.for_each}
    if step.approval is not None:
        declared["approval", "prompt"] = step.approval.prompt
    if step.wait is not None:
        declared |= {("wait", "seconds"): step.wait.seconds, ("wait", "until"): step.wait.until}
    for key, template in declared.items():
        item = step.for_each is not None and key[0] in ("input", "with")
        for where, place in _places(source, (*at, *key), template):
            _check_place(source, where, place, names, needs=step.needs, item=item)


def _check_agent(source: Source, at: Path, step: Step, names: _Names) -> None:
    if step.agent not in names.agents:
        source.problem(
            (*at, "agent"), f"unknown agent {quoted(step.agent)}, {suggestion(str(step.agent), names.agents, what='agents')}"
        )
    if step.with_:
        source.problem((*at, "with"), "with is for patterns; an agent takes input")
    if step.spawn is not None:
        _check_agents(source, (*at, "spawn", "agents"), step.spawn.agents, names)


def _check_agents(source: Source, at: Path, listed: Any, names: _Names) -> None:
    """What is no list, or lists what is no text, is reported where its shape is checked."""
    for index, agent in enumerate(listed if isinstance(listed, list | tuple) else ()):
        if isinstance(agent, str) and agent not in names.agents:
            source.problem((*at, index), f"unknown agent {quoted(agent)}, {suggestion(agent, names.agents, what='agents')}")


def _check_nested(source: Source, at: Path, step: Step) -> None:
    """Without the other definition, which `check_nesting` knows."""
    for key in ("with", "timeout_seconds", "max_retries"):
        if (f"{key}_" if key == "with" else key) in step.model_fields_set:
            what = "patterns" if key == "with" else "steps that work; the steps of a nested workflow have their own"
            source.problem((*at, key), f"{key} is for {what}")


def _check_pattern(source: Source, at: Path, step: Step, names: _Names) -> None:
    name = str(step.pattern)
    if step.input is not None:
        source.problem((*at, "input"), "input is for agents; a pattern takes with")
    pattern = PATTERNS.get(name)
    if pattern is None:
        source.problem((*at, "pattern"), f"unknown pattern {quoted(name)}, {suggestion(name, PATTERNS, what='patterns')}")
        return
    for agent in pattern.agents:
        if agent not in names.agents:
            source.problem((*at, "pattern"), f"pattern {name} works with agent {agent!r}, which is not there; add it")
    for key, reason in pattern.problems(step.with_, rendered=False):
        source.problem((*at, "with", key), reason)
    for key, parameter in pattern.parameters.items():
        if parameter.names_agents:
            _check_agents(source, (*at, "with", key), step.with_.get(key), names)


def _check_wait(source: Source, at: Path, step: Step, names: _Names) -> None:
    for key in ("input", "with", "for_each", "timeout_seconds", "max_retries"):
        if (f"{key}_" if key == "with" else key) in step.model_fields_set:
            where = "; write it inside approval or wait" if key == "timeout_seconds" else ""
            source.problem((*at, key), f"{key} is for steps that work, and this one waits{where}")
    if step.wait is not None:
        _check_pause(source, (*at, "wait"), step.id, step.wait, names)
    if step.approval is not None and step.approval.default is not None and step.approval.timeout_seconds is None:
        reason = "default counts when the time is over, and without timeout_seconds it never is; add one"
        source.problem((*at, "approval", "default"), reason)


def _check_pause(source: Source, at: Path, step_id: str, wait: Wait, names: _Names) -> None:
    if [wait.seconds, wait.until, wait.signal].count(None) != 2:
        source.problem(at, f"wait of step {step_id!r} needs one of seconds, until and signal, and not more")
    reason = None if wait.seconds is None or _is_look_up(wait.seconds) else seconds_objection(wait.seconds)
    if reason is not None:
        source.problem((*at, "seconds"), f"seconds {reason}, or one look-up")
    reason = None if wait.until is None or (isinstance(wait.until, str) and "{{" in wait.until) else until_objection(wait.until)
    if reason is not None:
        source.problem((*at, "until"), f"until {reason}")
    if wait.signal is None and wait.timeout_seconds is not None:
        source.problem((*at, "timeout_seconds"), "timeout_seconds is for a wait for a signal; this one ends by itself")
    if wait.signal != step_id and wait.signal in names.steps:
        source.problem((*at, "signal"), f"signal {wait.signal!r} is a step's id, which names that step; call it something else")


def _check_needs(source: Source, at: Path, step: Step, names: _Names) -> None:
    for index, need in enumerate(step.needs):
        if need not in names.steps:
            source.problem(
                (*at, "needs", index), f"needs unknown step {quoted(need)}, {suggestion(need, names.steps, what='steps')}"
            )
        elif need in step.needs[:index]:
            source.problem((*at, "needs", index), f"needs step {need!r} twice; remove one of them")


def _check_conditions(source: Source, at: Path, step: Step, names: _Names) -> None:
    """Text that is more than one look-up would always count as true, and would never be a list."""
    if not (step.when is None or isinstance(step.when, bool) or _is_look_up(step.when)):
        source.problem((*at, "when"), 'when should be one look-up such as "{{ input.name }}", or true or false')
    if not (step.for_each is None or isinstance(step.for_each, list) or _is_look_up(step.for_each)):
        source.problem((*at, "for_each"), 'for_each should be one look-up such as "{{ input.names }}", or a list')
    for name, field in names.fields.items():
        kind = field.get("type") if isinstance(field, dict) else None
        if kind in ("string", "integer", "number", "boolean", "object") and _is_look_up_of(step.for_each, name):
            source.problem((*at, "for_each"), f"for_each goes over a list, and input field {name!r} is of type {kind}")


def _is_look_up(template: Any) -> bool:
    return (
        isinstance(template, str)
        and template[:2] == "{{"
        and template[-2:] == "}}"
        and template.count("{{") == 1 == template.count("}}")
    )


def _is_look_up_of(template: Any, field: str) -> bool:
    return _is_look_up(template) and template[2:-2].strip() == f"input.{field}"


def _check_cycles(source: Source, steps: Mapping[int, Step]) -> None:
    needs = {step.id: step.needs for step in steps.values()}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as exc:
        cycle: list[str] = exc.args[1]
        index = next(index for index, step in steps.items() if step.id == cycle[0])
        shown = " → ".join(cycle if len(cycle) <= 20 else [*cycle[:18], "…", cycle[-1]])
        source.problem(("steps", index, "needs"), f"a cycle: {shown}; remove one of these needs")


def _places(source: Source, at: Path, template: Any) -> Iterator[tuple[Path, Path]]:
    """Where each look-up of `template` stands, and what it looks up."""
    if isinstance(template, str):
        try:
            yield from [(at, place) for place in paths(template)]
        except InputError as exc:
            source.problem(at, str(exc))
    elif isinstance(template, dict):
        for key, value in template.items():
            if "{{" in key:
                source.problem((*at, key), "nothing is looked up in a key; move the template into a value")
            yield from _places(source, (*at, key), value)
    elif isinstance(template, list):
        for index, value in enumerate(template):
            yield from _places(source, (*at, index), value)


def _check_place(source: Source, at: Path, place: Path, names: _Names, *, needs: Collection[str], item: bool) -> None:
    root, name = place[0], str(place[1]) if len(place) > 1 else None
    if root == "input":
        if name is not None and name not in names.fields:
            source.problem(at, f"unknown input field {quoted(name)}, {suggestion(name, names.fields, what='fields')}")
    elif root == "steps":
        if name is None or place[2:3] != ("output",):
            source.problem(at, f"a step has an output only; write {{{{ steps.{'name' if name is None else name[:60]}.output }}}}")
        elif name not in names.steps:
            source.problem(at, f"looks up unknown step {quoted(name)}, {suggestion(name, names.steps, what='steps')}")
        elif name not in needs:
            source.problem(at, f"looks up step {name!r} without needing it; add it to needs")
    elif root == "item":
        if not item:
            source.problem(at, "item is known only in the input or with of a step that has for_each; add for_each")
    else:
        source.problem(at, f"unknown name {quoted(root)}; a look-up begins with input, steps or item")


def _check_input_fields(source: Source, definition: Definition) -> None:
    for name, field in definition.input.items():
        at: Path = ("input", name)
        if field.default is not None and field.required:
            source.problem((*at, "default"), f"field {name!r} is required and has a default; remove one of the two")
        elif field.default is not None and not field.takes(field.default):
            source.problem((*at, "default"), f"the default of field {name!r} should be of type {field.type}")


def _check_schedule(source: Source, definition: Definition) -> None:
    schedule = definition.schedule
    if schedule is None:
        return
    at: Path = ("schedule",)
    mapping = isinstance(source.value["schedule"], dict)
    reason = objection(schedule.cron)
    if reason is not None:
        source.problem((*at, "cron") if mapping else at, f"schedule {reason}")
    for name, value in schedule.input.items():
        field = definition.input.get(name)
        if field is None:
            source.problem((*at, "input", name), f"{quoted(name)} is unknown, {suggestion(name, definition.input, what='fields')}")
        elif value is not None and not field.takes(value):
            source.problem((*at, "input", name), f"{name!r} should be of type {field.type}")
    for name, field in definition.input.items():
        if field.required and schedule.input.get(name) is None:
            reason = "a scheduled workflow starts without input"
            source.problem(
                ("input", name), f"{reason}; give field {name!r} a default instead of required, or a value in schedule.input"
            )


def _check_budget(source: Source, definition: Definition) -> None:
    for name, reason in budget_problems(definition.budget):
        source.problem(("budget", name), reason)
    most, declared = definition.budget.max_steps, len(definition.steps)
    if most is not None and most < declared:
        source.problem(("budget", "max_steps"), f"max_steps is {most} and there are {declared} steps; raise it")
