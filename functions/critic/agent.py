"""Argues one side of a debate about a text.

Input `{subject, side: for|against, round, arguments}`; what was said before may come in `arguments` or from needed steps.
Output `{side, round, argument, points: [text], score: 0..1}`.
"""

from collections.abc import Mapping
from typing import Any

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the subject is empty or the side is neither `for` nor `against`."""
    given = task.input if isinstance(task.input, Mapping) else {}
    values = {"round": 1, **given, "arguments": _arguments(given, task.upstream)}
    answer = await team.generate(values=values)
    return Result(output={"side": values["side"], "round": values["round"], **answer})


def _arguments(given: Mapping[str, Any], upstream: Mapping[str, Any]) -> Any:
    """What was said, from the input and then from needed steps; a critic's whole output under `argument` is unfolded."""
    said = given.get("arguments", [])
    if not isinstance(said, list):
        return said  # the prompt's input schema refuses it by name
    heard = (one for one in (*said, *upstream.values()) if isinstance(one, Mapping))
    unfolded = ({**one, **one["argument"]} if isinstance(one.get("argument"), Mapping) else one for one in heard)
    # A critic that failed and was let go said nothing.
    return [one for one in unfolded if one.get("argument") is not None]
