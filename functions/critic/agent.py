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
    """What was said before, from the input and then from the steps this one needs."""
    said = given.get("arguments", [])
    if not isinstance(said, list):
        return said  # the prompt's input schema refuses it by name
    return [*said, *(one for one in upstream.values() if isinstance(one, Mapping) and "argument" in one)]
