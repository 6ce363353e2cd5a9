"""Breaks a goal into steps for other agents.

Input `{goal, material, agents, max_steps}`, and where a plan was returned `{plan, errors}`; all but the goal may be left out.
Without `agents` everybody but the coordinator itself may be planned with. Output `{steps: [{id, agent, input, needs}], result}`;
`result` is null when every step that no other needs is part of the outcome. Whether the plan keeps its limits is judged by whoever
carries it out.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from shared.runtime import InputError, Result, Task, Team, colleagues

_MOST_STEPS = 10


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the goal is missing or an agent is not there."""
    given = task.input if isinstance(task.input, Mapping) else {}
    names = given.get("agents")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError("input.agents is not a list of names; name the agents that may be planned with, or leave it out")
    # Files are read once in the life of the process, and not by its event loop.
    agents = await asyncio.to_thread(colleagues, None if names is None else tuple(names))
    if names is None:
        agents = [one for one in agents if one["agent"] != "coordinator"]
    values = {"material": "", "max_steps": _MOST_STEPS, "plan": {}, "errors": []}
    values |= {name: value for name, value in given.items() if value is not None}
    answer = await team.generate(values={**values, "agents": agents})
    return Result(output=_plan(answer, {one["agent"]: one["takes"] for one in agents}))


def _plan(answer: Mapping[str, Any], takes: Mapping[str, Any]) -> dict[str, Any]:
    steps = [{**step, "input": _input(step["input"], takes.get(step["agent"]))} for step in answer["steps"]]
    return {"steps": steps, "result": answer["result"] if answer["result"] else None}


def _input(fields: Sequence[Mapping[str, str]], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields as an object: a model names and writes each, because not every provider takes objects of any shape."""
    properties = {} if schema is None else schema.get("properties", {})
    return {field["name"]: _value(field["value"], properties.get(field["name"], {})) for field in fields}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """A text where the agent takes one, else the JSON that is written there, if it is any."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
