"""What `advance` leaves to us: what a command means, and what an agent's spawn becomes. Pure functions from JSON to JSON.

`advance` knows the DAG and nothing of meaning. A step's `spec` holds its templates; they are rendered here, when the step is about
to be dispatched, from outputs that will not change any more. So deciding a command again decides the same, under the same ids.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from shared.errors import AgentTeamError, InputError
from shared.messages import SpawnedStep, StepCompleted, StepDispatched, Usage
from shared.references import Unopened, opened, reference
from shared.templates import render
from shared.workflows.definitions import used_steps, uses_input
from shared.workflows.nesting import INPUT, LONGEST_ID, is_value, nested, value
from shared.workflows.patterns import Child, Completed, Expanded, Stage, expand
from shared.workflows.suggestions import quoted, suggestion
from shared.workflows.waiting import begin, ended, is_wait

MAX_CHILDREN = 10_000
"""Steps that one step may become or spawn."""
_NOTHING: dict[str, Any] = {}


def decide(command: Mapping[str, Any], *, switched_off: Mapping[str, str] = _NOTHING) -> StepDispatched | dict[str, Any]:
    """What a `dispatch` command comes to: the message for the agent, or an event for `advance`.

    `switched_off` are the patterns that are not to be used here, and why; what has begun is brought to its end.
    The events are `step.skipped` (its `when` is false, or its pattern is switched off), `step.expanded` (it is many steps:
    `for_each`, a nested workflow or a stage of a pattern), `step.completed` (a value, or the last stage of a pattern),
    `step.waiting` (for people, time or a signal), what comes of such a wait once it is over, and `step.failed`, permanently, when a
    template looks up what is not there. Raises Unopened where that hangs on values that are stored apart: with them in place of
    their references it decides.
    """
    spec = command["spec"]
    if command.get("woken") is not None:
        kind, details = ended(spec, command["woken"])
        return _event(kind, command, **details)
    try:
        reason = _skipped(command, switched_off)
        if reason is not None:
            return _event("step.skipped", command, reason=reason)
        return _decided(command)
    except InputError as exc:
        return _event("step.failed", command, permanent=True, error=_error(exc))


def _skipped(command: Mapping[str, Any], switched_off: Mapping[str, str]) -> str | None:
    spec = command["spec"]
    if "when" in spec and not render(spec["when"], _context(command)):
        return "when"
    return None if "state" in spec else switched_off.get(spec.get("pattern", ""))


def _decided(command: Mapping[str, Any]) -> StepDispatched | dict[str, Any]:
    spec = command["spec"]
    if is_wait(spec):
        return _event("step.waiting", command, **begin(spec, command["step"], _context(command)))
    if "for_each" in spec:
        return _event("step.expanded", command, children=_for_each(command), join="*")
    if "workflow" in spec:
        return _event("step.expanded", command, **nested(command, _context(command)))
    if is_value(command):
        return _event("step.completed", command, output=value(command, _context(command)))
    if "pattern" in spec:
        return _staged(command, expand(spec["pattern"], _stage(command)))
    if "template" in spec:
        return _dispatched(command, render(spec["template"], _context(command)), _NOTHING)
    return _dispatched(command, spec.get("input"), _among_siblings(command))


def render_output(command: Mapping[str, Any]) -> dict[str, Any]:
    """What a `render` command comes to: `workflow.rendered`, or `workflow.failed` when the output looks up what is not there.

    Raises Unopened as `decide`.
    """
    workflow = command["workflow"]
    try:
        output = render(command["output"], _values(command))
    except InputError as exc:
        return {"type": "workflow.failed", "workflow": workflow, "error": _error(exc)}
    return {"type": "workflow.rendered", "workflow": workflow, "output": output}


def spawned(payload: StepCompleted, *, agents: Collection[str]) -> dict[str, Any]:
    """The `step.completed` event for an agent's result, with the steps that it spawns as children under full ids.

    `agents` are those that there are. Raises InputError for a spawn that is no DAG of its own steps or asks for an agent that is
    not there, and for a join that names none of its steps. The limits of a step's `spawn` are kept by `advance`, which knows it.
    """
    event = {
        "type": "step.completed",
        "workflow": payload.workflow,
        "step": payload.step,
        "attempt": payload.attempt,
        "output": payload.output,
        "usage": _usage(payload.usage),
    }
    if payload.models:
        event["models"] = {model: _usage(usage) for model, usage in payload.models.items()}
    if payload.prompts:
        event["prompts"] = [{"name": one.name, "version": one.version, "sha256": one.sha256} for one in payload.prompts]
    if payload.spawn or payload.join is not None:
        _check_spawn(payload, agents)
        event["children"] = [_spawned_child(payload.step, child) for child in payload.spawn]
        event["join"] = payload.join if payload.join in (None, "*") else f"{payload.step}/{payload.join}"
    return event


def _usage(usage: Usage) -> dict[str, int]:
    # By hand: this is done for every step, and a model's own dump takes several times as long.
    return {
        "model_calls": usage.model_calls,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_microdollars": usage.cost_microdollars,
    }


def _dispatched(command: Mapping[str, Any], rendered: Any, upstream: Mapping[str, Any]) -> StepDispatched:
    return StepDispatched(
        workflow=command["workflow"],
        step=command["step"],
        attempt=command["attempt"],
        deferrals=command["deferrals"],
        agent=command["agent"],
        input=rendered,
        upstream=upstream,
        timeout_seconds=command["timeout_seconds"],
        deadline=command["deadline"],
        remaining=command["remaining"],
        resumed=command["resumed"],
    )


def _event(kind: str, command: Mapping[str, Any], **details: Any) -> dict[str, Any]:
    return {"type": kind, "workflow": command["workflow"], "step": command["step"], "attempt": command["attempt"], **details}


def _error(exc: AgentTeamError) -> dict[str, str]:
    return {"type": exc.code, "message": str(exc)[:2000]}


def _stage(command: Mapping[str, Any]) -> Stage:
    spec = command["spec"]
    return Stage(
        step=command["step"],
        values=opened(render(spec["with"], _context(command))),
        state=opened(spec.get("state")),
        upstream=opened(command["upstream"]),
        remaining=command["remaining"],
    )


def _staged(command: Mapping[str, Any], outcome: Expanded | Completed) -> dict[str, Any]:
    if isinstance(outcome, Completed):
        return _event("step.completed", command, output=outcome.output)
    return _event("step.expanded", command, children=outcome.children, join=outcome.join)


def _context(command: Mapping[str, Any]) -> dict[str, Any]:
    context = _values(command)
    if "item" in command["spec"]:
        context["item"] = command["spec"]["item"]
    return context


def _values(command: Mapping[str, Any]) -> dict[str, Any]:
    return {"input": command.get("input"), "steps": {step: {"output": output} for step, output in command["upstream"].items()}}


def _among_siblings(command: Mapping[str, Any]) -> Mapping[str, Any]:
    """The upstream outputs by the names that they have where the step, or what it came of, is declared."""
    upstream: Mapping[str, Any] = command["upstream"]
    if "/" not in command["step"]:
        return upstream
    named = {_relative(step, command["step"]): output for step, output in upstream.items()}
    named.pop(INPUT, None)
    return named


def _relative(step: str, other: str) -> str:
    """`step` below the nearest parent that it shares with `other`."""
    parent = other.rpartition("/")[0]
    while parent and not step.startswith(f"{parent}/"):
        parent = parent.rpartition("/")[0]
    return step.removeprefix(f"{parent}/")


def _for_each(command: Mapping[str, Any]) -> list[Child]:
    spec, step = command["spec"], command["step"]
    items = render(spec["for_each"], _context(command))
    stored = reference(items)
    if stored is not None:
        raise Unopened(stored)
    if not isinstance(items, list):
        raise InputError(f"for_each of step {step} is not a list; look up a list")
    if len(items) > MAX_CHILDREN:
        raise InputError(f"for_each of step {step} has {len(items)} items; at most {MAX_CHILDREN} are allowed")
    common = {key: spec[key] for key in ("template", "workflow", "pattern", "with") if key in spec}
    templates = [spec.get(key) for key in ("template", "with")]
    # Without a template of its own a child takes its item as literal input, and everything upstream beside it.
    needs = used_steps(templates) if common else command["upstream"]
    shared = {"agent": command["agent"], "uses_input": uses_input(templates)}
    limits = {"spawn": spec["spawn"]} if "spawn" in spec else {}
    key = "item" if common.keys() - {"workflow"} else "input"
    return [
        {"id": f"{step}/{index}", **shared, "needs": list(needs), "spec": {**common, **limits, key: item}}
        for index, item in enumerate(items)
    ]


def _check_spawn(payload: StepCompleted, agents: Collection[str]) -> None:
    step, children = payload.step, payload.spawn
    if len(children) > MAX_CHILDREN:
        raise InputError(f"step {step} spawns {len(children)} steps; at most {MAX_CHILDREN} are allowed")
    needs = {child.id: child.needs for child in children}
    if len(needs) < len(children):
        raise InputError(f"step {step} spawns {_duplicate(children)} twice; give each step an id of its own")
    for child in children:
        if len(step) + 1 + len(child.id) > LONGEST_ID:
            raise InputError(f"step {step} spawns {child.id}, whose full id is longer than {LONGEST_ID}; spawn less deeply")
        if child.agent not in agents:
            hint = suggestion(child.agent, agents, what="agents")
            raise InputError(f"step {step} spawns {child.id} for {quoted(child.agent)}, which is no agent, {hint}")
        unknown = next((need for need in child.needs if need not in needs), None)
        if unknown is not None:
            raise InputError(
                f"step {step} spawns {child.id}, which needs {quoted(unknown)}; a spawned step needs only its siblings"
            )
    if payload.join not in (None, "*") and payload.join not in needs:
        raise InputError(f"step {step} joins on {quoted(payload.join)}, which it does not spawn; join on one of its own steps")
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as exc:
        raise InputError(f"step {step} spawns a cycle: {' → '.join(exc.args[1][:20])}; remove one of these needs") from None


def _duplicate(children: Sequence[SpawnedStep]) -> str:
    return Counter(child.id for child in children).most_common(1)[0][0]


def _spawned_child(step: str, child: SpawnedStep) -> dict[str, Any]:
    return {
        "id": f"{step}/{child.id}",
        "agent": child.agent,
        "needs": [f"{step}/{need}" for need in dict.fromkeys(child.needs)],
        "spec": {"input": child.input},
        "uses_input": False,
        "max_retries": child.max_retries,
        "timeout_seconds": child.timeout_seconds,
        "on_failure": child.on_failure,
    }
