"""`agent-team fork`, `rerun`, `diff`, `purge` and `show`, over the database and over a gateway."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shared.cli import app as cli_app
from tests.support.doubles import SECRET, WORKFLOW
from tests.support.live import completed, definition, failed, start

from .test_cli_letters import gateway, refused, runtime
from .test_gateway_forks import PAIR

Run = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(database: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team` in this process, on a database of the test's own."""
    monkeypatch.chdir(home.parent)
    for name, value in {
        "AGENT_TEAM_HOME": str(home),
        "DATABASE_URL": database,
        "COMM_HMAC_DEFAULT_SECRET": SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    level = logging.getLogger().level

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(cli_app.app, [str(argument) for argument in arguments], prog_name="agent-team")

    yield invoke
    logging.getLogger().setLevel(level)


@pytest.fixture
def advance(database: str, home: Path) -> Callable[..., list[dict[str, Any]]]:
    """Apply events one by one, as a platform beside the command line would, and return the workflows that there are then."""

    def apply(*events: dict[str, Any]) -> list[dict[str, Any]]:
        async def work() -> list[dict[str, Any]]:
            live = runtime(database, home)
            try:
                for event in events:
                    await live.dispatcher("orchestrator").apply([event])
                return [await live.store.get(one["id"]) for one in await live.store.recent()]
            finally:
                await live.close()

        return asyncio.run(work())

    return apply


@pytest.fixture(params=["database", "gateway"])
def where(request: pytest.FixtureRequest, database: str, home: Path) -> Iterator[tuple[str, ...]]:
    if request.param == "database":
        yield ()
    else:
        with gateway(database, home) as url:
            yield ("--url", url)


FINISHED = (start(PAIR, input={"brief": "x"}), completed("a", output="A"), completed("b", output={"text": "B"}))
Advance = Callable[..., list[dict[str, Any]]]


def test_a_fork_prints_its_id_and_waits_for_the_running_platform(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    advance(*FINISHED)
    result = run("fork", WORKFLOW, "--at", 3, *where)
    assert result.exit_code == 0, result.output
    id = result.stdout.strip()
    (forked,) = (one for one in advance({"type": "tick"}) if one["id"] == id)
    assert (forked["forked_from"], forked["forked_at"], forked["status"]) == (WORKFLOW, 3, "RUNNING")


def test_a_fork_takes_fields_that_change(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    advance(*FINISHED)
    result = run("fork", WORKFLOW, "-p", "tone=warm", "--json", *where)
    assert result.exit_code == 0, result.output
    id = json.loads(result.stdout)["id"]
    (forked,) = (one for one in advance({"type": "tick"}) if one["id"] == id)
    assert forked["input"] == {"brief": "x", "tone": "warm"}
    assert {step["id"]: step["reused"] for step in forked["steps"]} == {"a": True, "b": False}


def test_what_is_wrong_with_a_fork_is_said_in_one_line(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    advance(*FINISHED)
    refused(run("fork", "../x", *where), "no workflow's id")
    refused(run("fork", WORKFLOW, "-p", "tune=x", *where), "did you mean 'tone'")
    refused(run("fork", WORKFLOW, "-p", "tone", *where), "NAME=VALUE")
    refused(run("fork", WORKFLOW, "--at", 999, *where), "no history entry 999")
    refused(run("fork", WORKFLOW[:-1] + "Z", *where), "there is no workflow")


def test_an_address_where_nobody_listens_is_said_in_one_line(run: Run) -> None:
    refused(run("rerun", WORKFLOW, "--url", "http://127.0.0.1:1"), "cannot be reached")
    refused(run("rerun", WORKFLOW, "--url", "nowhere"), "is not an address")


def test_a_failed_workflow_is_rerun(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    advance(start(PAIR, input={"brief": "x"}), failed("a", permanent=True))
    refused(run("rerun", WORKFLOW, "--step", "b", *where), "the step that failed it is a")
    result = run("rerun", WORKFLOW, "--step", "a", *where)
    assert result.exit_code == 0, result.output
    assert f"{WORKFLOW} goes on" in result.stdout
    (shown,) = advance({"type": "tick"})
    assert (shown["status"], shown["steps"][0]["attempt"]) == ("RUNNING", 2)


def test_two_runs_are_compared(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    advance(*FINISHED)
    id = json.loads(run("fork", WORKFLOW, "-p", "tone=warm", "--json").stdout)["id"]
    advance({"type": "tick"}, completed("b", workflow=id, output={"text": "\x1b[31mC"}))
    result = run("diff", WORKFLOW, id, *where)
    assert result.exit_code == 0, result.output
    assert f"B: small v1 · {id} · SUCCESS · forked from {WORKFLOW}" in result.stdout
    assert "b: text\n  - B\n  + [31mC\n" in result.stdout
    assert "input: tone\n  - dry\n  + warm\n" in result.stdout
    assert result.stdout.endswith("1 step the same\n")
    (step,) = json.loads(run("diff", WORKFLOW, id, "--json", *where).stdout)["steps"]
    assert (step["id"], step["output"]["changes"][0]["path"]) == ("b", "text")


def test_show_tells_where_a_fork_comes_from_and_what_it_reused(run: Run, advance: Advance) -> None:
    advance(*FINISHED)
    id = run("fork", WORKFLOW).stdout.strip()
    shown = run("show", id).stdout
    assert f"forked from {WORKFLOW} at entry 7" in shown
    assert shown.count("reused") == 2


def test_show_says_why_a_step_was_skipped(run: Run, advance: Advance, where: tuple[str, ...]) -> None:
    steps = "- {id: talk, agent: critic, input: {}}\n- {id: never, agent: writer, when: false, needs: [talk], input: {}}"
    off = {"type": "step.skipped", "workflow": WORKFLOW, "step": "talk", "attempt": 1, "reason": "debate mode is off"}
    advance(start(definition(steps)), off)
    lines = run("show", WORKFLOW, *where).stdout.splitlines()
    assert "talk was skipped: debate mode is off" in lines
    assert "never was skipped: its condition does not hold" in lines


def test_a_purge_tells_first_and_deletes_with_yes_what_has_ended(run: Run, advance: Advance) -> None:
    advance(*FINISHED, start(PAIR, workflow=WORKFLOW[:-1] + "Z", input={"brief": "y"}))
    assert run("purge", "--older-than", "30d").stdout == "would delete 0 workflows and 0 dead letters\n"
    assert run("purge", "--older-than", "0m").stdout == "would delete 1 workflow and 0 dead letters\n"
    assert len(advance()) == 2
    gone = json.loads(run("purge", "--older-than", "0m", "--yes", "--json").stdout)
    assert gone == {"workflows": 1, "dead_letters": 0, "dry_run": False}
    assert [one["status"] for one in advance()] == ["RUNNING"]


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5d", "30 days", "999999d"])
def test_what_is_no_age_is_refused(run: Run, age: str) -> None:
    refused(run("purge", f"--older-than={age}"), "is no age")
