"""A review in Markdown."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

SEVERITIES = ("critical", "high", "medium", "low")
"""The weightiest first."""
_VERDICTS = {"approve": "Approve", "comment": "Comment", "request changes": "Request changes"}


def review(whole: Mapping[str, Any]) -> str:
    """The whole document: verdict, findings by severity, what is about no line, and which files were read."""
    heading = f"Review: {_line(whole['title'])}" if whole["title"] else "Review"
    parts = [f"# {heading}", f"**{_VERDICTS[whole['verdict']]}** · {_counted(whole['findings'])}", whole["summary"].strip()]
    for severity in SEVERITIES:
        found = [one for one in whole["findings"] if one["severity"] == severity]
        if found:
            parts.append(f"## {severity.capitalize()}\n\n" + "\n".join(map(_finding, found)))
    if whole["general"]:
        parts.append("## About the change as a whole\n\n" + "\n".join(f"- {_line(one)}" for one in whole["general"]))
    parts.append(_read(whole))
    caveats = _line(whole["caveats"])
    return "\n\n".join(parts) + (f"\n\n---\n\n*{caveats}*\n" if caveats else "\n")


def _finding(one: Mapping[str, Any]) -> str:
    place = _code(f"{one['file']}:{one['line']}")
    also = f" (also {', '.join(map(str, one['also']))})" if one["also"] else ""
    said = f"- **{place}**{also} · {one['category']}: {_line(one['message'])}"
    suggestion = one["suggestion"].strip()
    if not suggestion:
        return said
    if "\n" not in suggestion:
        return f"{said}\n  - Suggestion: {suggestion}"
    fence = "`" * max(3, _longest_run(suggestion) + 1)
    return "\n    ".join([f"{said}\n  - Suggestion:", "", fence, *suggestion.split("\n"), fence])


def _read(whole: Mapping[str, Any]) -> str:
    rows = [
        f"| {_code(_named(one))} | {one['status']} | +{one['added']} −{one['removed']} | {'yes' if one['reviewed'] else 'no'}"  # noqa: RUF001
        f"{': ' + _line(one['note']) if one['note'] else ''} |"
        for one in whole["files"]
    ]
    table = "\n".join(["## Files", "", "| file | change | lines | reviewed |", "| --- | --- | --- | --- |", *rows])
    more = [f"And {whole['more_files']} more files, which are not listed."] if whole["more_files"] else []
    dropped = (
        [f"{whole['dropped']} findings were dropped: the lines that they named are not in the change."] if whole["dropped"] else []
    )
    return "\n\n".join([table, *more, *dropped])


def _named(file: Mapping[str, Any]) -> str:
    return f"{file['was']} → {file['path']}" if file["was"] else str(file["path"])


def _counted(findings: Sequence[Mapping[str, Any]]) -> str:
    weights = Counter(one["severity"] for one in findings)
    return ", ".join(f"{weights[one]} {one}" for one in SEVERITIES if weights[one]) or "no findings"


def _code(text: str) -> str:
    bare = _line(text).replace("`", "'").replace("|", "\\|")
    return f"`{bare}`"


def _longest_run(text: str) -> int:
    longest = run = 0
    for character in text:
        run = run + 1 if character == "`" else 0
        longest = max(longest, run)
    return longest


def _line(text: str) -> str:
    return " ".join(text.split())
