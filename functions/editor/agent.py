"""Merges the reviews of a change's files into one.

Input `{title, description, overview, more, reviews}`, as splitter and reviewers give them; output `{verdict, summary, title,
findings: [{file, line, also, severity, category, message, suggestion}], general: [text], caveats, files, more_files, dropped,
text}`: findings are ranked and said once, `also` holds further lines of the same; `text` is the review in Markdown. The model may
be stricter than the findings, never milder: with a critical or high one it cannot approve.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from functions.editor.markdown import SEVERITIES, review
from shared.runtime import InputError, Result, Task, Team

VERDICTS = ("approve", "comment", "request changes")
"""From the mildest to the strictest."""
MOST_SHOWN = 100
"""Findings that the model is told of: the weightiest."""


async def run(task: Task, team: Team) -> Result:
    """Ask the model once. Raises InputError when overview or reviews are missing."""
    given = task.input if isinstance(task.input, Mapping) else {}
    overview, reviews = given.get("overview"), given.get("reviews")
    if not isinstance(overview, list) or not isinstance(reviews, list):
        raise InputError("overview and reviews are missing; give what splitter and reviewers made")
    heard = [one for one in reviews if isinstance(one, Mapping)]
    findings = ranked(heard)
    files = _files(overview, {one["path"] for one in heard})
    answer = await team.generate(
        values={
            "about": {name: given[name] for name in ("title", "description") if given.get(name)},
            "changed": files,
            "findings": findings[:MOST_SHOWN],
        }
    )
    whole = {
        **answer,
        "verdict": max(answer["verdict"], _least(findings), key=VERDICTS.index),
        "title": given.get("title") or "",
        "findings": findings,
        "files": files,
        "more_files": given.get("more") or 0,
        "dropped": sum(one["dropped"] for one in heard),
    }
    return Result(output={**whole, "text": review(whole)})


def ranked(reviews: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """All findings, the weightiest first. The same words about several lines are one, and so is what is of one line and kind."""
    found = [{"file": one["path"], **finding} for one in reviews for finding in one["findings"]]
    found.sort(key=lambda one: SEVERITIES.index(one["severity"]))  # stable: within a severity, the order of the files
    kept: list[dict[str, Any]] = []
    by_words: dict[tuple[str, str], dict[str, Any]] = {}
    by_place: dict[tuple[str, int, str], dict[str, Any]] = {}
    for one in found:
        words, place = (one["file"], one["message"]), (one["file"], one["line"], one["category"])
        if (said := by_words.get(words)) is not None:
            if one["line"] not in (said["line"], *said["also"]):
                said["also"].append(one["line"])
        elif (there := by_place.get(place)) is not None:
            there["message"] = f"{there['message']} {one['message']}"
            there["suggestion"] = there["suggestion"] or one["suggestion"]
        else:
            kept.append({**one, "also": []})
            by_words[words] = by_place[place] = kept[-1]
    return kept


def _least(findings: Sequence[Mapping[str, Any]]) -> str:
    """The mildest verdict that the findings allow."""
    weights = {one["severity"] for one in findings}
    return "request changes" if weights & {"critical", "high"} else "comment" if "medium" in weights else "approve"


def _files(overview: Sequence[Mapping[str, Any]], reviewed: set[str]) -> list[dict[str, Any]]:
    """The overview; of a file whose review failed and was let go it says so."""
    return [
        {**one, "reviewed": False, "note": "not reviewed: the review failed"}
        if one["reviewed"] and one["path"] not in reviewed
        else dict(one)
        for one in overview
    ]
