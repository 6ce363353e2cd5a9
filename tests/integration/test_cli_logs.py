"""`agent-team logs`: one workflow's lines of all functions, from Cloud Logging and from the local platform's log."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import orjson
import pytest
import pytest_asyncio
from typer.testing import CliRunner, Result

from shared import ids
from shared.cli import app as cli_app
from shared.cli import cloud_logs
from shared.cli.cloud_logs import CloudLog
from shared.cli.local_logs import lines
from shared.cli.log_lines import Line, as_json, told
from shared.clock import ManualClock
from shared.errors import AgentTeamError, ConfigurationError, HostUnavailable
from shared.local.home import LOG_FILE
from shared.telemetry import configure_logging
from tests.support.cloud_logging import CloudLogging, cloud_logging

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKFLOW, OTHER = ids.workflow_id(START), ids.workflow_id(START)
Run = Callable[..., Result]


@pytest_asyncio.fixture
async def cloud() -> AsyncIterator[CloudLogging]:
    async with cloud_logging() as double:
        yield double


def _log(cloud: CloudLogging, clock: ManualClock) -> CloudLog:
    return CloudLog("acme", clock, channel=grpc.aio.insecure_channel(cloud.address))


def _fill(cloud: CloudLogging, count: int) -> None:
    for n in range(count):
        about = {"workflowId": WORKFLOW, "msg": f"line {n}", "message": f"line {n}", "level": "info", "step": "draft"}
        cloud.add(START + timedelta(milliseconds=n), "writer", f"id-{n:05d}", **about)


async def _all(log: CloudLog, *, follow: bool = False) -> list[Line]:
    return [line async for line in log.lines(WORKFLOW, follow=follow)]


async def test_the_lines_of_all_functions_come_in_the_order_of_their_time(cloud: CloudLogging) -> None:
    cloud.add(
        START + timedelta(seconds=2),
        "critic",
        "c",
        "ERROR",
        workflowId=WORKFLOW,
        level="error",
        msg="step failed",
        attempt=2,
        step="judge",
    )
    cloud.add(
        START + timedelta(seconds=1),
        "writer",
        "b",
        workflowId=WORKFLOW,
        level="info",
        msg="step completed",
        duration=1234.5,
        step="draft",
    )
    cloud.add(START, "gateway", "a", workflowId=WORKFLOW, level="info", msg="workflow requested")
    cloud.add(START, "gateway", "d", workflowId=OTHER, level="info", msg="workflow requested")
    cloud.add(START - timedelta(hours=1), "gateway", "e", workflowId=WORKFLOW, msg="before it was requested")
    found = await _all(_log(cloud, ManualClock(START)))
    assert [told(line) for line in found] == [
        ("2026-01-01 12:00:00.000  gateway       info   -                 workflow requested", ""),
        ("2026-01-01 12:00:01.000  writer        info   draft             step completed [1,234 ms]", ""),
        ("2026-01-01 12:00:02.000  critic        error  judge #2          step failed", "red"),
    ]
    assert as_json(found[2]) | {"at": ""} == {
        "at": "", "function": "critic", "level": "error", "msg": "step failed", "attempt": 2, "step": "judge",
        "workflowId": WORKFLOW,
    }  # fmt: skip
    (asked,) = cloud.asked
    assert list(asked.resource_names) == ["projects/acme"]


async def test_every_page_is_asked_for_and_not_without_end(cloud: CloudLogging, monkeypatch: pytest.MonkeyPatch) -> None:
    _fill(cloud, 25)
    cloud.page_size = 10
    assert [line.message for line in await _all(_log(cloud, ManualClock(START)))] == [f"line {n}" for n in range(25)]
    assert len(cloud.asked) == 3
    cloud.asked.clear()
    monkeypatch.setattr(cloud_logs, "MOST_LINES", 12)
    monkeypatch.setattr(cloud_logs, "_PAGE", 3)
    assert len(await _all(_log(cloud, ManualClock(START)))) == 12
    assert len(cloud.asked) == 5, "a page more than what is shown: some of it may have been seen before"


async def test_whoever_follows_sees_what_arrives_late_once_and_the_end(cloud: CloudLogging) -> None:
    clock, found = ManualClock(START), list[str]()

    async def follow() -> None:
        async for line in _log(cloud, clock).lines(WORKFLOW, follow=True):
            found.append(line.message)

    def add(seconds: float, insert_id: str, message: str) -> None:
        cloud.add(START + timedelta(seconds=seconds), "writer", insert_id, workflowId=WORKFLOW, msg=message)

    async def look() -> None:
        looks = len(cloud.asked)
        async with asyncio.timeout(20):
            while clock.sleepers == 0:  # noqa: ASYNC110 - it is about a server
                await asyncio.sleep(0)
            await clock.advance(4)
            while not following.done() and (clock.sleepers == 0 or len(cloud.asked) == looks):  # noqa: ASYNC110
                await asyncio.sleep(0)

    _fill(cloud, 1)
    following = asyncio.create_task(follow())
    add(10, "b", "second")
    await look()
    add(5, "c", "late")  # of a moment before the one that was seen
    await look()
    add(60, "d", "workflow failed")
    await look()
    add(61, "e", "workflow rerun")
    await look()
    add(90, "f", "workflow success")
    await look()
    assert not following.done()
    add(80, "g", "after the end")
    await look()
    await look()
    async with asyncio.timeout(20):
        await following
    assert found == ["line 0", "second", "late", "workflow failed", "workflow rerun", "workflow success", "after the end"]
    assert cloud.asked[-1].filter.endswith(f'timestamp>="{(START + timedelta(seconds=60)).isoformat()}"')


@pytest.mark.parametrize(
    ("status", "error", "said"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            ConfigurationError,
            "add-iam-policy-binding acme --member=user:YOU --role=roles/logging.viewer",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, ConfigurationError, "gcloud auth application-default login"),
        (grpc.StatusCode.NOT_FOUND, ConfigurationError, "knows no project acme"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, HostUnavailable, "refuses work"),
    ],
)
async def test_what_the_service_refuses_is_told_in_one_line(
    cloud: CloudLogging, status: grpc.StatusCode, error: type[AgentTeamError], said: str
) -> None:
    cloud.refuses = status
    with pytest.raises(error) as raised:
        await _all(_log(cloud, ManualClock(START)))
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "own words" not in str(raised.value)


def _write(log: Path, workflow: str, *messages: str) -> None:
    """As the local platform writes it."""
    with log.open("a", encoding="utf-8") as stream:
        handler = configure_logging("info", stream=stream)
        try:
            for message in messages:
                logging.getLogger("functions.gateway.workflows").info(message, extra={"workflowId": workflow, "step": "draft"})
        finally:
            logging.getLogger().removeHandler(handler)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Path]:
    level = logging.getLogger().level
    (tmp_path / "home").mkdir()
    yield tmp_path / "home" / LOG_FILE
    logging.getLogger().setLevel(level)


async def test_the_local_log_is_followed_through_its_rotation_until_the_end(log: Path) -> None:
    clock, found = ManualClock(START), list[str]()

    async def follow() -> None:
        async for line in lines(log, WORKFLOW, follow=True, clock=clock):
            found.append(line.message)

    following = asyncio.create_task(follow())
    await clock.advance(0.25)  # there is no log yet
    _write(log, WORKFLOW, "first")
    _write(log, OTHER, "of another")
    await clock.advance(0.5)
    assert found == ["first"]
    _append(log, b'{"workflowId":"%b","msg":"in two' % WORKFLOW.encode())
    await clock.advance(0.25)
    assert found == ["first"]
    _append(log, b' pieces"}\nno JSON %b\n' % WORKFLOW.encode())
    await clock.advance(0.25)
    assert found == ["first", "in two pieces"]
    _write(log, WORKFLOW, "last of the old")
    _rotate(log)
    await clock.advance(0.25)
    _write(log, WORKFLOW, "first of the new", "workflow success", "after the end")
    await clock.advance(0.5)
    async with asyncio.timeout(5):
        await following
    assert found == ["first", "in two pieces", "last of the old", "first of the new", "workflow success", "after the end"]
    again = [line.message async for line in lines(log, WORKFLOW, follow=False, clock=clock)]
    assert again == found


def _append(log: Path, data: bytes) -> None:
    with log.open("ab") as stream:
        stream.write(data)


def _rotate(log: Path) -> None:
    log.replace(log.with_name(f"{LOG_FILE}.1"))


@pytest.fixture
def run(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(log.parent))
    return lambda *arguments: CliRunner().invoke(cli_app.app, list(arguments), prog_name="agent-team")


def test_the_verb_tells_time_function_level_step_and_message(run: Run, log: Path) -> None:
    _write(log, WORKFLOW, "workflow \x1b[31mrequested", "workflow success")
    answer = run("logs", WORKFLOW, "--follow")
    assert answer.exit_code == 0, answer.output
    first, second = answer.stdout.splitlines()
    assert first[23:] == "  gateway       info   draft             workflow [31mrequested"
    datetime.strptime(first[:23], "%Y-%m-%d %H:%M:%S.%f")
    assert second.endswith("workflow success")
    items = [json.loads(line) for line in run("logs", WORKFLOW, "--json").stdout.splitlines()]
    assert [(one["function"], one["msg"], one["level"]) for one in items][1] == ("gateway", "workflow success", "info")


def test_where_nothing_was_logged_the_verb_says_where_it_looked(run: Run, log: Path) -> None:
    answer = run("logs", WORKFLOW)
    assert (answer.exit_code, answer.stdout) == (1, "")
    assert f"nothing was logged of {WORKFLOW} in {log.parent}: see that AGENT_TEAM_HOME" in answer.stderr
    assert run("logs", "wf_1").exit_code == 2


def test_with_a_project_the_verb_asks_cloud_logging(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Nothing(CloudLog):
        async def lines(self, workflow: str, *, follow: bool) -> AsyncIterator[Line]:
            asked.append((self._project, workflow, follow))
            for line in list[Line]():
                yield line

    monkeypatch.setenv("GCP_PROJECT_ID", "acme")
    monkeypatch.setattr(cloud_logs, "CloudLog", Nothing)
    answer = run("logs", WORKFLOW, "-f")
    assert (answer.exit_code, asked) == (1, [("acme", WORKFLOW, True)])
    assert "in the project acme: see that it is the right one" in answer.stderr


def test_the_time_of_a_request_is_in_the_id() -> None:
    assert ids.requested_at(WORKFLOW) == START
    assert orjson.loads(orjson.dumps(as_json(Line(START, "writer", {})))) == {"at": START.isoformat(), "function": "writer"}
