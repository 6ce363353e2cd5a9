"""Reviews one file of a change.

Input `{file, title, description, guidelines}`, `file` as the splitter gives it, the texts may be empty; output `{path, findings:
[{line, severity, category, message, suggestion}], dropped}`. Models make up line numbers: a finding on a line that the patch does
not show is dropped, and `dropped` counts them.
"""

from collections.abc import Mapping
from typing import Any

from shared.runtime import InputError, Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when the file is not one of the splitter's."""
    given = task.input if isinstance(task.input, Mapping) else {}
    file = given.get("file")
    if not isinstance(file, Mapping) or not isinstance(file.get("ranges"), list):
        raise InputError("the file to review is missing; give one that the splitter made")
    answer = await team.generate(
        values={
            "path": file["path"],
            "patch": file["patch"],
            "about": {name: given[name] for name in ("title", "description") if given.get(name)},
            "guidelines": given.get("guidelines") or "",
        }
    )
    findings: list[Any] = answer["findings"]
    kept = [one for one in findings if any(first <= one["line"] <= last for first, last in file["ranges"])]
    if len(kept) < len(findings):
        team.log.warning("%s findings dropped: their lines are not in the change", len(findings) - len(kept))
    return Result(output={"path": file["path"], "findings": kept, "dropped": len(findings) - len(kept)})
