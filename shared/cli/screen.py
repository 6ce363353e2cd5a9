"""Shows progress on standard error: a tree that moves on a terminal, lines anywhere else."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from shared.cli.output import counted, in_queue, last_words, messages, printable, say
from shared.cli.progress import Progress, StepProgress
from shared.clock import Clock

_REFRESH_SECONDS = 0.1
_MOST_ROWS_AT_THE_END = 60
_WIDTH_OF_THE_REST = 32
"""What the names of steps and their times take, mostly."""
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_MARKS = {
    "running": ("•", "cyan"),
    "waiting": ("◌", "yellow"),
    "done": ("✓", "green"),
    "skipped": ("-", "dim"),
    "failed": ("✗", "bold red"),
    "cancelled": ("-", "dim"),
}


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, entry: Mapping[str, Any]) -> None:
        """Take in and show one history entry of the workflow."""
        ...

    def write(self, news: Mapping[str, Any]) -> None:
        """Take in what a running step has written so far, and show its end where there is a place for it."""
        ...

    def queue(self, place: Mapping[str, Any]) -> None:
        """Show where the workflow stands in the queue: `{position, ahead, exact}`."""
        ...

    def notice(self, text: str) -> None:
        """Say something beside the progress."""
        ...


@asynccontextmanager
async def open_screen(clock: Clock, *, live: bool, workflow: str, console: Console | None = None) -> AsyncIterator[Screen]:
    """A screen for one workflow, on standard error unless told otherwise.

    `live` asks for the tree, which needs a terminal that can move its cursor.
    """
    console = messages() if console is None else console
    if not (live and console.is_interactive):
        yield _Lines(console, workflow)
        return
    tree = _Tree(console, clock, workflow)
    with Live(console=console, auto_refresh=False, get_renderable=tree.render) as view:
        refreshing = asyncio.create_task(_refresh(view, clock))
        try:
            yield tree
        finally:
            refreshing.cancel()
            tree.has_ended = True
            view.refresh()


async def _refresh(view: Live, clock: Clock) -> None:
    while True:
        view.refresh()
        await clock.sleep(_REFRESH_SECONDS)


class _Lines:
    def __init__(self, console: Console, workflow: str) -> None:
        self._console = console
        self._progress = Progress(workflow)

    def show(self, entry: Mapping[str, Any]) -> None:
        line = self._progress.apply(entry)
        if line is not None:
            elapsed = self._progress.elapsed_seconds(datetime.fromisoformat(entry["at"]))
            indent = "  " * (0 if entry["step"] is None else entry["step"].count("/"))
            self._console.print(Text(printable(f"{elapsed:8.2f} s  {indent}{line}")), soft_wrap=True)

    def write(self, news: Mapping[str, Any]) -> None:
        """Lines are for what has happened."""

    def queue(self, place: Mapping[str, Any]) -> None:
        self._console.print(Text(f"waiting for a free slot: {in_queue(place)}", style="dim"), soft_wrap=True)

    def notice(self, text: str) -> None:
        say(text)


class _Tree:
    def __init__(self, console: Console, clock: Clock, workflow: str) -> None:
        self._console = console
        self._clock = clock
        self._progress = Progress(workflow)
        self._place = " (MAX_CONCURRENT_PIPELINES)"
        self.has_ended = False

    def show(self, entry: Mapping[str, Any]) -> None:
        self._progress.apply(entry)

    def write(self, news: Mapping[str, Any]) -> None:
        self._progress.write(news)

    def queue(self, place: Mapping[str, Any]) -> None:
        self._place = f": {in_queue(place)}"

    def notice(self, text: str) -> None:
        self._console.print(Text(printable(text), style="yellow"), soft_wrap=True)

    def render(self) -> RenderableType:
        now = self._clock.now()
        steps = list(self._progress.in_order())
        shown, hidden = _fold(steps, room=_MOST_ROWS_AT_THE_END if self.has_ended else self._console.height - 3)
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
        for step in shown:
            table.add_row(_name(step, now), f"{step.seconds(now):.2f} s", Text(self._note(step)))
        if hidden:
            table.add_row(Text(f"  … and {hidden} more", style="dim"), "", "")
        if self._progress.started is None and not self.has_ended:
            return Group(table, Text(f"waiting for a free slot{self._place}", style="dim"))
        return table

    def _note(self, step: StepProgress) -> str:
        if step.state != "running" or not step.writing:
            return printable(step.note)
        written = f"{counted(step.length, 'character')}: "
        return written + last_words(step.writing, longest=max(20, self._console.width - _WIDTH_OF_THE_REST - len(written)))


def _name(step: StepProgress, now: datetime) -> Text:
    mark, style = _MARKS[step.state]
    if step.state == "running":
        mark = _FRAMES[int(now.timestamp() / _REFRESH_SECONDS) % len(_FRAMES)]
    name = step.id.rpartition("/")[2] if step.depth else step.id
    return Text.assemble(
        "  " * (step.depth + 1), (mark, style), " ", (name, "" if step.state == "running" else style.replace("bold ", ""))
    )


def _fold(steps: list[StepProgress], *, room: int) -> tuple[list[StepProgress], int]:
    """The steps for which there is room, and how many are left out: children that are done first, then the oldest."""
    excess = len(steps) - max(1, room)
    if excess <= 0:
        return steps, 0
    foldable = [index for index, step in enumerate(steps) if step.depth and step.state == "done"]
    foldable += [index for index, step in enumerate(steps) if not (step.depth and step.state == "done")]
    left_out = set(foldable[: excess + 1])
    return [step for index, step in enumerate(steps) if index not in left_out], len(left_out)
