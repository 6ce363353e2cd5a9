"""A workflow's log lines as people read them, wherever they were kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

_ENDS: Final = frozenset({"workflow success", "workflow failed", "workflow cancelled"})
_MARKS: Final = {"warn": "yellow", "error": "red", "debug": "dim"}
_SEVERITIES: Final = ((500, "error"), (400, "warn"), (200, "info"), (100, "debug"))
"""From which number on: https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#logseverity."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line: when and where it was written, and its fields as they were logged."""

    at: datetime
    function: str
    fields: Mapping[str, Any]

    @property
    def message(self) -> str:
        """What it says."""
        return str(self.fields.get("msg", self.fields.get("message", "")))

    def ends_after(self, ended: bool) -> bool:
        """Whether the workflow has ended after this line, when it had `ended` before: one that failed may go on, by hand."""
        resumed = self.message == "workflow rerun" or (
            self.message.startswith("dead letter ") and self.message.endswith(" redriven")
        )
        return self.message in _ENDS or (ended and not resumed)


def from_fields(fields: Mapping[str, Any], *, at: datetime | None = None, function: str = "", severity: int = 0) -> Line:
    """A line from what `shared.telemetry` wrote; `at`, `function` and `severity` are what Cloud Logging knows of it besides."""
    if at is None:
        time = fields.get("time")
        at = datetime.fromtimestamp(time / 1000 if isinstance(time, int | float) else 0, UTC)
    level = fields.get("level", next((name for least, name in _SEVERITIES if severity >= least), "info"))
    where = function or fields.get("agent") or str(fields.get("logger", "")).removeprefix("functions.").partition(".")[0]
    return Line(at, str(where), {**fields, "level": level})


def told(line: Line) -> tuple[str, str]:
    """The line as text, on one line, and its style."""
    from shared.cli.output import one_line

    fields = line.fields
    message = line.message
    error = fields.get("error")
    if isinstance(error, Mapping):
        message += f" ({': '.join(str(error[key]) for key in ('type', 'message') if error.get(key))})"
    if isinstance(fields.get("duration"), int | float):
        message += f" [{fields['duration']:,.0f} ms]"
    step = str(fields.get("step", "-"))
    attempt = fields.get("attempt")
    if isinstance(attempt, int | float) and attempt > 1:
        step += f" #{attempt:.0f}"
    level = str(fields["level"])
    time = f"{line.at:%Y-%m-%d %H:%M:%S}.{line.at.microsecond // 1000:03d}"
    where = f"{one_line(line.function):<12}  {one_line(level):<5}  {one_line(step):<16}"
    return f"{time}  {where}  {one_line(message, longest=1000)}", _MARKS.get(level, "")


def as_json(line: Line) -> dict[str, Any]:
    """The line as one object: its fields, with `at` and `function` in front."""
    return {"at": line.at.isoformat(), "function": line.function, **line.fields}
