"""Scores a debate about a text.

Input `{subject, arguments: [{side, round, argument, points, score}], question, rubric: [text], sides: [{name, position}], round}`;
arguments may also come from the steps this one needs, and without `sides` those that argued are the sides.
Output `{winner: side|tie, scores: {side: 0..1}, reasons: [text], dissent, changes: [text], tokens}`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the subject is empty or nobody argued."""
    given = task.input if isinstance(task.input, Mapping) else {}
    arguments = _arguments(given, task.upstream)
    names = _spoke(arguments)
    known = {"question": "Should this text stand as it is?", "rubric": [], "sides": [{"name": name} for name in names]}
    answer = await team.generate(values={**known, **given, "arguments": arguments}, schema=_schema(team, names))
    return Result(output={**answer, "tokens": team.usage.tokens})


def _schema(team: Team, names: Sequence[str]) -> Mapping[str, Any] | None:
    """The prompt's schema, with a score for each side that argued: one left out would be a side nobody judged."""
    if team.prompt is None or team.prompt.schema is None:
        return None
    schema = team.prompt.schema
    score = {"type": "number", "minimum": 0, "maximum": 1}
    properties = schema["properties"]
    scores = {**properties["scores"], "required": list(names), "properties": {name: score for name in names}}
    winner = {**properties["winner"], "enum": [*names, "tie"]}
    return {**schema, "properties": {**properties, "winner": winner, "scores": scores}}


def _spoke(arguments: Any) -> list[str]:
    """The sides that argued, in the order in which they are shown."""
    sides = [one.get("side") for one in arguments] if isinstance(arguments, list) else []
    return list(dict.fromkeys(side for side in sides if isinstance(side, str)))


def _arguments(given: Mapping[str, Any], upstream: Mapping[str, Any]) -> Any:
    """What was said, from the input and then from needed steps; a critic's whole output under `argument` is unfolded."""
    said = given.get("arguments", [])
    if not isinstance(said, list):
        return said  # the prompt's input schema refuses it by name
    heard = (one for one in (*said, *upstream.values()) if isinstance(one, Mapping))
    unfolded = ({**one, **one["argument"]} if isinstance(one.get("argument"), Mapping) else one for one in heard)
    # A critic that failed and was let go said nothing. What a turn cost is not for the judge to read.
    return [{key: one[key] for key in one if key != "tokens"} for one in unfolded if one.get("argument") is not None]
