"""What people and pipes get to see: results on standard output, everything else on standard error.

Text that comes from outside (a model, a file) is cleared of control characters before a terminal sees it, so that it cannot move
the cursor or change colours. In a pipe a result is what it is, as UTF-8.
"""

import re
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from shared.config import Settings

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|[\u202a-\u202e\u2066-\u2069]"
)
"""Terminal sequences as a whole (ECMA-48), and what turns the direction of writing."""


def messages() -> Console:
    """Standard error. Made anew each time, because the stream may have been replaced."""
    return Console(stderr=True, highlight=False)


def say(text: str, *, style: str = "") -> None:
    """One message on standard error, never wrapped."""
    messages().print(Text(printable(text), style=style), soft_wrap=True)


def say_error(text: str) -> None:
    """`error: …` on standard error, the first word in red on a terminal."""
    messages().print(Text.assemble(("error:", "bold red"), " ", printable(text)), soft_wrap=True)


def printable(text: str) -> str:
    """`text` without control characters; line ends and tabs stay."""
    return _CONTROL.sub("", text)


def described_prompt(prompt: Mapping[str, Any]) -> str:
    """A prompt by its name, its declared version, and the beginning of its content's hash."""
    return f"{prompt['name']} v{prompt['version']} ({prompt['sha256']})"


def one_line(text: str, *, longest: int = 300) -> str:
    """`text` on one line, cut off after `longest` characters."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= longest else f"{flat[: longest - 1]}…"


def last_words(text: str, *, longest: int) -> str:
    """The end of `text` on one line, without what a terminal would take for an order."""
    flat = " ".join(printable(_ESCAPES.sub("", text)).split())
    return flat if len(flat) <= longest else f"…{flat[-max(1, longest - 1) :]}"


def write_json(value: Any) -> None:
    """One JSON document on standard output."""
    _write(orjson.dumps(value, option=orjson.OPT_INDENT_2))


def write_result(output: Any) -> None:
    """A workflow's output: its `text` where it has one, as Markdown on a terminal; else JSON."""
    if not isinstance(output, Mapping) or not isinstance(output.get("text"), str):
        write_json(output)
    elif sys.stdout.isatty():
        from rich.markdown import Markdown

        Console().print(Markdown(printable(output["text"])))
    else:
        # As bytes: what a pipe gets must not depend on the locale.
        _write(output["text"].encode("utf-8", "replace"))


def write_table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()) -> None:
    """A table on standard output, fitted to a terminal; anywhere else a line for each row. Columns in `numbers` end flush."""
    if sys.stdout.isatty():
        table = Table(box=None, pad_edge=False, header_style="bold")
        for head in heads:
            table.add_column(head, justify="right" if head in numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        Console(highlight=False).print(table)
        return
    lines = [list(heads), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = zip(heads, line, widths, strict=True)
        padded = (cell.rjust(width) if head in numbers else cell.ljust(width) for head, cell, width in cells)
        _write("  ".join(padded).rstrip().encode("utf-8", "replace"))


def dollars(microdollars: int) -> str:
    """`$0.0123`."""
    return f"${microdollars / 1_000_000:.4f}"


def describe_model(settings: "Settings") -> str:
    """Which model answers, and which after it."""
    from shared.config import redact_url

    if settings.gemini_api_key is None:
        return "offline, extractive (set GEMINI_API_KEY to ask Gemini)"
    where = "" if settings.gemini_base_url is None else f", at {redact_url(settings.gemini_base_url)}"
    return f"Gemini, {', then '.join(settings.models)}{where}"


def counted(number: int, noun: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(names: list[str], *, most: int = 5) -> str:
    """Names with commas in between; beyond `most` only how many more there are."""
    more = len(names) - most
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:most])} and {more} more"


def in_queue(place: Mapping[str, Any]) -> str:
    """`3 in the queue`; `about 3` where it is an estimate."""
    return f"{'' if place['exact'] else 'about '}{place['position']:,} in the queue"


def _write(data: bytes) -> None:
    typer.echo(data if data.endswith(b"\n") else data + b"\n", nl=False)
