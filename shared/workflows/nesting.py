"""A nested workflow: how a step becomes the steps of another definition. Pure functions from JSON to JSON.

The step's children are the nested steps, under its id (`report/plan`), and two that are decided without a message: `report/@input`,
whose output is the nested input, and `report/@output`, whose output is the nested output and becomes the step's. No definition can
declare either, because a step's id has no `@`. The nested templates look up what is theirs: `input` is the output of `@input`, and
`steps.plan` is `steps.report/plan`. So to everybody else they are steps like all others.

That `input` is a step and not a copy in every child is what lets a fork tell which nested steps a changed field had a part in.
"""

from collections.abc import Mapping
from typing import Any, Final

from shared.errors import InputError
from shared.references import opened
from shared.templates import render, replaced
from shared.workflows.definitions import InputField, complete_input, type_name, used_steps, uses_input
from shared.workflows.patterns import Child

INPUT: Final = "@input"
"""The child whose output is the nested input."""
_OUTPUT: Final = "@output"
_VALUE: Final = "value:"
LONGEST_ID: Final = 200
TEMPLATES: Final = ("template", "when", "for_each", "with", "approval", "wait")
"""The keys of a spec in which values are looked up."""


def nested(command: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """The details of `step.expanded` for a step that is a nested workflow.

    Raises InputError for an input that the nested workflow does not take, and for steps whose full ids would be too long.
    """
    step, spec = command["step"], command["spec"]
    definition = spec["workflow"]
    given = {key: spec[key] for key in ("template", "input", "item") if key in spec}
    takes = {"name": definition["name"], "fields": definition["input"]}
    _taken(takes, given, context)
    template = given.get("template")
    output = _inside(step, definition["output"])
    children = [
        _value(f"{step}/{INPUT}", {**given, "takes": takes}, used_steps(template), uses_input(template)),
        *(_child(step, declared) for declared in definition["steps"]),
        _value(f"{step}/{_OUTPUT}", {"template": output}, used_steps(output), False),
    ]
    longest = max((child["id"] for child in children), key=len)
    if len(longest) > LONGEST_ID:
        raise InputError(f"step {longest[:60]}… has an id of more than {LONGEST_ID} characters; nest less deeply or shorten ids")
    return {"children": children, "join": f"{step}/{_OUTPUT}"}


def is_value(command: Mapping[str, Any]) -> bool:
    """Whether a step is a value only, which `value` tells."""
    return str(command["agent"]).startswith(_VALUE)


def value(command: Mapping[str, Any], context: Mapping[str, Any]) -> Any:
    """The output of a step that is a value only. Raises InputError."""
    spec = command["spec"]
    return _taken(spec["takes"], spec, context) if "takes" in spec else render(spec["template"], context)


def _taken(takes: Mapping[str, Any], given: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    name: str = takes["name"]
    input = opened(render(given["template"], context) if "template" in given else given.get("input", {}))
    if not isinstance(input, Mapping):
        raise InputError(f"input of {name} must be of type object, not {type_name(input)}; give its fields by name")
    return complete_input(name, {field: InputField.model_validate(about) for field, about in takes["fields"].items()}, input)


def _value(id: str, spec: dict[str, Any], needs: tuple[str, ...], from_input: bool) -> Child:
    return {"id": id, "agent": f"{_VALUE}{id.rpartition('@')[2]}", "needs": list(needs), "spec": spec, "uses_input": from_input}


def _child(parent: str, declared: Mapping[str, Any]) -> Child:
    spec = {key: _inside(parent, part) if key in TEMPLATES else part for key, part in declared["spec"].items()}
    needs = [f"{parent}/{need}" for need in declared["needs"]]
    if declared["uses_input"]:
        needs.append(f"{parent}/{INPUT}")
    id = f"{parent}/{declared['id']}"
    # Whoever decides on one of several approvals of the same name has to mean that one.
    signal = None if declared["signal"] is None else spec.get("wait", {}).get("signal", id)
    return {**declared, "id": id, "needs": needs, "spec": spec, "signal": signal, "uses_input": False}


def _inside(parent: str, template: Any) -> Any:
    def place(path: str) -> str:
        if path == "input" or path.startswith(("input.", "input[")):
            return f"steps.{parent}/{INPUT}.output{path[len('input') :]}"
        return f"steps.{parent}/{path[len('steps.') :]}" if path.startswith("steps.") else path

    return replaced(template, place)
