"""How events are read from bytes, and how what a step is writing is shown."""

import io
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shared.cli.output import last_words
from shared.cli.screen import open_screen
from shared.cli.sse import MAX_LINE_BYTES, Event, EventReader
from shared.clock import ManualClock

STREAM = (
    ': hello\n\nevent: step.completed\nid: 7\ndata: {"text": "one\u2028two"}\n\nretry: 5\n\n'
    'event: progress\ndata:{"step":\ndata: "a"}\n\ndata: {}\n\nevent: nothing\n\nevent: end\ndata: {}\n\nevent: cut off\ndata: {"'
)
EVENTS = [
    Event("step.completed", 7, {"text": "one\u2028two"}),
    Event("progress", None, {"step": "a"}),
    Event("message", None, {}),
    Event("end", None, {}),
]


@given(cuts=st.lists(st.integers(0, len(STREAM.encode()))), newline=st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int], newline: str) -> None:
    data = STREAM.replace("\n", newline).encode()
    places = [0, *sorted(cuts), len(data)]
    reader = EventReader()
    found = [event for start, end in itertools.pairwise(places) for event in reader.feed(data[start:end])]
    assert found == EVENTS


@pytest.mark.parametrize(
    "data",
    [
        b"data: [1]\n\n",
        b"data: \n\n",
        b"id: x\ndata: {}\n\n",
        b"id: 1234567890123456789\ndata: {}\n\n",
        b"data: " + b"x" * MAX_LINE_BYTES,
    ],
    ids=["no object", "nothing", "no number", "a long number", "a line without end"],
)
def test_what_is_no_event_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whoever reads it tells all of them as one
        list(EventReader().feed(data))


def test_an_event_of_lines_without_end_is_refused() -> None:
    reader = EventReader()
    line = b"data: " + b"x" * (MAX_LINE_BYTES // 2) + b"\n"
    assert list(reader.feed(line)) == []
    with pytest.raises(ValueError, match="without end"):
        list(reader.feed(line * 2))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one\n\n  two\tthree", "one two three"),
        ("\x1b[2J\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after \x1b]8;;http://x\x1b\\link", "after link"),
        ("\x9b31mc1 \x07bell \x00nul \x7fdel", "c1 bell nul del"),
        ("\u202etxt.exe", "txt.exe"),
        ("x" * 50, "…" + "x" * 19),
        ("\x1b]0;never ended", ""),
    ],
)
def test_the_end_of_a_text_is_shown_as_text(text: str, shown: str) -> None:
    assert last_words(text, longest=20) == shown


def entry(seq: int, kind: str, step: str | None = None, **more: Any) -> dict[str, Any]:
    return {"seq": seq, "at": f"2026-01-01T00:00:0{seq}Z", "type": kind, "step": step, "attempt": 1, "data": None, **more}


async def test_the_tree_shows_the_growing_text_of_running_steps_and_of_no_others() -> None:
    seen = io.StringIO()
    console = Console(file=seen, force_terminal=True, width=100, height=30)
    clock = ManualClock()
    async with open_screen(clock, live=True, workflow="wf_1", console=console) as screen:
        screen.show(entry(1, "workflow.requested"))
        screen.show(entry(2, "workflow.started"))
        screen.show(entry(3, "step.dispatched", "plan"))
        screen.write(
            {"step": "plan", "attempt": 1, "text": "The \x1b[31mferry\x1b]0;x\x07 is\nlate " + "z" * 200 + " end", "length": 1215}
        )
        screen.write({"step": "unknown", "attempt": 1, "text": "nobody", "length": 6})
        await clock.advance(0.2)
        running = seen.getvalue()
        screen.notice("the gateway is \x1b[5maway")
        screen.show(entry(4, "step.completed", "plan"))
        await clock.advance(0.2)
    finished = seen.getvalue()[len(running) :]
    assert "1,215 characters: …" in running
    assert "z end" in running
    assert "\x1b[31mferry" not in running
    assert "nobody" not in running
    assert "the gateway is [5maway" in finished
    assert "✓" in finished
    assert "characters: " not in finished.partition("✓")[2]


async def test_a_second_attempt_begins_with_no_text() -> None:
    seen = io.StringIO()
    clock = ManualClock()
    async with open_screen(clock, live=True, workflow="wf_1", console=Console(file=seen, force_terminal=True, width=100)) as screen:
        screen.show(entry(1, "workflow.started"))
        screen.show(entry(2, "step.dispatched", "plan"))
        screen.write({"step": "plan", "attempt": 1, "text": "the first", "length": 9})
        failed = {"error": {"type": "Odd", "message": "no"}, "not_before": "2026-01-01T00:00:04Z"}
        screen.show(entry(3, "step.retried", "plan", data=failed, attempt=2))
        await clock.advance(0.2)
        before = len(seen.getvalue())
        screen.show(entry(4, "step.dispatched", "plan", attempt=2))
        await clock.advance(0.2)
    assert "the first" not in seen.getvalue()[before:]


async def test_lines_take_no_notice_of_what_is_being_written() -> None:
    seen = io.StringIO()
    async with open_screen(ManualClock(), live=True, workflow="wf_1", console=Console(file=seen)) as screen:
        screen.show(entry(1, "step.dispatched", "plan"))
        screen.write({"step": "plan", "attempt": 1, "text": "x", "length": 1})
    assert seen.getvalue() == "    0.00 s  plan: started\n"
