"""Takes what happened out of an incident's notes, and lets through only what the notes hold word for word.

Input `{notes, service, severity}`, the last two may be empty; output `{title, service, severity, impact, moments, went_well,
dropped}`: `moments` are `{time, what, quote}`, `impact` and `went_well` are `{statement, quote}`, `dropped` counts what was quoted
and is not there.
"""

from collections.abc import Mapping
from typing import Any

from shared.runtime import Result, Task, Team, holds

_QUOTING = ("impact", "moments", "went_well")


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the notes are missing or empty."""
    answer = await team.generate()
    notes = task.input["notes"]
    kept = {name: [one for one in answer[name] if holds(notes, one["quote"])] for name in _QUOTING}
    dropped = sum(len(answer[name]) - len(kept[name]) for name in _QUOTING)
    if dropped:
        team.log.warning("%s dropped: their quotes do not stand in the notes", dropped)
    return Result(output={**_about(task.input), **answer, **kept, "dropped": dropped})


def _about(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"service": given["service"], "severity": given["severity"]}
