import asyncio
import gc
import io
import json
import logging
import shutil
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError, StoreUnavailable
from shared.telemetry import TraceContext, bind_task, configure_logging, describe_error, redact_values, use_trace
from shared.telemetry.logs import JsonFormatter

log = logging.getLogger("tests.logs")


class Lines(io.StringIO):
    """A stream that notes each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def write(self, text: str) -> int:
        self.writes.append(text)
        return len(text)

    def read_all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.writes]

    @property
    def last(self) -> dict[str, Any]:
        return dict(json.loads(self.writes[-1]))


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def lines() -> Lines:
    stream = Lines()
    configure_logging("debug", stream=stream)
    return stream


@pytest.fixture
def cloud() -> Lines:
    stream = Lines()
    configure_logging("debug", stream=stream, cloud=True, project="acme")
    return stream


def fail(error: Exception) -> None:
    raise error


def test_a_record_is_one_write_of_one_line(lines: Lines) -> None:
    log.info("two\nlines, ünïcode")
    assert len(lines.writes) == 1
    assert lines.writes[0].count("\n") == 1
    assert lines.writes[0].endswith("}\n")
    assert lines.last["msg"] == "two\nlines, ünïcode"


def test_a_line_says_when_where_and_how_bad(lines: Lines) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    log.warning("%s left", 3)
    line = lines.last
    assert {"level": "warn", "msg": "3 left", "logger": "tests.logs"}.items() <= line.items()
    assert isinstance(line["time"], int)
    assert before < datetime.fromtimestamp(line["time"] / 1000, UTC) < datetime.now(UTC) + timedelta(seconds=1)
    assert line.keys() == {"level", "time", "msg", "logger"}


@pytest.mark.parametrize(
    ("number", "level", "severity"),
    [
        (logging.DEBUG, "debug", "DEBUG"),
        (logging.INFO, "info", "INFO"),
        (25, "info", "INFO"),
        (logging.WARNING, "warn", "WARNING"),
        (logging.ERROR, "error", "ERROR"),
        (logging.CRITICAL, "error", "CRITICAL"),
        (60, "error", "CRITICAL"),
    ],
)
def test_every_level_has_a_word_that_operators_know(cloud: Lines, number: int, level: str, severity: str) -> None:
    log.log(number, "x")
    assert (cloud.last["level"], cloud.last["severity"]) == (level, severity)


def test_a_level_below_all_is_debug() -> None:
    record = logging.makeLogRecord({"levelno": 5, "msg": "x", "name": "n"})
    assert json.loads(JsonFormatter().format(record))["level"] == "debug"


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), ("info", 3), ("warn", 2), ("error", 1)])
def test_the_level_is_the_least_that_is_written(level: str, shown: int) -> None:
    stream = Lines()
    configure_logging(level, stream=stream)
    for write in (log.debug, log.info, log.warning, log.error):
        write("x")
    assert len(stream.writes) == shown


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="'loud' is unknown; use one of debug, info, warn, error"):
        configure_logging("loud")


async def in_a_task(work: Callable[[], None], **fields: Any) -> None:
    """Run `work` in a task of its own with these fields bound."""

    async def bound() -> None:
        bind_task(**fields)
        work()

    await asyncio.create_task(bound())


async def test_bound_and_extra_fields_stand_beside_the_message(lines: Lines) -> None:
    def work() -> None:
        bind_task(attempt=2, step="write")
        log.info("done", extra={"duration": 12.5, "status": "SUCCESS", "attempt": 3, "agent": "writer"})

    await in_a_task(work, workflowId="wf_1", step="plan")
    log.info("outside")
    inside, outside = lines.read_all()
    assert {
        **{"workflowId": "wf_1", "step": "write", "attempt": 3},
        **{"duration": 12.5, "status": "SUCCESS", "agent": "writer"},
    }.items() <= inside.items()
    assert "workflowId" not in outside


async def test_bound_fields_follow_the_task_and_those_it_starts(lines: Lines) -> None:
    async def work(name: str) -> None:
        bind_task(step=name)
        await asyncio.sleep(0)
        log.info(name)

    async def all_of_it() -> None:
        bind_task(workflowId="wf_1")
        await asyncio.gather(*(work(name) for name in "abc"))

    await asyncio.create_task(all_of_it())
    assert [(line["msg"], line["step"], line["workflowId"]) for line in lines.read_all()] == [
        (name, name, "wf_1") for name in "abc"
    ]


async def test_no_field_can_replace_what_every_line_has(lines: Lines) -> None:
    def work() -> None:
        log.info("real", extra={"level": "none", "time": "never"})

    await in_a_task(work, level="none", time="never", msg="other", logger="x")
    assert (lines.last["level"], lines.last["msg"], lines.last["logger"]) == ("info", "real", "tests.logs")
    assert isinstance(lines.last["time"], int)


def write_what_an_operator_looks_for() -> None:
    log.info("workflow done", extra={"workflowId": "wf_slow", "duration": 5000.5, "status": "SUCCESS"})
    log.info("workflow done", extra={"workflowId": "wf_fast", "duration": 5000, "status": "SUCCESS"})
    log.info("workflow done", extra={"workflowId": "wf_text", "duration": "9000 ms"})
    log.info("workflow done", extra={"workflowId": "wf_type", "duration": timedelta(hours=1)})
    log.error("call failed: rate limit of gemini-2.5-pro", extra={"workflowId": "wf_quota"})
    log.warning("rate limit near", extra={"workflowId": "wf_near"})
    log.critical({"not": "a string"}, extra={"workflowId": "wf_object"})


@pytest.mark.parametrize(
    ("query", "predicate", "found"),
    [
        ('select(.level=="error")', lambda line: line["level"] == "error", ["wf_quota", "wf_object"]),
        ("select(.duration > 5000)", lambda line: line.get("duration", 0) > 5000, ["wf_slow"]),
        ('select(.msg|contains("rate limit"))', lambda line: "rate limit" in line["msg"], ["wf_quota", "wf_near"]),
    ],
)
def test_the_operators_queries_find_what_they_should(
    lines: Lines, query: str, predicate: Callable[[Any], bool], found: list[str]
) -> None:
    write_what_an_operator_looks_for()
    assert [line["workflowId"] for line in lines.read_all() if predicate(line)] == found
    if (jq := shutil.which("jq")) is not None:
        answer = subprocess.run(
            [jq, "-r", f"{query} | .workflowId"],
            input="".join(lines.writes),
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        assert answer.stdout.split() == found


def test_an_error_of_ours_shows_its_type_its_message_and_where_it_came_from(lines: Lines) -> None:
    try:
        fail(StoreUnavailable("the database does not answer; check DATABASE_URL"))
    except StoreUnavailable:
        log.exception("step failed")
    error = lines.last["error"]
    assert (error["type"], error["message"]) == ("StoreUnavailable", "the database does not answer; check DATABASE_URL")
    assert [frame.rsplit(" ")[-1] for frame in error["stack"]] == [
        "test_an_error_of_ours_shows_its_type_its_message_and_where_it_came_from",
        "fail",
    ]
    assert all(str(Path(__file__)) in frame for frame in error["stack"])


def test_an_unknown_error_shows_no_word_of_what_it_says(lines: Lines) -> None:
    try:
        try:
            fail(json.JSONDecodeError("payload", "payload", 0))
        except ValueError as cause:
            raise RuntimeError("payload") from cause
    except RuntimeError:
        log.exception("step failed")
    assert "payload" not in lines.writes[-1]
    error = lines.last["error"]
    assert (error["type"], error["causes"]) == ("RuntimeError", ["json.decoder.JSONDecodeError"])
    assert "message" not in error


def test_causes_are_shown_as_python_would_show_them() -> None:
    def causes(raiser: Callable[[], None]) -> list[str]:
        with pytest.raises(KeyError) as caught:
            raiser()
        return list(describe_error(caught.value).get("causes", []))

    def during() -> None:
        try:
            fail(ValueError())
        except ValueError:
            raise KeyError from TypeError()

    def hidden() -> None:
        try:
            fail(ValueError())
        except ValueError:
            raise KeyError from None

    def implicit() -> None:
        try:
            fail(ValueError())
        except ValueError:
            fail(KeyError())

    assert (causes(during), causes(hidden), causes(implicit)) == (["TypeError"], [], ["ValueError"])


def test_causes_that_go_round_in_a_circle_end() -> None:
    one, other = ValueError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert len(describe_error(one)["causes"]) == 5


def test_a_group_shows_the_errors_in_it() -> None:
    group = ExceptionGroup("payload", [StoreUnavailable("down"), ValueError("payload")])
    described = describe_error(group)
    assert [(inner["type"], inner.get("message")) for inner in described["errors"]] == [
        ("StoreUnavailable", "down"),
        ("ValueError", None),
    ]
    assert "payload" not in str(described)


def test_a_deep_stack_is_cut_to_its_innermost_frames() -> None:
    def recurse() -> None:
        recurse()

    with pytest.raises(RecursionError) as caught:
        recurse()
    assert len(describe_error(caught.value)["stack"]) == 30


def test_exception_info_without_an_exception_is_no_error(lines: Lines) -> None:
    log.error("nothing raised", exc_info=True)
    assert "error" not in lines.last


def test_the_cloud_gets_severity_message_and_trace(cloud: Lines) -> None:
    trace = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", sampled=False)
    with use_trace(trace):
        log.warning("careful")
    log.info("no trace")
    traced, untraced = cloud.read_all()
    assert {
        "severity": "WARNING",
        "message": "careful",
        "msg": "careful",
        "level": "warn",
        "logging.googleapis.com/trace": "projects/acme/traces/4bf92f3577b34da6a3ce929d0e0e4736",
        "logging.googleapis.com/spanId": "00f067aa0ba902b7",
        "logging.googleapis.com/trace_sampled": False,
    }.items() <= traced.items()
    assert not any(key.startswith("logging.googleapis.com") for key in untraced)


def test_without_a_project_the_trace_is_named_alone() -> None:
    stream = Lines()
    configure_logging("info", stream=stream, cloud=True)
    trace = TraceContext.new()
    with use_trace(trace):
        log.info("x")
    assert stream.last["logging.googleapis.com/trace"] == trace.trace_id


def test_outside_the_cloud_there_are_no_cloud_fields(lines: Lines) -> None:
    with use_trace(TraceContext.new()):
        log.info("x")
    assert lines.last.keys() == {"level", "time", "msg", "logger"}


async def test_no_secret_reaches_a_line(lines: Lines) -> None:
    redact_values("hunter2-hunter2")

    def work() -> None:
        try:
            fail(StoreUnavailable("no answer from postgresql://u:pw-in-url@db with hunter2-hunter2"))
        except StoreUnavailable:
            log.exception("sent hunter2-hunter2 as %s", "Bearer abc.def", extra={"headers": {"authorization": "x-secret"}})

    await in_a_task(work, apiKey="bound", note="hunter2-hunter2")
    line = lines.writes[-1]
    for secret in ("hunter2-hunter2", "bound", "abc.def", "x-secret", "pw-in-url"):
        assert secret not in line
    assert lines.last["apiKey"] == lines.last["note"] == "[redacted]"


@dataclass
class Payload:
    text: str


def test_objects_are_named_by_type_and_not_shown(lines: Lines) -> None:
    log.info(
        "x",
        extra={
            "payload": Payload("private"),
            "error_": ValueError("private"),
            "path": Path("a/b"),
            "at": datetime(2026, 1, 1, tzinfo=UTC),
        },
    )
    assert "private" not in lines.writes[-1]
    assert {
        "payload": "<Payload>",
        "error_": "<ValueError>",
        "path": "a/b",
        "at": "2026-01-01T00:00:00Z",
    }.items() <= lines.last.items()


def test_what_json_cannot_hold_loses_a_field_and_not_the_line() -> None:
    # Straight to the handler: what the test run itself captures has to be text that it can pass on.
    lines = Lines()
    handler = configure_logging("info", stream=lines)

    def say(message: str, extra: dict[str, Any]) -> None:
        handler.handle(log.makeRecord("n", logging.INFO, __file__, 1, message, (), None, extra=extra))

    endless: list[Any] = []
    endless.append(endless)
    say("lone \ud800 surrogate", {"big": 2**70, "small": 7, "ratio": 0.5, "flag": True, "items": [2**70], "key\ud800": None})
    assert {
        **{"msg": "lone \\ud800 surrogate", "big": str(2**70), "small": 7},
        **{"ratio": 0.5, "flag": True, "items": "<list>", "key\\ud800": None},
    }.items() <= lines.last.items()
    say("endless", {"items": endless, "not_a_number": float("nan"), "keys": {1: "a", (1, 2): "b"}})
    assert lines.last["msg"] == "endless"


def test_arguments_that_do_not_fit_lose_the_arguments_and_not_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    handler = configure_logging("info", stream=lines)
    handler.handle(log.makeRecord("n", logging.INFO, __file__, 1, "%d steps of %s", ("private",), None))
    assert lines.last["msg"] == "%d steps of %s (logged with arguments that don't fit)"
    assert capsys.readouterr() == ("", "")


@given(
    st.text(), st.dictionaries(st.text(), st.recursive(st.none() | st.floats() | st.integers() | st.text(), st.lists, max_leaves=5))
)
def test_whatever_is_logged_is_one_line_of_json(message: str, fields: dict[str, Any]) -> None:
    record = logging.makeLogRecord({"name": "n", "msg": message, "args": (), "levelno": logging.INFO, "created": 1.0})
    for key, value in fields.items():
        record.__dict__.setdefault(key, value)
    line = JsonFormatter(cloud=True).format(record)
    assert "\n" not in line
    assert json.loads(line)["level"] == "info"


def test_configuring_again_replaces_what_was_set_up_and_leaves_other_handlers(lines: Lines) -> None:
    other = logging.NullHandler()
    logging.getLogger().addHandler(other)
    second = Lines()
    handler = configure_logging("info", stream=second)
    log.info("x")
    assert (len(lines.writes), len(second.writes)) == (0, 1)
    assert other in logging.getLogger().handlers
    assert handler in logging.getLogger().handlers


def test_logs_go_to_standard_error_unless_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    log.info("x")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["msg"] == "x"


async def test_the_text_of_an_exception_that_nobody_waited_for_is_not_shown(lines: Lines) -> None:
    async def work() -> None:
        raise ValueError("a private text")

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    del task
    gc.collect()
    line = lines.last
    assert (line["logger"], line["level"], line["msg"]) == ("asyncio", "error", "Task exception was never retrieved")
    assert line["error"]["type"] == "ValueError"
    assert "private" not in "".join(lines.writes)


def test_libraries_that_write_whole_requests_stay_quiet(lines: Lines) -> None:
    logging.getLogger("httpx").info("POST https://example.com")
    logging.getLogger("httpcore.http11").debug("send_request_headers")
    assert lines.writes == []
    logging.getLogger("httpx").warning("x")
    assert len(lines.writes) == 1


def test_formatting_a_line_costs_next_to_nothing() -> None:
    formatter = JsonFormatter(cloud=True, project="acme")
    fields = {"workflowId": "wf_1", "step": "plan", "attempt": 1, "duration": 12.5, "status": "SUCCESS"}
    record = log.makeRecord("n", logging.INFO, __file__, 1, "step %s done", ("plan",), None, extra=fields)
    with use_trace(TraceContext.new()):
        # Measured at 3 µs; the limit leaves room for a busy machine and for being traced by a coverage tool.
        best = min(timeit.repeat(lambda: formatter.format(record), number=200, repeat=20)) / 200
    assert best < (150e-6 if sys.gettrace() is not None else 15e-6)
