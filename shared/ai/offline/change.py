"""What can be said about a change without understanding it: patterns in added lines, and counts. Every remark says so."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

_LINE = re.compile(r"\s*(\d+) \+ ?(.*)$")
_LONG = 140
_READ = 2000
"""No more of a line than this is looked at, so that no input can cost more than a bounded time."""
_LARGE = 800
_SCRIPTS = frozenset({".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".vue"})
_CODE = _SCRIPTS | {
    ".py",
    ".go",
    ".rs",
    ".java",
    ".kt",
    ".rb",
    ".php",
    ".c",
    ".cc",
    ".cpp",
    ".h",
    ".cs",
    ".swift",
    ".scala",
    ".sql",
}
_TEST = re.compile(r"(?:^|/)(?:tests?|specs?|__tests__)/|(?:^|[/_.-])(?:test|spec)s?[_.-]|[_.-](?:test|spec)s?\.")
_SEVERITIES = ("critical", "high", "medium", "low")


@dataclass(frozen=True, slots=True)
class _Check:
    pattern: re.Pattern[str]
    severity: str
    category: str
    message: str
    suggestion: str
    only: frozenset[str] = frozenset()
    """The endings of files that it is for; empty for all."""


def _check(pattern: str, severity: str, category: str, message: str, suggestion: str, only: frozenset[str] = frozenset()) -> _Check:
    return _Check(re.compile(pattern), severity, category, message, suggestion, only)


_PYTHON = frozenset({".py"})
_CHECKS = (
    _check(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{35}|\bgh[pousr]_\w{36}|\bsk_live_\w{16,}|"
        r"(?i:\b[\w-]*(?:passw(?:or)?d|secret|api_?key|token)\b[\"']?\s*[:=]\s*[\"'][^\"'{}$<>\s]{8,}[\"'])",
        "critical",
        "security",
        "this looks like a secret in the code.",
        "Read it from the environment or a secret store, and replace the one that was written down here.",
    ),
    _check(r"^(?:<{7}|>{7})(?: |$)", "critical", "correctness", "a mark of a merge conflict is left.", "Settle the conflict."),
    _check(
        r"(?i)\bf[\"'].*\b(?:select|insert into|update|delete from)\b.*\{|"
        r"[\"'].*\b(?:select|insert into|delete from)\b.*[\"']\s*(?:%|\+)\s*\w",
        "high",
        "security",
        "SQL seems to be put together from values.",
        "Pass the values as parameters of the query.",
    ),
    _check(
        r"\bshell\s*=\s*True|\bos\.system\(",
        "high",
        "security",
        "a shell is given a command.",
        "Pass the arguments as a list.",
        _PYTHON,
    ),
    _check(r"(?<![\w.])(?:eval|exec)\(", "high", "security", "code is made of text and run.", "", _PYTHON | _SCRIPTS),
    _check(r"\bverify\s*=\s*False\b", "high", "security", "certificates are not checked.", "Leave `verify` as it is.", _PYTHON),
    _check(
        r"^\s*except\s*:|^\s*except BaseException\s*:",
        "medium",
        "correctness",
        "a bare `except` also catches what should end the program, and hides mistakes.",
        "Name the exceptions that are expected here.",
        _PYTHON,
    ),
    _check(
        r"\b(?:requests|httpx)\.(?:get|post|put|patch|delete|head|request)\((?!.*\btimeout\b).*\)\s*$",
        "medium",
        "reliability",
        "a request without a time-out can wait for ever.",
        "Give it a `timeout`.",
        frozenset({".py"}),
    ),
    _check(
        r"(?<![\w.])(?:breakpoint\(\)|pdb\.set_trace\(\))|^\s*import pdb\b",
        "medium",
        "maintainability",
        "a debugger is left in.",
        "Remove it.",
        _PYTHON,
    ),
    _check(r"^\s*debugger;?\s*$", "medium", "maintainability", "a debugger is left in.", "Remove it.", _SCRIPTS),
    _check(
        r"(?<![\w.])print\(", "low", "maintainability", "`print` looks left over from debugging.", "Log it, or remove it.", _PYTHON
    ),
    _check(
        r"\bconsole\.(?:log|debug)\(", "low", "maintainability", "`console` looks left over from debugging.", "Remove it.", _SCRIPTS
    ),
    _check(
        r"\b(?:TODO|FIXME|XXX|HACK)\b",
        "low",
        "maintainability",
        "the added line says itself that it is not finished.",
        "Finish it, or name the ticket that will.",
    ),
    _check(rf"^.{{{_LONG + 1},}}$", "low", "style", f"the line has more than {_LONG} characters.", ""),
)


def remarks(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the patterns find in the added lines of a patch whose lines are numbered; the weightiest first."""
    found = list(_found(values["patch"], str(values.get("path", ""))))
    return {"findings": sorted(found, key=lambda one: _SEVERITIES.index(one["severity"]))}


def _found(patch: str, path: str) -> Iterator[dict[str, Any]]:
    ending = PurePosixPath(path).suffix
    for line in patch.split("\n"):
        numbered = _LINE.match(line)
        if numbered is None:
            continue
        for check in _CHECKS:
            if (not check.only or ending in check.only) and check.pattern.search(numbered[2][:_READ]):
                yield {
                    "line": int(numbered[1]),
                    "severity": check.severity,
                    "category": check.category,
                    "message": f"Pattern check: {check.message}",
                    "suggestion": check.suggestion,
                }


def judged(values: Mapping[str, Any], notice: str) -> dict[str, Any]:
    """What findings and files come to, by counting."""
    files = [one for one in values["changed"] if isinstance(one, Mapping)]
    findings = [one for one in values.get("findings", []) if isinstance(one, Mapping)]
    weights = Counter(str(one.get("severity")) for one in findings)
    strict = weights["critical"] + weights["high"]
    unread = sum(not one.get("reviewed") for one in files)
    caveats = [
        "Only pattern checks were made: nobody read what the change means.",
        *([f"Not checked line by line: {unread} of {len(files)} files."] if unread else []),
        notice,
    ]
    return {
        "verdict": "request changes" if strict else "comment" if weights["medium"] else "approve",
        "summary": _summary(files, findings, weights),
        "general": list(_general(files)),
        "caveats": " ".join(caveats),
    }


def _summary(files: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]], weights: Counter[str]) -> str:
    added, removed = (sum(int(one.get(name, 0)) for one in files) for name in ("added", "removed"))
    named = "file" if len(files) == 1 else "files"
    size = f"The change touches {len(files)} {named}: {added} lines added, {removed} removed."
    if not findings:
        return f"{size} The pattern checks found nothing, which is no proof that nothing is wrong."
    listed = ", ".join(f"{weights[one]} {one}" for one in _SEVERITIES if weights[one])
    worst = ", ".join(dict.fromkeys(str(one["file"]) for one in findings if one.get("severity") == findings[0].get("severity")))
    return f"{size} The pattern checks found {listed}; the weightiest in {worst}."


def _general(files: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    paths = [str(one.get("path", "")) for one in files if one.get("status") != "deleted"]
    code = [path for path in paths if PurePosixPath(path).suffix in _CODE and not _TEST.search(path)]
    if code and not any(_TEST.search(path) for path in paths):
        yield f"No test is among the changed files, and code is: {', '.join(code[:5])}{' and others' if len(code) > 5 else ''}."
    added = sum(int(one.get("added", 0)) for one in files)
    if added > _LARGE:
        yield f"{added} lines were added at once; several smaller changes would be easier to review."
