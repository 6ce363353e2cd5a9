"""Drafts the report, and revises it after the debate.

Input `{plan, findings}` (stage draft) or `{draft, verdict}` (stage final); output `{title, summary, text}`, where `text` is the
whole report in Markdown. Findings that are not in the input are the outputs of the steps that it needs. A draft that nobody debated
(no verdict) is final as it stands.
"""

from collections.abc import Mapping
from typing import Any

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model once, or not at all when there is nothing to revise by. Raises InputError when plan or findings are missing."""
    given = task.input if isinstance(task.input, Mapping) else {}
    if "draft" in given:
        if given.get("verdict") is None:
            return Result(output=given["draft"])
        values = {"plan": {}, "findings": [], **given, "stage": "final", "verdict": _without_transcript(given["verdict"])}
    else:
        needed = {"findings": list(task.upstream.values())} if task.upstream else {}
        values = {"draft": {}, "verdict": {}, **needed, **given, "stage": "draft"}
    values["findings"] = _found(values.get("findings"))
    return Result(output=await team.generate(values=values))


def _without_transcript(verdict: Any) -> Any:
    """What the debate came to. What was said on the way there is in its reasons, and would be paid for by the word."""
    return {key: verdict[key] for key in verdict if key != "transcript"} if isinstance(verdict, Mapping) else verdict


def _found(findings: Any) -> Any:
    """The findings without the questions whose research failed and was let go."""
    return [one for one in findings if one is not None] if isinstance(findings, list) else findings
