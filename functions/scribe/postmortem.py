"""A postmortem in Markdown, from a record whose every fact has a quote."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_ANGLES = {
    "trigger": "What set it off",
    "spread": "Why it became as large",
    "detection": "Why it was noticed when it was",
    "recovery": "Why it took as long to end",
}
_NOT_SAID = "The notes say nothing about this."


def postmortem(record: Mapping[str, Any]) -> str:
    """The whole document. What the notes do not tell is said to be unknown, never left out."""
    parts = [f"# Postmortem: {_line(record['title'])}", *_about(record), f"## Summary\n\n{record['summary'].strip()}"]
    parts.append(f"## Impact\n\n{_listed(_borne_out(one, 'statement') for one in record['impact'])}")
    parts.append(f"## Timeline\n\n{_listed(_moment(one) for one in record['moments'])}")
    parts.append(f"## Contributing causes\n\n{_causes(record['causes'])}")
    parts.append(f"## What went well\n\n{_listed(_borne_out(one, 'statement') for one in record['went_well'])}")
    parts.append(f"## Action items\n\n{_actions(record['actions'])}")
    if record["open_questions"]:
        parts.append(f"## What is not known\n\n{_listed(_line(one) for one in record['open_questions'])}")
    caveats = _line(record["caveats"])
    return "\n\n".join(parts) + (f"\n\n---\n\n*{caveats}*\n" if caveats else "\n")


def _about(record: Mapping[str, Any]) -> Iterator[str]:
    known = [f"**{name.capitalize()}:** {_line(record[name])}" for name in ("service", "severity") if record.get(name)]
    if known:
        yield " · ".join(known)


def _causes(causes: Sequence[Mapping[str, Any]]) -> str:
    return "\n\n".join(
        f"### {heading}\n\n{_listed(_cause(one) for one in causes if one['angle'] == angle)}" for angle, heading in _ANGLES.items()
    )


def _cause(cause: Mapping[str, Any]) -> str:
    suspected = " *(suspected)*" if cause["certainty"] == "suspected" else ""
    return f"{_borne_out(cause, 'statement')}{suspected}"


def _moment(moment: Mapping[str, Any]) -> str:
    return f"**{_line(moment['time'])}** {_borne_out(moment, 'what')}"


def _actions(actions: Sequence[Mapping[str, Any]]) -> str:
    if not actions:
        return _NOT_SAID
    rows = ["| priority | action | owner |", "| --- | --- | --- |"]
    for one in actions:
        cells = (one["priority"], _borne_out(one, "action"), one["owner"] or "*nobody yet*")
        rows.append(f"| {' | '.join(_cell(text) for text in cells)} |")
    return "\n".join(rows)


def _borne_out(one: Mapping[str, Any], name: str) -> str:
    """A statement and the words that it rests on; only these where it says nothing else."""
    statement, quote = _line(one[name]), _line(one["quote"])
    same = _words(statement) in _words(quote)
    return f"“{quote}”" if same else f"{statement} (“{quote}”)"


def _listed(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines) or _NOT_SAID


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _line(text: str) -> str:
    return " ".join(text.split())


def _words(text: str) -> str:
    return re.sub(r"\W+", " ", text).casefold().strip()
