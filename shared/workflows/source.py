"""A definition file as plain JSON values that know their lines, and the list of what is wrong with it."""

from collections.abc import Mapping
from typing import Any, NoReturn

from shared.errors import DefinitionError
from shared.templates import Path

_MOST_PROBLEMS = 50


class Source:
    """The values of one file. Problems are gathered, so that one look shows all of them; the 50th ends the search."""

    def __init__(self, file: str, value: Any, lines: Mapping[Path, int]) -> None:
        self.file = file
        self.value = value
        self._lines = lines
        self._problems: set[tuple[int, str]] = set()

    def line(self, path: Path) -> int:
        """The line, counted from 1, of the value at `path` or of the nearest value around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def problem(self, path: Path, message: str) -> None:
        """Note what is wrong at `path`, and how to mend it. Raises DefinitionError when that makes too many."""
        self.problem_at(self.line(path), message)

    def problem_at(self, line: int, message: str) -> None:
        """Note what is wrong on `line`."""
        self._problems.add((line, message))
        if len(self._problems) >= _MOST_PROBLEMS:
            self.refuse()

    def check(self) -> None:
        """Raise DefinitionError with every problem, one a line in the file's order, if there is one."""
        if self._problems:
            self.refuse()

    def refuse(self) -> NoReturn:
        """Raise DefinitionError with every problem noted so far."""
        raise DefinitionError("\n".join(f"{self.file}:{line}: {message}" for line, message in sorted(self._problems)))
