"""Looks for contributing causes from one angle, and lets through only what the notes hold word for word.

Input `{angle, notes, moments}`; output `{angle, causes: [{statement, certainty, quote}], actions: [{action, owner, priority,
quote}], unknown: [text]}`. An owner whom the notes do not name is nobody: the field is empty then.
"""

from shared.runtime import Result, Task, Team, holds


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError for an angle that is none, or when the notes are missing or empty."""
    answer = await team.generate()
    notes = task.input["notes"]
    kept = {name: [one for one in answer[name] if holds(notes, one["quote"])] for name in ("causes", "actions")}
    kept["actions"] = [{**one, "owner": one["owner"] if holds(notes, one["owner"]) else ""} for one in kept["actions"]]
    dropped = sum(len(answer[name]) - len(kept[name]) for name in kept)
    if dropped:
        team.log.warning("%s dropped: their quotes do not stand in the notes", dropped)
    return Result(output={"angle": task.input["angle"], **answer, **kept})
