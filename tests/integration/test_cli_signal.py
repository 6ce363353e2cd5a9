"""`agent-team signal`, over the database and over a gateway."""

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from shared.cli import app as cli_app
from shared.clock import ManualClock
from shared.messages import StepDispatched
from shared.state import Event
from tests.support.doubles import SECRET, WORKFLOW, RememberingBus, Stage
from tests.support.live import definition, start

from .test_cli_letters import apart, gateway, refused, runtime

Run = Callable[..., Result]
STEPS = """
- {id: ask, approval: {prompt: "Send it?"}}
- {id: paid, needs: [ask], wait: {signal: payment}}
- {id: final, agent: writer, needs: [ask, paid], input: {paid: "{{ steps.paid.output }}", asked: "{{ steps.ask.output }}"}}
"""


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> RememberingBus:
    """What AGENT_BUS_PROVIDER=redis opens here."""
    remembering = RememberingBus()
    monkeypatch.setattr("shared.runtime.wiring.open_bus", lambda *_arguments, **_more: remembering)
    return remembering


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team` in this process, on a database of the test's own."""
    monkeypatch.chdir(tmp_path)
    variables = {
        **{"AGENT_TEAM_HOME": str(tmp_path / "home"), "DATABASE_URL": database, "COMM_HMAC_DEFAULT_SECRET": SECRET},
        **{"AGENT_BUS_PROVIDER": "redis", "REDIS_URL": "redis://127.0.0.1:1/0", "GUARDS_BACKEND": "memory"},
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    level = logging.getLogger().level
    yield lambda *words: CliRunner().invoke(cli_app.app, [str(word) for word in words], prog_name="agent-team")
    logging.getLogger().setLevel(level)


@pytest.fixture(autouse=True)
def waiting(database: str, tmp_path: Path) -> None:
    """A workflow that waits for its approval."""
    applied(database, tmp_path, start(definition(STEPS)))


@pytest.fixture(params=["database", "gateway"])
def where(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> Iterator[tuple[str, ...]]:
    """The options that lead to the workflow."""
    if request.param == "database":
        yield ()
    else:
        with gateway(database, tmp_path) as url:
            yield ("--url", url)


def applied(database: str, home: Path, *events: Event) -> None:
    async def apply() -> None:
        live = runtime(database, home)
        await live.dispatcher("sweeper").apply(list(events))
        await live.close()

    apart(apply)


def shown(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run("show", WORKFLOW, "--json").stdout)
    return document


def output_of(run: Run, step: str) -> Any:
    return next(one["output"] for one in shown(run)["steps"] if one["id"] == step)


def test_an_approval_is_given_with_a_comment_and_a_name(run: Run, where: tuple[str, ...], bus: RememberingBus) -> None:
    result = run("signal", WORKFLOW, "ask", "--approve", "--comment", "fine", "--by", "ann", *where)
    assert (result.exit_code, result.stdout) == (0, f"ask is woken; {WORKFLOW} is RUNNING\n"), result.output
    said = output_of(run, "ask")
    assert (said["decision"], said["comment"], said["by"]) == ("approve", "fine", "ann")


def test_a_value_takes_the_place_of_what_was_proposed(run: Run, where: tuple[str, ...], bus: RememberingBus) -> None:
    result = run("signal", WORKFLOW, "ask", "--amend", '{"text": "No."}', "--json", *where)
    assert json.loads(result.stdout) == {"id": WORKFLOW, "name": "ask", "status": "RUNNING", "outcome": "woken"}, result.output
    assert output_of(run, "ask")["value"] == {"text": "No."}
    assert output_of(run, "ask")["by"] != ""


def test_a_signal_before_its_time_is_kept(run: Run, where: tuple[str, ...], bus: RememberingBus) -> None:
    result = run("signal", WORKFLOW, "payment", "--data", "5", *where)
    assert result.stdout == f"payment is kept until a step waits for it; {WORKFLOW} is WAITING\n", result.output
    assert run("signal", WORKFLOW, "ask", "--approve", *where).stdout == f"ask is woken; {WORKFLOW} is RUNNING\n"
    assert output_of(run, "paid") == {"woken_by": "signal", "data": 5}


def test_a_rejection_fails_the_workflow(run: Run, where: tuple[str, ...], bus: RememberingBus) -> None:
    assert run("signal", WORKFLOW, "ask", "--reject", *where).exit_code == 0
    assert shown(run)["error"]["type"] == "Rejected"


def test_what_cannot_be_taken_is_told_in_one_line(run: Run, where: tuple[str, ...], bus: RememberingBus) -> None:
    refused(run("signal", WORKFLOW, "aks", "--approve", *where), "no step of this workflow waits for aks; there are ask, payment")
    refused(run("signal", WORKFLOW, "ask", *where), "waits for a decision")
    refused(run("signal", WORKFLOW[:-1] + "1", "ask", "--approve", *where), "there is no workflow")
    assert run("signal", WORKFLOW, "ask", "--approve", *where).exit_code == 0
    refused(run("signal", WORKFLOW, "ask", "--reject", *where), "what it was told first counts")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ((WORKFLOW, "ask", "--approve", "--reject"), "give one of --approve, --reject and --amend, not --approve and --reject"),
        ((WORKFLOW, "ask", "--amend", "no"), "--data and --amend take JSON"),
        ((WORKFLOW, "ask", "--amend", "null"), "amend needs the value"),
        (("wf_1", "ask", "--approve"), "'wf_1' is no workflow's id"),
        ((WORKFLOW, "a b"), "name: String should match pattern"),
        ((WORKFLOW, "ask", "--approve", "--url", "127.0.0.1:8080"), "is not an address"),
        ((WORKFLOW, "ask", "--approve", "--url", "http://127.0.0.1:1"), "cannot be reached"),
    ],
)
def test_what_cannot_be_meant_is_refused(run: Run, words: tuple[str, ...], part: str) -> None:
    refused(run("signal", *words), part)


def test_what_comes_of_a_signal_is_published_where_the_bus_is_not_in_a_process(run: Run, bus: RememberingBus) -> None:
    run("signal", WORKFLOW, "payment", "--data", "5")
    run("signal", WORKFLOW, "ask", "--approve")
    (message,) = bus.published
    order = Stage(clock=ManualClock(datetime.now(UTC))).opened(message).data
    assert isinstance(order, StepDispatched)
    assert order.input["paid"] == {"woken_by": "signal", "data": 5}


def test_beside_a_platform_in_one_process_a_signal_is_left_for_its_sweeper(
    run: Run, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_BUS_PROVIDER", "memory")
    result = run("signal", WORKFLOW, "ask", "--approve")
    assert (result.exit_code, "is written down" in result.stdout) == (0, True), result.output
    assert shown(run)["status"] == "WAITING"
    refused(run("signal", WORKFLOW, "ask", "--reject"), "what it was told first counts")
    applied(database, tmp_path, {"type": "tick"})
    assert output_of(run, "ask")["decision"] == "approve"


def test_a_workflow_that_waits_is_shown_with_the_command_that_answers_it(run: Run) -> None:
    lines = run("show", WORKFLOW).stdout.splitlines()
    assert f"ask waits for an approval: agent-team signal {WORKFLOW} ask --approve (or --reject): Send it?" in lines


def test_an_approval_in_a_nested_workflow_is_given_by_its_full_id(
    run: Run, where: tuple[str, ...], database: str, tmp_path: Path
) -> None:
    other = WORKFLOW[:-1] + "7"
    inner = definition("- {id: ask, approval: {prompt: Well}}", name="inner")
    outer = definition("- {id: sub, workflow: inner, for_each: [1, 2], input: {}}", nests={"inner": inner})
    applied(database, tmp_path, start(outer, workflow=other, definitions={"inner": inner}))
    refused(run("signal", other, "ask", "--approve", *where), "sub/0/ask, sub/1/ask")
    told = run("signal", other, "sub/1/ask", "--approve", *where)
    assert (told.exit_code, told.stdout) == (0, f"sub/1/ask is woken; {other} is RUNNING\n")
    document = json.loads(run("show", other, "--json", *where).stdout)
    waits = {step["id"] for step in document["steps"] if step["waiting"] is not None}
    assert (waits, document["status"]) == ({"sub/0/ask"}, "WAITING")


def test_show_gives_the_link_to_an_approval_and_the_link_decides(run: Run, database: str, tmp_path: Path) -> None:
    with gateway(database, tmp_path) as url:
        there = run("show", WORKFLOW, "--url", url).stdout
        assert f"  whoever has this link can decide: {url}/approve/" in there
        here = run("show", WORKFLOW).stdout.partition("can decide: http://127.0.0.1:8080")[2].split()[0]
        assert httpx.get(url + here).status_code == 200, "the database's link is good at the gateway"
        assert httpx.post(url + here, data={"decision": "approve"}).status_code == 200
        assert "/approve/" not in run("show", WORKFLOW, "--url", url).stdout
    assert next(step for step in shown(run)["steps"] if step["id"] == "ask")["output"]["by"] == "link"


def test_show_draws_where_a_run_stands(run: Run, where: tuple[str, ...]) -> None:
    chart = run("show", WORKFLOW, "--mermaid", *where).stdout
    assert chart.startswith("flowchart TD\n")
    assert 's0{"ask<br/>wait:approval<br/>WAITING"}:::WAITING' in chart
    assert "    s0 --> s1\n" in chart
