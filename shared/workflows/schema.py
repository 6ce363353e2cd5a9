"""The definition language as a JSON Schema (draft 2020-12), for editors: what may stand where, and what it means.

It is made of the models and the patterns that hold definitions to their shape, so what they learn it learns. What the parts of a
definition say about each other (names, needs, look-ups, cycles) no schema can say: `agent-team workflows check` does.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from shared.workflows.definitions import LARGEST_BUDGET, Definition
from shared.workflows.patterns import PATTERNS, Parameter, Pattern
from shared.workflows.waiting import LONGEST_WAIT_SECONDS

Json = dict[str, Any]

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
_LOOK_UP: Final = {"type": "string", "pattern": r"^\{\{[^{}]*\}\}$"}
_NULL: Final = {"type": "null"}

WORKING: Final = ("agent", "pattern", "workflow")
KINDS: Final = (*WORKING, "approval", "wait")
"""What a step can be; it is exactly one of them."""
_WAITING: Final = ("approval", "wait")
_FOR_WORK: Final = ("input", "with", "for_each", "timeout_seconds", "max_retries")

_MEANINGS: Final[Mapping[str, str]] = {
    "Definition.name": "What the workflow is called; its file is named after it.",
    "Definition.version": "Counted up with every change. A run keeps the version that it started with.",
    "Definition.description": "What it is for, in a sentence.",
    "Definition.schedule": "When it starts by itself, in UTC. No input field can be required then.",
    "Definition.input": "The fields that a run is given, by name.",
    "Definition.budget": "Limits of a run; without a limit there is none. A request may give its own.",
    "Definition.steps": "The steps. Each starts once the steps that it needs have ended; their order here means nothing.",
    "Definition.output": "The result, a template. Left out: the output of the step that no other needs, or of all such by id.",
    "InputField.type": "What a value has to be.",
    "InputField.required": "Whether a run without it is refused. One that is not required and has no default is null.",
    "InputField.default": "The value when none is given.",
    "InputField.description": "What it is, for those who start the workflow.",
    "Budget.max_steps": "Steps of a run, those that are added on the way included.",
    "Budget.max_tokens": "Tokens in and out, of all steps.",
    "Budget.max_cost_usd": "Dollars, by the models' list prices.",
    "Budget.deadline_seconds": "Seconds from the start to the end of a run, times of waiting included.",
    "Step.id": "The step's name in this workflow.",
    "Step.agent": "The agent that works on it.",
    "Step.pattern": "A way of working together that takes several steps; its parameters stand under with.",
    "Step.workflow": "Another workflow, whose steps stand in this one's place.",
    "Step.approval": "A person decides: it succeeds when they approve and fails when they reject.",
    "Step.wait": "A pause: some seconds, until a moment, or until a signal comes.",
    "Step.with": "The parameters of the pattern; values may be templates.",
    "Step.needs": "The steps that end before it starts. Only their outputs can be looked up.",
    "Step.for_each": "A list, or a look-up of one: the step runs once for each item. Its output is the list of outputs.",
    "Step.input": "What the agent is given; values may be templates.",
    "Step.when": "A look-up, true or false: where it is false, null, 0 or empty the step is skipped, with null for its output.",
    "Step.timeout_seconds": "Seconds for one attempt.",
    "Step.max_retries": "Attempts after the first that failed; ORCH_MAX_RETRIES when left out.",
    "Step.on_failure": "fail: its failure fails the workflow. continue: the steps that need it go on, with null for its output.",
    "Step.spawn": "What the agent may add to the workflow; left out, the platform's limits hold.",
    "SpawnLimits.agents": "Agents that it may add steps for; left out, all.",
    "SpawnLimits.max_steps": "Steps that it may add, with all that those add.",
    "SpawnLimits.max_depth": "Levels of added steps under it; 0: its steps add none.",
    "Schedule.cron": "Five fields, in UTC: minute, hour, day of the month, month, day of the week.",
    "Schedule.catch_up": "What becomes of ticks that were missed by more than five minutes: skip, last, or all of them.",
    "Schedule.input": "The input of each run.",
    "Approval.prompt": "What the person is asked; a template.",
    "Approval.timeout_seconds": "Seconds until it is too late to decide; left out, it waits for ever.",
    "Approval.default": "What counts when nobody decided in time; left out, the step fails.",
    "Wait.seconds": "How long; a number or a look-up of one.",
    "Wait.until": "Until when; a moment with its offset (2026-01-31T12:00:00Z), or a template.",
    "Wait.signal": "The name of the signal that ends it.",
    "Wait.timeout_seconds": "Seconds after which a wait for a signal ends by itself.",
}
"""Of every key. A field that describes itself needs no line here."""

_SHAPES: Final[Mapping[str, Json]] = {
    "Definition.schedule": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Schedule"}, _NULL]},
    "Step.when": {"anyOf": [{"type": "boolean"}, _LOOK_UP, _NULL]},
    "Step.for_each": {"anyOf": [{"type": "array"}, _LOOK_UP, _NULL]},
    "Wait.seconds": {"anyOf": [{"type": "number", "minimum": 0, "maximum": LONGEST_WAIT_SECONDS}, _LOOK_UP, _NULL]},
    "Wait.until": {"type": ["string", "null"]},
}
"""What the checker wants of keys that the models leave open."""


def definition_schema(*, agents: Collection[str]) -> Json:
    """The schema of a definition file; `agents` are the agents that there are."""
    root = Definition.model_json_schema(by_alias=True)
    models: dict[str, Json] = {"Definition": root, **root["$defs"]}
    for name, model in models.items():
        model.pop("title", None)
        for key, field in model.get("properties", {}).items():
            _describe(f"{name}.{key}", field)
    for name, largest in LARGEST_BUDGET.items():
        _limit(models["Budget"]["properties"][name], largest)
    step = models["Step"]
    _choose(step["properties"]["agent"], agents)
    _choose(step["properties"]["pattern"], PATTERNS)
    step["properties"]["needs"]["uniqueItems"] = True
    step["allOf"] = [{"oneOf": [_given(kind) for kind in KINDS]}, *_step_rules()]
    models["Wait"] |= {
        "oneOf": [_given(key) for key in ("seconds", "until", "signal")],
        "allOf": [_rule(_given("timeout_seconds"), {"required": ["signal"]})],
    }
    return {"$schema": _DIALECT, "title": "Workflow definition of the agent team", **root}


def _describe(name: str, field: Json) -> None:
    field.pop("title", None)
    if "patternProperties" in field:
        field["additionalProperties"] = False
    if name in _SHAPES:
        field.update(_SHAPES[name])
    if "description" not in field and name in _MEANINGS:
        field["description"] = _MEANINGS[name]


def _limit(field: Json, largest: float) -> None:
    for kind in field.get("anyOf", (field,)):
        if kind.get("type") in ("integer", "number"):
            kind["maximum"] = largest


def _choose(field: Json, names: Collection[str]) -> None:
    kinds = [kind for kind in field.pop("anyOf") if kind != _NULL]
    field["anyOf"] = [{**kind, "enum": sorted(names)} for kind in kinds] + [_NULL]


def _given(key: str) -> Json:
    """That a key is there, and not null."""
    return {"required": [key], "properties": {key: {"not": _NULL}}}


def _rule(condition: Json, consequence: Json) -> Json:
    return {"if": condition, "then": consequence}


def _step_rules() -> list[Json]:
    waits = {"anyOf": [_given(key) for key in _WAITING]}
    rules = [
        _rule(waits, {"properties": dict.fromkeys(_FOR_WORK, False)}),
        _rule(_given("agent"), {"properties": {"with": {"maxProperties": 0}}}),
        _rule(_given("pattern"), {"properties": {"input": _NULL}}),
        _rule(_given("workflow"), {"properties": dict.fromkeys(("with", "timeout_seconds", "max_retries"), False)}),
    ]
    for name, pattern in sorted(PATTERNS.items()):
        chosen = {"required": ["pattern"], "properties": {"pattern": {"const": name}}}
        rules.append(_rule(chosen, _parameters(pattern)))
    return rules


def _parameters(pattern: Pattern) -> Json:
    required = sorted(key for key, parameter in pattern.parameters.items() if parameter.required)
    properties = {key: {"description": _meaning(parameter)} for key, parameter in pattern.parameters.items()}
    parameters = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return {"properties": {"with": parameters}, **({"required": ["with"]} if required else {})}


def _meaning(parameter: Parameter) -> str:
    wanted = parameter.objection(None) or "any value"
    if parameter.required:
        return f"{wanted[0].upper()}{wanted[1:]}, or a look-up; required."
    default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return f"{wanted[0].upper()}{wanted[1:]}, or a look-up; {default!r} when left out."
