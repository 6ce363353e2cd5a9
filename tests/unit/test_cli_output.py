"""What the command line shows: progress worked out from a history, on a terminal and in a pipe."""

import io
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shared.cli import output, screen
from shared.cli.output import counted, describe_model, listed, one_line, printable, say, say_error, write_result, write_table
from shared.cli.progress import Progress
from shared.cli.screen import open_screen
from shared.clock import ManualClock
from shared.config import Settings

START = datetime(2026, 1, 1, tzinfo=UTC)
STEP = st.sampled_from(["plan", "plan/0", "plan/1", "plan/1/x", "plan/@input", "draft"])
KINDS = {
    "step.dispatched": None,
    "step.completed": None,
    "step.failed": {"type": "ModelRefused", "message": "no"},
    "step.skipped": {"reason": "when"},
    "step.cancelled": None,
    "step.expanded": {"steps": 2},
    "step.late": None,
    "step.retried": {"not_before": START.isoformat(), "error": {"type": "Transient", "message": "later"}},
    "step.waiting": {"for": "approval", "name": "plan", "prompt": "Send\nit?", "until": None},
    "step.woken": {"by": "signal"},
    "step.unheard_of": None,
}


def entry(kind: str, step: str | None = None, *, after: float = 0, attempt: int | None = 1, data: Any = None) -> dict[str, Any]:
    at = (START + timedelta(seconds=after)).isoformat()
    return {"seq": 1, "at": at, "type": kind, "step": step, "attempt": attempt, "data": data}


def in_seconds(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat()


def told(*entries: Mapping[str, Any]) -> list[str | None]:
    progress = Progress()
    return [progress.apply(one) for one in entries]


def test_a_step_is_told_as_it_starts_and_ends_with_the_time_it_took() -> None:
    lines = told(entry("step.dispatched", "plan"), entry("step.completed", "plan", after=2.5))

    assert lines == ["plan: started", "plan: done in 2.50 s"]


def test_a_retry_is_told_with_its_reason_and_its_start_is_not_told_again() -> None:
    error = {"type": "ModelUnavailable", "message": "the model\ndid not answer"}
    lines = told(
        entry("step.dispatched", "plan"),
        entry("step.retried", "plan", after=1, attempt=2, data={"not_before": in_seconds(3), "error": error}),
        entry("step.dispatched", "plan", after=1, attempt=2),
    )

    assert lines[1:] == ["plan: attempt 1 failed (ModelUnavailable: the model did not answer); attempt 2 in 2.0 s", None]


def test_a_lost_attempt_is_told_as_one_of_which_nothing_was_heard() -> None:
    lines = told(
        entry("step.dispatched", "plan"),
        entry("step.lease_expired", "plan", after=900, attempt=2, data={"not_before": in_seconds(900), "error": None}),
    )

    assert lines[1] == "plan: attempt 1 failed (nothing was heard of it); attempt 2 in 0.0 s"


def test_a_step_without_room_in_its_quota_is_told_to_wait() -> None:
    lines = told(
        entry("step.dispatched", "plan"), entry("step.deferred", "plan", data={"not_before": in_seconds(90), "error": None})
    )

    assert lines[1] == "plan: waits for 90.0 s, a quota is used up"


def test_a_recovered_step_is_told_to_start_again() -> None:
    assert told(entry("step.dispatched", "plan"), entry("step.dispatched", "plan"))[1] == "plan: starts again"


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("step.failed", {"type": "ModelRefused", "message": "bad key"}, "plan: failed after 1.00 s: ModelRefused: bad key"),
        ("step.skipped", {"reason": "when"}, "plan: skipped: its condition does not hold"),
        ("step.skipped", {"reason": "debate mode is off"}, "plan: skipped: debate mode is off"),
        ("step.expanded", {"steps": 1}, "plan: goes on in 1 step"),
        ("step.late", None, "plan: what attempt 1 told came too late: only what it used counts"),
        ("step.cancelled", None, "plan: cancelled: its nested workflow failed"),
        ("step.unheard_of", None, None),
    ],
)
def test_what_becomes_of_a_step_is_told(kind: str, data: Any, line: str | None) -> None:
    assert told(entry("step.dispatched", "plan"), entry(kind, "plan", after=1, data=data))[1] == line


def test_the_values_of_a_nested_workflow_are_told_of_only_when_there_is_none() -> None:
    error = {"type": "InputError", "message": "no value"}
    lines = told(
        entry("step.dispatched", "sub/@input"),
        entry("step.completed", "sub/@input"),
        entry("step.dispatched", "sub/@output"),
        entry("step.failed", "sub/@output", data=error),
    )
    assert lines == [None, None, None, "sub/@output: failed after 0.00 s: InputError: no value"]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            {"for": "approval", "name": "ask", "prompt": "Send\nit?", "until": None},
            "ask: waits for an approval: agent-team signal wf_7 ask --approve (or --reject): Send it?",
        ),
        (
            {"for": "signal", "name": "paid", "until": "2026-02-01T01:30:00+01:00"},
            "ask: waits for a signal until 2026-02-01T00:30:00Z: agent-team signal wf_7 paid",
        ),
        ({"for": "time", "name": "ask", "until": "2026-02-01T00:00:00+00:00"}, "ask: waits until 2026-02-01T00:00:00Z"),
    ],
)
def test_a_wait_is_told_with_the_command_that_ends_it(data: dict[str, Any], line: str) -> None:
    progress = Progress("wf_7")
    progress.apply(entry("step.dispatched", "ask"))
    assert progress.apply(entry("step.waiting", "ask", data=data)) == line


def test_the_link_to_an_approval_is_told_where_the_gateway_gives_it_and_not_drawn_again_and_again() -> None:
    progress, data = Progress("wf_7"), {"for": "approval", "name": "ask", "prompt": "Send it?", "until": None}
    link = "https://team.example.com/approve/abc.def"
    line = progress.apply({**entry("step.waiting", "ask", data=data), "links": {"approve": link}})
    assert line == (
        "ask: waits for an approval: agent-team signal wf_7 ask --approve (or --reject): Send it?; "
        f"whoever has this link can decide: {link}"
    )
    assert link not in progress.steps["ask"].note
    assert progress.steps["ask"].state == "waiting"
    assert progress.apply(entry("step.dispatched", "ask", after=5)) is None
    assert progress.apply(entry("step.completed", "ask", after=5)) == "ask: done in 5.00 s"


def test_who_decided_is_told_and_a_second_slot_is_not_waited_for_aloud() -> None:
    said = {"name": "ask", "decision": "reject", "by": "ann", "comment": "too\nlong"}
    lines = told(
        entry("workflow.requested"),
        entry("workflow.started"),
        entry("step.dispatched", "ask"),
        entry("workflow.signalled", data=said),
        entry("step.woken", "ask", data={"by": "time"}),
        entry("workflow.started", after=90),
    )
    assert lines[3:] == ["ask: reject by ann: too long", "ask: waits no longer", None]


def test_waiting_for_a_slot_is_told_once_it_is_over_and_only_when_it_took_long() -> None:
    assert told(entry("workflow.requested"), entry("workflow.started", after=4))[1] == "waited 4.0 s for a free slot"
    assert told(entry("workflow.requested"), entry("workflow.started"))[1] is None


def test_the_end_of_a_workflow_ends_every_step_that_still_ran() -> None:
    progress = Progress()
    for one in (entry("step.dispatched", "a"), entry("step.dispatched", "b"), entry("step.completed", "a")):
        progress.apply(one)
    progress.apply(entry("workflow.failed", after=2, data={"type": "BudgetExceeded", "message": "spent"}))

    assert {step.id: step.state for step in progress.steps.values()} == {"a": "done", "b": "cancelled"}


def test_children_stand_below_their_parent_whenever_they_began() -> None:
    progress = Progress()
    for step in ("plan", "draft", "plan/0", "plan/1", "plan/0/x"):
        progress.apply(entry("step.dispatched", step))

    assert [step.id for step in progress.in_order()] == ["plan", "plan/0", "plan/0/x", "plan/1", "draft"]


@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), STEP), max_size=30))
def test_every_history_can_be_shown_and_time_never_runs_backwards(history: list[tuple[str, str]]) -> None:
    progress = Progress()
    for kind, step in history:
        line = progress.apply(entry(kind, step, data=KINDS[kind]))
        assert line is None or "\n" not in line

    assert all(step.seconds(START - timedelta(seconds=5)) >= 0 for step in progress.steps.values())


def test_control_characters_never_reach_a_terminal() -> None:
    assert printable("a\x1b[31mb\x07\x9b\r\n\tc") == "a[31mb\n\tc"


@given(st.text(max_size=400))
def test_one_line_is_one_line_of_limited_length(text: str) -> None:
    line = one_line(text, longest=50)

    assert len(line) <= 50
    assert len(line.splitlines()) <= 1


def test_numbers_and_lists_read_as_people_write_them() -> None:
    assert (counted(1, "step"), counted(1200, "step")) == ("1 step", "1,200 steps")
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(7)]) == "0, 1, 2, 3, 4 and 2 more"


def test_messages_go_to_standard_error_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    say("x" * 500)
    say_error("y" * 500)

    assert capsys.readouterr() == ("", f"{'x' * 500}\nerror: {'y' * 500}\n")


def test_the_model_is_named() -> None:
    assert describe_model(Settings()).startswith("offline, extractive")
    chain = "Gemini, gemini-2.5-pro, then gemini-1.5-pro, then gemini-1.5-flash"
    assert describe_model(Settings.model_validate({"gemini_api_key": "k" * 39})) == chain
    elsewhere = {"gemini_api_key": "k" * 39, "gemini_base_url": "http://user:secret@127.0.0.1:9/"}
    assert describe_model(Settings.model_validate(elsewhere)) == f"{chain}, at http://127.0.0.1:9/"


@pytest.mark.parametrize(
    ("result", "written"),
    [
        ({"text": "# Title\x1b", "other": 1}, "# Title\x1b\n"),
        ({"text": 3}, '{\n  "text": 3\n}\n'),
        (None, "null\n"),
        ([1], "[\n  1\n]\n"),
    ],
)
def test_a_result_in_a_pipe_is_its_text_or_json(capfdbinary: pytest.CaptureFixture[bytes], result: Any, written: str) -> None:
    write_result(result)

    assert capfdbinary.readouterr().out == written.encode()


ROWS = [("draft", "1,200"), ("a\x1b[31m\nb", "7")]


def test_a_table_in_a_pipe_is_aligned_lines(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("step", "tokens"), ROWS, numbers={"tokens"})
    assert capsys.readouterr().out == "step     tokens\ndraft     1,200\na[31m b       7\n"


def test_a_table_without_rows_is_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("step", "tokens"), [])
    assert capsys.readouterr().out == "step  tokens\n"


def test_a_table_on_a_terminal_is_fitted_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    write_table(("step", "tokens"), [*ROWS, ("x" * 30, "1")], numbers={"tokens"})
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 4
    assert {len(line) for line in lines[1:]} == {20}
    assert "\x1b[31m" not in terminal.getvalue()


def test_a_result_on_a_terminal_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")

    write_result({"text": "# Title\n\n- **one**\x1b]0;owned\x07"})

    assert "#" not in terminal.getvalue()
    assert " • " in terminal.getvalue()
    assert "\x07" not in terminal.getvalue()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 12 rows in place of standard error."""
    screen_of = io.StringIO()
    console = Console(file=screen_of, force_terminal=True, width=100, height=12, color_system=None, _environ={"TERM": "xterm"})
    monkeypatch.setattr(screen, "messages", lambda: console)
    return screen_of


def last_picture(terminal: io.StringIO) -> list[str]:
    # Every picture begins where the one before it was erased.
    return [line.rstrip() for line in terminal.getvalue().rpartition("\x1b[2K")[2].splitlines() if line.strip()]


async def test_a_terminal_shows_a_tree_with_times_and_reasons(terminal: io.StringIO) -> None:
    clock = ManualClock(START)
    async with open_screen(clock, live=True, workflow="wf_1") as shown:
        for one in (
            entry("workflow.started"),
            entry("step.dispatched", "plan"),
            entry("step.expanded", "plan", data={"steps": 2}),
            entry("step.dispatched", "plan/0"),
            entry("step.completed", "plan/0", after=0.5),
            entry("step.dispatched", "plan/1"),
        ):
            shown.show(one)
        await clock.advance(1)
        running = last_picture(terminal)
        shown.show(entry("step.failed", "plan/1", after=2, data={"type": "ModelRefused", "message": "bad\x1b[red]key"}))
        shown.show(entry("workflow.failed", after=2))
    ended = last_picture(terminal)

    assert [line.split()[1] for line in running] == ["plan", "0", "1"]
    assert running[0].endswith("1.00 s waits for 2 steps")
    assert "✓ 0" in running[1]
    assert "✗ 1" in ended[2]
    assert ended[2].endswith("2.00 s ModelRefused: bad[red]key")


async def test_a_queued_workflow_is_shown_to_wait_for_a_slot(terminal: io.StringIO) -> None:
    clock = ManualClock(START)
    async with open_screen(clock, live=True, workflow="wf_1") as shown:
        shown.show(entry("workflow.requested"))
        await clock.advance(1)
        assert last_picture(terminal) == ["waiting for a free slot (MAX_CONCURRENT_PIPELINES)"]


async def test_more_steps_than_rows_are_folded_the_done_ones_first(terminal: io.StringIO) -> None:
    clock = ManualClock(START)
    async with open_screen(clock, live=True, workflow="wf_1") as shown:
        shown.show(entry("workflow.started"))
        shown.show(entry("step.dispatched", "plan"))
        for number in range(40):
            shown.show(entry("step.dispatched", f"plan/{number}"))
            if number < 37:
                shown.show(entry("step.completed", f"plan/{number}"))
        await clock.advance(1)
        folded = last_picture(terminal)
    ended = last_picture(terminal)

    assert len(folded) <= 12
    assert folded[0].split()[1] == "plan"
    assert [line.split()[1] for line in folded[:-1]][-3:] == ["37", "38", "39"]
    assert folded[-1] == f"  … and {41 - len(folded) + 1} more"
    assert len(ended) >= 41


def test_more_running_steps_than_rows_lose_the_oldest() -> None:
    progress = Progress()
    for number in range(9):
        progress.apply(entry("step.dispatched", f"s{number}"))

    shown, hidden = screen._fold(list(progress.in_order()), room=4)

    assert ([step.id for step in shown], hidden) == (["s6", "s7", "s8"], 6)


async def test_without_a_terminal_progress_is_lines_indented_below_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = io.StringIO()
    monkeypatch.setattr(screen, "messages", lambda: Console(file=pipe, width=20))
    async with open_screen(ManualClock(START), live=True, workflow="wf_1") as shown:
        shown.show(entry("workflow.requested"))
        shown.show(entry("step.dispatched", "plan", after=1))
        shown.show(entry("step.dispatched", "plan/0", after=2))

    assert pipe.getvalue().splitlines() == ["    1.00 s  plan: started", "    2.00 s    plan/0: started"]


def test_messages_are_made_for_the_stream_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    output.messages().print("now")

    assert capsys.readouterr().err == "now\n"
