"""A plan without thought: every agent that may be used does one step, and each works with the outputs of those before it.

It is made where a request holds a `goal` and `agents`, each with what it `takes` (JSON Schema). Texts that an agent takes become
the goal or the material, objects a title, lists are empty, and of a choice the first is taken.
"""

from collections.abc import Mapping
from typing import Any

import orjson

_ASKS = ("goal", "question", "topic", "query", "title")
"""Fields that say what is wanted; any other text is what to work on."""


def plan(values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan, or None where the request asks for none."""
    agents, goal = values.get("agents"), values.get("goal")
    if not (isinstance(agents, list) and isinstance(goal, str)):
        return None
    named = [one for one in agents if isinstance(one, Mapping) and isinstance(one.get("agent"), str)]
    if not named:
        return None
    most = values.get("max_steps")
    # Half of what is allowed leaves the other half to plans that one of the agents may make.
    most = (most + 1) // 2 if isinstance(most, int) and most > 0 else len(named)
    ids = [one["agent"] for one in named[:most]]
    steps = [
        {"id": name, "agent": name, "input": _input(one.get("takes"), goal, values.get("material")), "needs": ids[:index]}
        for index, (name, one) in enumerate(zip(ids, named, strict=False))
    ]
    return {"steps": steps, "result": ids[-1]}


def _input(schema: Any, goal: str, material: Any) -> list[dict[str, str]]:
    if not isinstance(schema, Mapping):
        return []
    properties = schema.get("properties", {})
    return [{"name": name, "value": _value(name, properties[name], goal, material)} for name in schema.get("required", ())]


def _value(name: str, schema: Mapping[str, Any], goal: str, material: Any) -> str:
    if "enum" in schema:
        first = schema["enum"][0]
        return first if isinstance(first, str) else orjson.dumps(first).decode()
    kind = schema.get("type", "string")
    if kind == "string":
        return goal if name in _ASKS or not material else _text(material)
    empty: dict[str, Any] = {"object": {"title": goal}, "array": [], "boolean": False}
    return orjson.dumps(empty.get(kind, 1)).decode()


def _text(material: Any) -> str:
    return material if isinstance(material, str) else orjson.dumps(material, option=orjson.OPT_INDENT_2).decode()
