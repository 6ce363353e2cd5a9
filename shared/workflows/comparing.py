"""What differs between two runs, as `get_workflow` shows them. A pure function over the two documents."""

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from shared.references import reference

_MOST_CHANGES = 20
"""Of one output; `more` counts the rest."""
_LONGEST = 200
_MISSING = object()
_HEAD = ("id", "workflow", "version", "status", "forked_from", "forked_at", "usage")


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two workflows side by side.

        {"workflows": [{id, workflow, version, status, forked_from, forked_at, usage}, …],
         "input": {"changes": [{"path": "brief", "values": [old, new]}], "more": 0},
         "output": {…}, "error": {…}, "steps": [{"id", "agents", "statuses", "usages", "reused", "prompts", "output": {…}}],
         "same_steps": 3}

    A pair is of `first` and `second`, null where only one has it. `steps` are those that differ in agent, status, prompts or
    output. Values are shortened; they are compared whole.
    """
    ours, theirs = ({step["id"]: step for step in one["steps"]} for one in (first, second))
    ids = [*ours, *(id for id in theirs if id not in ours)]
    steps = [_step(id, ours.get(id), theirs.get(id)) for id in ids]
    differing = [one for one in steps if _differs(one)]
    return {
        "workflows": [{name: one[name] for name in _HEAD} for one in (first, second)],
        "input": _changes(first["input"], second["input"]),
        "output": _changes(first["output"], second["output"]),
        "error": _changes(first["error"], second["error"]),
        "steps": differing,
        "same_steps": len(steps) - len(differing),
    }


def _step(id: str, ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> dict[str, Any]:
    def both(name: str) -> list[Any]:
        return [None if one is None else one[name] for one in (ours, theirs)]

    names = ("agent", "status", "usage", "reused", "prompts", "output")
    agents, statuses, usages, reused, prompts, outputs = (both(name) for name in names)
    return {
        "id": id,
        "agents": agents,
        "statuses": statuses,
        "usages": usages,
        "reused": reused,
        "prompts": prompts,
        "output": _changes(*outputs),
    }


def _differs(step: Mapping[str, Any]) -> bool:
    changed = any(ours != theirs for ours, theirs in (step["agents"], step["statuses"], step["prompts"]))
    return changed or bool(step["output"]["changes"])


def _changes(old: Any, new: Any) -> dict[str, Any]:
    found = [{"path": path, "values": [_short(before), _short(after)]} for path, before, after in _walk("", old, new)]
    return {"changes": found[:_MOST_CHANGES], "more": max(0, len(found) - _MOST_CHANGES)}


def _walk(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """Every place where one value is not the other, from the outside in. What is stored apart is known by its hash."""
    old, new = _plain(old), _plain(new)
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from _walk(f"{path}.{key}" if path else key, old.get(key, _MISSING), new.get(key, _MISSING))
    elif isinstance(old, list) and isinstance(new, list):
        for index in range(max(len(old), len(new))):
            pair = (items[index] if index < len(items) else _MISSING for items in (old, new))
            yield from _walk(f"{path}[{index}]", *pair)
    elif old is _MISSING or new is _MISSING or _text(old) != _text(new):
        yield path, old, new


def _plain(value: Any) -> Any:
    stored = reference(value)
    return value if stored is None else stored.as_json()


def _text(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def _short(value: Any) -> Any:
    """A value whole when it is short; else the beginning of its text."""
    if value is _MISSING:
        return None
    text = value if isinstance(value, str) else _text(value).decode()
    return value if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
