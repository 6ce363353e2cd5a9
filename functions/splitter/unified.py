"""Reads unified diffs: what `git diff`, `git format-patch`, `diff -u` and `svn diff` print.

A hunk is as long as its head says, so a removed line that begins with `-- ` is not taken for the head of the next file. A hunk that
ends before that (a diff that was cut off) is read as far as it goes. Lines in between that belong to no file are passed over.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_GIT = re.compile(r"diff --git (.+)$")
_SECOND = re.compile(r'.* ("[a-z]/.*"|[a-z]/.*)$')
_COMBINED = re.compile(r"diff --(?:cc|combined) (.+)$")
_INDEX = re.compile(r"Index: (.+)$")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@ ?(.*)$")
_NAMED = re.compile(r"(rename|copy) (from|to) (.+)$")
_BINARY = re.compile(r"Binary files .* differ$|GIT binary patch$|Cannot display: file marked as a binary type")
_ESCAPE = re.compile(r"\\([0-7]{3}|.)")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_NOTHING = "/dev/null"


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a hunk: `+`, `-` or a space, its number in the new file (none for a removed one), and its text."""

    mark: str
    number: int | None
    text: str


@dataclass(slots=True)
class Hunk:
    """Lines that follow each other. `section` is what git says they stand in."""

    section: str
    lines: list[Line] = field(default_factory=list)


@dataclass(slots=True)
class FileChange:
    """What a diff does to one file."""

    path: str = ""
    was: str = ""
    """Its path before, where that was another."""
    status: str = "modified"
    """added, deleted, renamed, copied, modified"""
    binary: bool = False
    prefixed: bool = True
    """Whether its paths begin with a letter that is not theirs: a/ and b/, with `diff.mnemonicPrefix` others."""
    combined: bool = False
    """A merge against several parents, whose lines have no single old side."""
    hunks: list[Hunk] = field(default_factory=list)

    def count(self, mark: str) -> int:
        """How many lines have this mark."""
        return sum(line.mark == mark for hunk in self.hunks for line in hunk.lines)


def read_diff(text: str) -> list[FileChange]:
    """Every file of the diff, in its order; none when the text is no diff."""
    return _Reader(text.split("\n")).files()


class _Reader:
    def __init__(self, lines: Sequence[str]) -> None:
        self._lines = [line.removesuffix("\r") for line in lines]
        self._at = 0
        self._found: list[FileChange] = []

    def files(self) -> list[FileChange]:
        while self._at < len(self._lines):
            line = self._lines[self._at]
            hunk = _HUNK.match(line)
            if hunk is not None and self._found:
                self._at += 1
                self._found[-1].hunks.append(self._hunk(hunk))
            else:
                self._head(line)
                self._at += 1
        return [one for one in self._found if one.path]

    def _head(self, line: str) -> None:
        """Take in a line outside of hunks."""
        if (git := _GIT.match(line)) is not None:
            self._found.append(_opened(git[1]))
        elif (combined := _COMBINED.match(line)) is not None:
            self._found.append(FileChange(path=_unquoted(combined[1]), combined=True))
        elif (index := _INDEX.match(line)) is not None and self._following().startswith("==="):
            self._found.append(FileChange(path=index[1], prefixed=False))
        elif line.startswith("--- ") and self._following().startswith("+++ ") and self._following(2).startswith("@@"):
            self._sides(_path(line[4:]), _path(self._following()[4:]))
            self._at += 1
        elif self._found:
            _describe(self._found[-1], line)

    def _sides(self, before: str, after: str) -> None:
        """The two lines that name the file before and after. Without a head of git they begin it."""
        if not self._found or self._found[-1].hunks or self._found[-1].binary:
            sides = [side[:2] for side in (before, after) if side != _NOTHING]
            self._found.append(FileChange(prefixed=sides in (["a/", "b/"], ["a/"], ["b/"])))
        change = self._found[-1]
        path = before if after == _NOTHING else after
        change.path = path[2:] if change.prefixed else path
        if _NOTHING in (before, after):
            change.status = "deleted" if after == _NOTHING else "added"

    def _following(self, lines: int = 1) -> str:
        return self._lines[self._at + lines] if self._at + lines < len(self._lines) else ""

    def _hunk(self, head: re.Match[str]) -> Hunk:
        hunk = Hunk(section=head[4].strip())
        old, new = (1 if size is None else int(size) for size in (head[1], head[3]))
        number = int(head[2])
        while (old > 0 or new > 0) and self._at < len(self._lines):
            line = self._lines[self._at]
            # Editors and mails strip the space of an empty line.
            mark, text = (line[0], line[1:]) if line else (" ", "")
            if mark == "\\":
                self._at += 1
                continue
            if mark not in "+- " or (not line and self._at == len(self._lines) - 1):
                break
            hunk.lines.append(Line(mark, None if mark == "-" else number, text))
            self._at += 1
            old -= mark != "+"
            new -= mark != "-"
            number += mark != "-"
        return hunk


def _opened(paths: str) -> FileChange:
    """A file by git's first line of it. Two paths that are the same have no prefix: git's are never the same."""
    half = len(paths) // 2
    if paths[:half] == paths[half + 1 :]:
        return FileChange(path=_unquoted(paths[:half]), prefixed=False)
    second = _SECOND.match(paths)
    return FileChange(prefixed=False) if second is None else FileChange(path=_unquoted(second[1])[2:])


def _describe(change: FileChange, line: str) -> None:
    """What git says of a file before its hunks."""
    if line.startswith("new file mode"):
        change.status = "added"
    elif line.startswith("deleted file mode"):
        change.status = "deleted"
    elif _BINARY.match(line):
        change.binary = True
    elif (named := _NAMED.match(line)) is not None:
        change.status = "renamed" if named[1] == "rename" else "copied"
        if named[2] == "from":
            change.was = _unquoted(named[3])
        else:
            change.path = _unquoted(named[3])


def _path(written: str) -> str:
    """A path without quotation marks, and without the date that `diff -u` puts behind a tab."""
    return _unquoted(written if written.startswith('"') else written.split("\t")[0]).strip()


def _unquoted(path: str) -> str:
    """Git puts paths with special characters in quotation marks and writes their bytes in octal."""
    if not (path.startswith('"') and path.endswith('"') and len(path) > 1):
        return path
    return b"".join(_bytes(path[1:-1])).decode("utf-8", "replace")


def _bytes(quoted: str) -> Iterator[bytes]:
    end = 0
    for escape in _ESCAPE.finditer(quoted):
        yield quoted[end : escape.start()].encode()
        code = escape[1]
        yield bytes([int(code, 8) & 0xFF]) if len(code) == 3 else _ESCAPED.get(code, code).encode()
        end = escape.end()
    yield quoted[end:].encode()
