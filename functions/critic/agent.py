"""Argues one side of a debate about a text.

Input `{subject, side, round, arguments, question, sides: [{name, position}]}`; what was said before may come in `arguments` or from
needed steps, and a side that nobody describes is known by its name alone.
Output `{side, round, argument, points: [text], score: 0..1, concedes_to: side|null, tokens}`.
"""

from collections.abc import Mapping
from typing import Any

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the subject or the side is missing."""
    given = task.input if isinstance(task.input, Mapping) else {}
    values = {"round": 1, "question": "Should this text stand as it is?", **given, "arguments": _arguments(given, task.upstream)}
    values.setdefault("sides", _sides(values.get("side"), values["arguments"]))
    answer = await team.generate(values=values)
    others = [side["name"] for side in values["sides"] if side["name"] != values["side"]]
    conceded = answer.get("concedes_to")
    return Result(
        output={
            **answer,
            "side": values["side"],
            "round": values["round"],
            "concedes_to": conceded if conceded in others else None,
            "tokens": team.usage.tokens,
        }
    )


def _sides(own: Any, arguments: Any) -> list[dict[str, Any]]:
    """The sides as far as they are known: this one, and those that have spoken."""
    spoke = [one.get("side") for one in arguments] if isinstance(arguments, list) else []
    return [{"name": name} for name in dict.fromkeys(name for name in (own, *spoke) if isinstance(name, str))]


def _arguments(given: Mapping[str, Any], upstream: Mapping[str, Any]) -> Any:
    """What was said, from the input and then from needed steps; a critic's whole output under `argument` is unfolded."""
    said = given.get("arguments", [])
    if not isinstance(said, list):
        return said  # the prompt's input schema refuses it by name
    heard = (one for one in (*said, *upstream.values()) if isinstance(one, Mapping))
    unfolded = ({**one, **one["argument"]} if isinstance(one.get("argument"), Mapping) else one for one in heard)
    # A critic that failed and was let go said nothing. What a turn cost is not for the others to read.
    return [{key: one[key] for key in one if key != "tokens"} for one in unfolded if one.get("argument") is not None]
