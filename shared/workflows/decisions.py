"""What `advance` leaves to us: what a command means, and what an agent's spawn becomes. Pure functions from JSON to JSON.

`advance` knows the DAG and nothing of meaning. A step's `spec` holds its templates; they are rendered here, when the step is about
to be dispatched, from outputs that will not change any more. So deciding a command again decides the same, under the same ids.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from shared.errors import AgentTeamError, InputError
from shared.messages import SpawnedStep, StepCompleted, StepDispatched, Usage
from shared.references import Unopened, opened, reference
from shared.templates import render
from shared.workflows.definitions import used_steps, uses_input
from shared.workflows.patterns import Child, Completed, Expanded, Stage, expand
from shared.workflows.suggestions import quoted
from shared.workflows.waiting import begin, ended, is_wait

MAX_CHILDREN = 10_000
"""Steps that one step may become or spawn."""
_LONGEST_ID = 200
_NOTHING: dict[str, Any] = {}


def decide(command: Mapping[str, Any]) -> StepDispatched | dict[str, Any]:
    """What a `dispatch` command comes to: the message for the agent, or an event for `advance`.

    The events are `step.skipped` (its `when` is false), `step.expanded` (it is many steps: `for_each`, or a stage of a pattern),
    `step.completed` (the last stage of a pattern), `step.waiting` (for people, time or a signal), what comes of such a wait once it
    is over, and `step.failed`, permanently, when a template looks up what is not there. Raises Unopened where that hangs on values
    that are stored apart: with them in place of their references it decides.
    """
    spec = command["spec"]
    if command.get("woken") is not None:
        kind, details = ended(spec, command["woken"])
        return _event(kind, command, **details)
    try:
        if "when" in spec and not render(spec["when"], _context(command)):
            return _event("step.skipped", command, reason="when")
        if is_wait(spec):
            return _event("step.waiting", command, **begin(spec, command["step"], _context(command)))
        if "for_each" in spec:
            return _event("step.expanded", command, children=_for_each(command), join="*")
        if "pattern" in spec:
            return _staged(command, expand(spec["pattern"], _stage(command)))
        if "template" in spec:
            return _dispatched(command, render(spec["template"], _context(command)), _NOTHING)
    except InputError as exc:
        return _event("step.failed", command, permanent=True, error=_error(exc))
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


def spawned(payload: StepCompleted) -> dict[str, Any]:
    """The `step.completed` event for an agent's result, with the steps that it spawns as children under full ids.

    Raises InputError for a spawn that is no DAG of its own steps, or a join that names none of them.
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
    if payload.spawn or payload.join is not None:
        _check_spawn(payload)
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
    """The upstream outputs by the names that siblings have for each other."""
    upstream: Mapping[str, Any] = command["upstream"]
    parent, slash, _ = command["step"].rpartition("/")
    if not slash:
        return upstream
    return {step.removeprefix(parent + slash): output for step, output in upstream.items()}


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
    common = {key: spec[key] for key in ("template", "pattern", "with") if key in spec}
    templates = list(common.values())
    # Without a template of its own a child takes its item as literal input, and everything upstream beside it.
    needs = used_steps(templates) if common else command["upstream"]
    shared = {"agent": command["agent"], "uses_input": uses_input(templates)}
    key = "item" if common else "input"
    return [
        {"id": f"{step}/{index}", **shared, "needs": list(needs), "spec": {**common, key: item}} for index, item in enumerate(items)
    ]


def _check_spawn(payload: StepCompleted) -> None:
    step, children = payload.step, payload.spawn
    if len(children) > MAX_CHILDREN:
        raise InputError(f"step {step} spawns {len(children)} steps; at most {MAX_CHILDREN} are allowed")
    needs = {child.id: child.needs for child in children}
    if len(needs) < len(children):
        raise InputError(f"step {step} spawns {_duplicate(children)} twice; give each step an id of its own")
    for child in children:
        if len(step) + 1 + len(child.id) > _LONGEST_ID:
            raise InputError(f"step {step} spawns {child.id}, whose full id is longer than {_LONGEST_ID}; spawn less deeply")
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
