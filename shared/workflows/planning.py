"""The pattern `plan`: an agent plans the steps towards a goal, and what it planned becomes steps, within limits.

A plan is what the coordinator answers: `{"steps": [{"id", "agent", "input", "needs"}], "result"}`. It is judged before anything of
it is done. One that breaks a rule goes back to the coordinator once, with everything that is wrong with it; the second time the
step fails for good. The outcome is the output of the step that `result` names, else of the only step that no other needs, else the
outputs of all such steps by id.

Nothing in a plan is a template: inputs are taken literally, and what a step needs reaches its agent as `task.upstream`. A step for
the coordinator is a plan of its own, one level deeper, whose limits are what this plan leaves: the same agents, fewer levels and a
share of the steps. What the agents of a plan spawn is held to the same limits.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any

from shared.errors import InputError
from shared.workflows.stages import Child, Completed, Expanded, Parameter, Pattern, Stage
from shared.workflows.suggestions import quoted, suggestion

COORDINATOR = "coordinator"
"""The agent that plans. In a plan, a step of its own is a plan one level deeper."""
MOST_STEPS = 100
MOST_DEPTH = 3
MOST_AGENTS = 20
STEP_TOKENS = 1000
"""What a step of a plan has to find left of the workflow's tokens: less does not hold a prompt and an answer to it."""
_FEWEST_STEPS = 3
"""Steps that a plan takes of the workflow's: the coordinator's, the judgement, and one of work."""
_MOST_PROBLEMS = 20
_LONGEST_ID = 200
_LONGEST_TAIL = len("/do/do/_result")
"""What a plan adds to the id of its own step, at most, beside the ids that it gives."""
_RESULT = "_result"
_STEP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")
_AGENT = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_FIELDS = ("id", "agent", "input", "needs")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan is held to; None is no limit."""

    step: str
    """The step that the plan's steps are to be children of."""
    agents: tuple[str, ...]
    max_steps: int
    max_depth: int
    room: int | None = None
    """Steps that the workflow may still add."""
    tokens: int | None = None
    """Tokens that the workflow may still use."""


def problems(plan: Any, limits: Limits) -> list[str]:
    """What is wrong with `plan`, a sentence each, whatever JSON it is; after the twentieth nobody looks for more."""
    found = list(islice(_problems(plan, limits), _MOST_PROBLEMS + 1))
    return found if len(found) <= _MOST_PROBLEMS else [*found[:_MOST_PROBLEMS], "and more"]


def _problems(plan: Any, limits: Limits) -> Iterator[str]:
    """Each kind of rule is asked of a plan that keeps those before it."""
    if not isinstance(plan, Mapping):
        yield "the plan is not an object; give one with steps and result"
        return
    steps = plan.get("steps")
    if not isinstance(steps, list) or not steps:
        yield "steps is not a list of at least one step; give the steps of the plan"
        return
    if len(steps) > limits.max_steps:
        yield f"the plan has {len(steps)} steps, and at most {limits.max_steps} are allowed; plan fewer"
        return
    for rules in (_shape_problems, _relation_problems, _limit_problems):
        broken = False
        for problem in rules(plan, limits):
            broken = True
            yield problem
        if broken:
            return


def _shape_problems(plan: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    for key in plan:
        if key not in ("steps", "result"):
            yield f"the plan has an unknown {quoted(key)}, {suggestion(str(key), ('steps', 'result'), what='keys')}"
    for number, step in enumerate(plan["steps"], 1):
        yield from _step_problems(number, step, limits)


def _step_problems(number: int, step: Any, limits: Limits) -> Iterator[str]:
    """What is wrong with a step by itself."""
    if not isinstance(step, Mapping):
        yield f"step {number} is not an object; give it {', '.join(_FIELDS)}"
        return
    for key in step:
        if key not in _FIELDS:
            yield f"step {number} has an unknown {quoted(key)}, {suggestion(str(key), _FIELDS, what='keys')}"
    name, agent, needs = step.get("id"), step.get("agent"), step.get("needs", [])
    if not isinstance(name, str) or _STEP_ID.fullmatch(name) is None:
        yield f"the id of step {number} is not 1 to 60 letters, digits, _ and - that begin with a letter or a digit; rename it"
    elif len(limits.step) + 1 + len(name) + (_LONGEST_TAIL if agent == COORDINATOR else 0) > _LONGEST_ID:
        yield f"the id of step {number} is too long so deep in the workflow; shorten it"
    if not isinstance(agent, str) or agent not in limits.agents:
        hint = suggestion(str(agent), limits.agents, what="agents")
        yield f"step {number} is for {quoted(agent)}, which is no agent that this plan may use, {hint}"
    if not isinstance(step.get("input", {}), Mapping):
        yield f"the input of step {number} is not an object; give the fields that the agent takes"
    if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
        yield f"needs of step {number} is not a list of ids; name the steps that it needs, or give an empty list"


def _relation_problems(plan: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    """What is wrong with how the steps refer to each other, once each by itself is right."""
    steps = plan["steps"]
    needs = {step["id"]: step.get("needs", []) for step in steps}
    for name, times in Counter(step["id"] for step in steps).items():
        if times > 1:
            yield f"{times} steps are called {name!r}; give each an id of its own"
    unknown = {(name, need): None for name, needed in needs.items() for need in needed if need not in needs}
    for name, need in unknown:
        yield f"step {name!r} needs {quoted(need)}, which is not in the plan, {suggestion(need, needs, what='steps')}"
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as exc:
        yield f"the steps {' → '.join(exc.args[1][:20])} need each other in a cycle; remove one of these needs"
    result = plan.get("result")
    if result is not None and not (isinstance(result, str) and result in needs):
        yield f"result is {quoted(result)}, which is not in the plan, {suggestion(str(result), needs, what='steps')}"


def _limit_problems(plan: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    yield from _depth_problems(plan["steps"], limits)
    yield from _budget_problems(plan, limits)


def _depth_problems(steps: list[Mapping[str, Any]], limits: Limits) -> Iterator[str]:
    deeper = [step for step in steps if step["agent"] == COORDINATOR]
    for step in deeper:
        goal = step.get("input", {}).get("goal")
        if limits.max_depth < 2:
            yield f"step {step['id']!r} is a plan of its own, and no deeper plan is allowed here; let another agent do the work"
        elif not isinstance(goal, str) or not goal.strip():
            yield f"step {step['id']!r} is a plan of its own and has no goal; write it under input.goal"
    if limits.max_depth >= 2 and deeper and _share(steps, limits) < 1:
        yield (
            f"the plan has {len(steps)} steps, which leaves {limits.max_steps - len(steps)} of {limits.max_steps} "
            f"for {len(deeper)} deeper plans; plan fewer steps"
        )


def _budget_problems(plan: Mapping[str, Any], limits: Limits) -> Iterator[str]:
    """Whether the workflow has room for the plan, before any of it is added. A deeper plan is at least three steps, too."""
    steps = plan["steps"]
    added = len(steps) + (len(_sinks(plan)) > 1) + _FEWEST_STEPS * sum(step["agent"] == COORDINATOR for step in steps)
    if limits.room is not None and added > limits.room:
        yield f"the plan adds {added} steps, and the workflow has room for {limits.room}; plan fewer"
    needed = len(steps) * STEP_TOKENS
    if limits.tokens is not None and needed > limits.tokens:
        yield f"{len(steps)} steps need {needed} tokens at least, and the workflow has {limits.tokens} left; plan fewer"


def _sinks(plan: Mapping[str, Any]) -> list[str]:
    """The steps whose outputs are the plan's outcome."""
    if plan.get("result") is not None:
        return [plan["result"]]
    needed = {need for step in plan["steps"] for need in step.get("needs", [])}
    return [step["id"] for step in plan["steps"] if step["id"] not in needed]


def _share(steps: list[Mapping[str, Any]], limits: Limits) -> int:
    """Steps that each heir of what the plan leaves may add: its deeper plans or, where there are none, all of its steps."""
    heirs = sum(step["agent"] == COORDINATOR for step in steps) or len(steps)
    return (limits.max_steps - len(steps)) // heirs


def _plan(stage: Stage) -> Expanded | Completed:
    """One stage: ask for a plan, judge it and carry it out or return it, gather the outputs."""
    state: Mapping[str, Any] = {} if stage.state is None else stage.state
    if "sinks" in state:
        parent = stage.step.rpartition("/")[0]
        return Completed({name: stage.upstream.get(f"{parent}/{name}") for name in state["sinks"]})
    if "returned" in state:
        return _judged(stage, returned=state["returned"])
    material = stage.values["material"]
    if state.get("deeper") and stage.upstream:
        parent = stage.step.rpartition("/")[0] + "/"
        material = {"material": material, "results": {name.removeprefix(parent): one for name, one in stage.upstream.items()}}
    if len(stage.step) + _LONGEST_TAIL > _LONGEST_ID:
        raise InputError(f"the id of step {stage.step} is too long for a plan under it; plan less deeply")
    return _asked(stage, {**stage.values, "material": material}, {})


def _asked(stage: Stage, values: Mapping[str, Any], returned: Mapping[str, Any]) -> Expanded:
    """Ask the coordinator, and judge what it answers. `returned` is the plan that goes back to it, with its errors."""
    room, tokens = stage.remaining.get("steps"), stage.remaining.get("tokens")
    if room is not None and room < _FEWEST_STEPS:
        raise InputError(
            f"a plan takes {_FEWEST_STEPS} steps at least, and the workflow has room for {room}; raise max_steps of its budget"
        )
    planner, judge = f"{stage.step}/plan", f"{stage.step}/do"
    most = [
        values["max_steps"],
        *([] if room is None else [room - 2]),
        *([] if tokens is None else [max(1, tokens // STEP_TOKENS)]),
    ]
    task = {"goal": values["goal"], "material": values["material"], "agents": _usable(values), "max_steps": min(most), **returned}
    asking = {"id": planner, "agent": COORDINATOR, "needs": [], "spec": {"input": task}, "uses_input": False}
    kept = {**values, "material": None} if returned else values
    return Expanded([asking, _staged(judge, kept, {"returned": bool(returned)}, [planner])], join=judge)


def _judged(stage: Stage, *, returned: bool) -> Expanded:
    """Carry the plan out when it is valid; else return it, or fail when that was done before."""
    values = stage.values
    limits = Limits(
        stage.step,
        tuple(values["agents"]),
        values["max_steps"],
        values["max_depth"],
        room=stage.remaining.get("steps"),
        tokens=stage.remaining.get("tokens"),
    )
    plan: Any = next(iter(stage.upstream.values()), None)
    wrong = problems(plan, limits)
    if not wrong:
        return _carried_out(stage, plan, limits)
    if returned:
        raise InputError(f"the plan is still invalid after it was returned: {'; '.join(wrong)}")
    if limits.room is not None and limits.room < _FEWEST_STEPS:
        raise InputError(f"the plan is invalid, and max_steps leaves no room to return it: {'; '.join(wrong)}")
    return _asked(stage, values, {"plan": plan, "errors": wrong})


def _carried_out(stage: Stage, plan: Mapping[str, Any], limits: Limits) -> Expanded:
    parent, steps, sinks = stage.step, plan["steps"], _sinks(plan)
    share, deeper = _share(steps, limits), any(step["agent"] == COORDINATOR for step in steps)
    left = {"agents": list(limits.agents), "max_steps": 0 if deeper else share, "max_depth": limits.max_depth - 1}
    children: list[Child] = []
    for step in steps:
        name, needs = f"{parent}/{step['id']}", [f"{parent}/{need}" for need in dict.fromkeys(step.get("needs", []))]
        given = dict(step.get("input", {}))
        if step["agent"] == COORDINATOR:
            material = given.get("material", stage.values["material"])
            below = {**left, "goal": given["goal"], "material": material, "max_steps": share}
            children.append(_staged(name, below, {"deeper": True}, needs))
        else:
            spec = {"input": given, "spawn": left}
            children.append({"id": name, "agent": step["agent"], "needs": needs, "spec": spec, "uses_input": False})
    if len(sinks) == 1:
        return Expanded(children, join=f"{parent}/{sinks[0]}")
    values = {**stage.values, "material": None}
    gather = _staged(f"{parent}/{_RESULT}", values, {"sinks": sinks}, [f"{parent}/{name}" for name in sinks])
    return Expanded([*children, gather], join=gather["id"])


def _usable(values: Mapping[str, Any]) -> list[str]:
    """The agents that the coordinator is told of: itself only where a deeper plan is allowed."""
    return [agent for agent in values["agents"] if agent != COORDINATOR or values["max_depth"] > 1]


def _staged(step: str, values: Mapping[str, Any], state: Mapping[str, Any], needs: list[str]) -> Child:
    # Values travel in the item: in a template they would be evaluated.
    template = {key: f"{{{{ item.{key} }}}}" for key in values}
    spec = {"pattern": "plan", "with": template, "item": dict(values), "state": dict(state)}
    return {"id": step, "agent": "pattern:plan", "needs": needs, "spec": spec, "uses_input": False}


def _goal_objection(value: Any) -> str | None:
    return None if isinstance(value, str) and value.strip() else "a text that says what is to be reached"


def _agents_objection(value: Any) -> str | None:
    named = isinstance(value, list) and all(isinstance(agent, str) and _AGENT.fullmatch(agent) for agent in value)
    if not (named and 1 <= len(value) <= MOST_AGENTS and len(set(value)) == len(value)):
        return f"a list of 1 to {MOST_AGENTS} different agents, written out; a limit is not looked up"
    return f"a list with others than {COORDINATOR}, which only plans" if value == [COORDINATOR] else None


def _whole_number(most: int, default: int) -> Parameter:
    def objection(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
        return None if fits else f"a whole number from 1 to {most}"

    return Parameter(objection, default=default, schema={"type": "integer", "minimum": 1, "maximum": most})


_AGENT_LIST = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_AGENTS, "uniqueItems": True}

PLAN = Pattern(
    name="plan",
    agents=(COORDINATOR,),
    parameters={
        "goal": Parameter(_goal_objection, required=True, schema={"type": "string", "minLength": 1}),
        "agents": Parameter(_agents_objection, required=True, schema=_AGENT_LIST, literal=True, names_agents=True),
        "max_steps": _whole_number(MOST_STEPS, default=10),
        "max_depth": _whole_number(MOST_DEPTH, default=1),
        "material": Parameter(lambda value: None),
    },
    expand=_plan,
)
