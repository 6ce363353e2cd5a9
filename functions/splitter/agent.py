"""Cuts a unified diff into its files. No model is asked.

Input `{diff}`; output `{files: [{path, was, status, added, removed, patch, ranges, note}], overview: [{path, was, status, added,
removed, reviewed, note}], more}`. `files` are those that can be reviewed line by line: `patch` is the diff with the numbers of the
new file before each line, `ranges` are the first and last numbers that stand in it, one pair for each hunk. `overview` has all
files, `more` counts those beyond it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from functions.splitter.unified import FileChange, Hunk, read_diff
from shared.runtime import InputError, Result, Task, Team

MOST_FILES = 40
"""Files of one diff that are reviewed."""
MOST_LISTED = 200
"""Files of one diff that are named at all."""
PATCH_CHARACTERS = 24_000
"""What of one file is reviewed."""
ALL_CHARACTERS = 240_000
"""What of all files is reviewed: results travel as messages, whose size is limited."""
LINE_CHARACTERS = 500


@dataclass(slots=True)
class _Patch:
    text: str
    ranges: list[list[int]]
    lines: int
    """How many of the lines are in it."""


async def run(task: Task, _team: Team) -> Result:
    """Cut it. Raises InputError when the input is no diff."""
    diff = task.input.get("diff") if isinstance(task.input, Mapping) else None
    changes = read_diff(diff) if isinstance(diff, str) else []
    if not changes:
        raise InputError("the input is not a unified diff; give what `git diff` or `diff -u` prints")
    files: list[dict[str, Any]] = []
    overview: list[dict[str, Any]] = []
    left = ALL_CHARACTERS
    for change in changes:
        about = _about(change)
        note = _unreadable(change)
        patch = None if note else _patch(change.hunks, min(left, PATCH_CHARACTERS))
        if patch is not None and (len(files) == MOST_FILES or not patch.ranges):
            note, patch = f"not reviewed: only the first {len(files)} files of a change are", None
        if patch is not None:
            left -= len(patch.text)
            note = _cut_short(change, patch)
            files.append({**about, "patch": patch.text, "ranges": patch.ranges, "note": note})
        overview.append({**about, "reviewed": patch is not None, "note": note})
    return Result(output={"files": files, "overview": overview[:MOST_LISTED], "more": max(0, len(overview) - MOST_LISTED)})


def _about(change: FileChange) -> dict[str, Any]:
    return {
        "path": change.path,
        "was": change.was,
        "status": change.status,
        "added": change.count("+"),
        "removed": change.count("-"),
    }


def _unreadable(change: FileChange) -> str:
    """Why there is nothing to review line by line; empty when there is."""
    if change.binary:
        return "binary"
    if change.combined:
        return "a merge's combined diff cannot be reviewed; give the diff against one parent"
    if change.status == "deleted":
        return "deleted"
    if not any(line.number is not None for hunk in change.hunks for line in hunk.lines):
        return "lines were only removed" if change.hunks else "no line changed"
    return ""


def _patch(hunks: list[Hunk], characters: int) -> _Patch:
    """The hunks with line numbers, up to the first line that does not fit."""
    patch, left = _Patch("", [], 0), characters
    written: list[str] = []
    for hunk in hunks:
        numbers: list[int] = []
        for place, line in enumerate(hunk.lines):
            head = [f"@@ {hunk.section}".rstrip()] if place == 0 else []
            text = line.text if len(line.text) <= LINE_CHARACTERS else f"{line.text[:LINE_CHARACTERS]}…"
            number = "" if line.number is None else str(line.number)
            rows = [*head, f"{number:>6} {line.mark} {text}".rstrip()]
            left -= sum(len(row) + 1 for row in rows)
            if left < 0:
                break
            written += rows
            patch.lines += 1
            numbers += [] if line.number is None else [line.number]
        if numbers:
            patch.ranges.append([numbers[0], numbers[-1]])
        if left < 0:
            break
    patch.text = "\n".join(written)
    return patch


def _cut_short(change: FileChange, patch: _Patch) -> str:
    total = sum(len(hunk.lines) for hunk in change.hunks)
    return "" if patch.lines == total else f"only the first {patch.lines} of {total} lines were reviewed"
