"""`agent-team documents` and `agent-team show`, over a database and beside a running platform."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from shared.ai.offline import OfflineModel
from shared.cli import app as cli_app
from shared.config import Settings
from shared.local import open_platform
from shared.runtime import Runtime
from shared.state import WorkflowStore
from shared.state.postgres import PostgresCaller
from tests.support.reports import database_home

from .door import USAGE, completed, dead, failed, requested, step

Run = Callable[..., Result]
WORKFLOW = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team` in this process, on a database of the test's own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", database)
    level = logging.getLogger().level

    def invoke(*arguments: object, **environment: str) -> Result:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return CliRunner().invoke(cli_app.app, [str(argument) for argument in arguments], prog_name="agent-team")

    yield invoke
    logging.getLogger().setLevel(level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two texts, and what is none."""
    top = tmp_path / "handbook"
    (top / "sub" / ".git").mkdir(parents=True)
    (top / "crew.md").write_text("# Crew\n\nThe ferry needs a crew of five.", encoding="utf-8")
    (top / "sub" / "tea.txt").write_text("Tea is served at five.", encoding="utf-8")
    (top / "photo.jpg").write_bytes(b"\xff\xd8\0")
    (top / "empty.md").touch()
    (top / ".hidden.md").write_text("hidden", encoding="utf-8")
    (top / "sub" / ".git" / "config").write_text("hidden", encoding="utf-8")
    (top / "loop").symlink_to(top, target_is_directory=True)
    return top


def refused(result: Result, part: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert part in result.stderr


def test_a_folder_s_texts_are_added_listed_found_and_removed(run: Run, folder: Path) -> None:
    added = run("documents", "add", folder)
    assert added.exit_code == 0, added.output
    assert added.stdout.splitlines() == ["added  handbook/crew.md", "added  handbook/sub/tea.txt"]
    assert added.stderr.splitlines() == [
        "passed over: handbook/empty.md is empty; there is nothing in it to find",
        "passed over: handbook/photo.jpg is not text: it holds NUL bytes; give UTF-8 text (convert UTF-16, PDF and office files)",
    ]
    lines = run("documents", "list").stdout.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["name", "bytes", "passages"],
        ["handbook/crew.md", "39", "1"],
        ["handbook/sub/tea.txt", "22", "1"],
    ]
    found = run("documents", "search", "five crew")
    assert (found.stdout, found.stderr) == ("handbook/crew.md:1  # Crew The ferry needs a crew of five.\n", "")
    assert [line.split()[0] for line in run("documents", "search", "five").stdout.splitlines()] == [
        "handbook/crew.md:1",
        "handbook/sub/tea.txt:1",
    ]
    assert run("documents", "remove", "handbook/crew.md").stdout == "removed  handbook/crew.md\n"
    nothing = run("documents", "search", "crew")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "nothing was found\n")


def test_a_text_is_replaced_under_its_name(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "notes.md"
    for text, outcome in (("one", "added"), ("one", "unchanged"), ("two", "replaced")):
        file.write_text(text, encoding="utf-8")
        assert run("documents", "add", file, "--name", "my notes").stdout == f"{outcome}  my notes\n"
    assert run("documents", "search", "one").stdout == ""
    assert run("documents", "search", "two").stdout == "my notes:1  two\n"


def test_json_is_one_object(run: Run, folder: Path) -> None:
    added = json.loads(run("documents", "add", folder, "--json").stdout)
    assert [(one["name"], one["outcome"], one["passages"]) for one in added["items"]] == [
        ("handbook/crew.md", "added", 1),
        ("handbook/sub/tea.txt", "added", 1),
    ]
    assert len(added["passed_over"]) == 2
    listed = json.loads(run("documents", "list", "--json").stdout)
    assert [(one["name"], one["sha256"]) for one in listed["items"]] == [(one["name"], one["sha256"]) for one in added["items"]]
    assert json.loads(run("documents", "search", "tea", "--json").stdout) == {
        "items": [{"document": "handbook/sub/tea.txt", "position": 1, "text": "Tea is served at five."}]
    }
    assert json.loads(run("documents", "remove", "handbook/crew.md", "--json").stdout) == {"removed": "handbook/crew.md"}
    assert json.loads(run("documents", "search", "crew", "--json").stdout) == {"items": []}


def test_what_is_found_cannot_move_the_cursor(run: Run, tmp_path: Path) -> None:
    (tmp_path / "evil.md").write_text("ferry \x1b[31mred\x07", encoding="utf-8")
    run("documents", "add", tmp_path / "evil.md")
    assert run("documents", "search", "ferry").stdout == "evil.md:1  ferry [31mred\n"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("add", "nowhere.md"), "there is no file 'nowhere.md'"),
        (("add", "handbook/photo.jpg"), "photo.jpg is not text"),
        (("add", "handbook/empty.md"), "empty.md is empty"),
        (("add", "handbook", "--name", "x"), "--name is for one file"),
        (("add", "handbook/crew.md", "handbook/sub/tea.txt", "--name", "x"), "--name is for one file"),
        (("add", "handbook/crew.md", "other/crew.md"), "would both be named crew.md"),
        (("add", "handbook/crew.md", "--name", "a\nb"), "cannot be a document's name"),
        (("remove", "crew.md"), "there is no document 'crew.md'"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(run: Run, folder: Path, arguments: tuple[str, ...], part: str) -> None:
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "crew.md").write_text("another", encoding="utf-8")
    refused(run("documents", *arguments), part)
    assert json.loads(run("documents", "list", "--json").stdout) == {"items": []}


def test_the_same_file_named_twice_is_added_once(run: Run, folder: Path) -> None:
    twice = run("documents", "add", folder / "crew.md", folder / "sub" / ".." / "crew.md")
    assert twice.stdout == "added  crew.md\n"


def test_a_folder_without_texts_says_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    result = run("documents", "add", tmp_path / "bare")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "there was no text to add\n")


def test_a_database_without_the_schema_says_to_migrate(run: Run, empty_database: str) -> None:
    refused(run("documents", "list", DATABASE_URL=empty_database), "run `agent-team migrate`")
    refused(run("show", WORKFLOW), "run `agent-team migrate`")


def command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`agent-team` as a process of its own, on the embedded database in `home`."""
    variables = {name: value for name, value in os.environ.items() if name not in ("DATABASE_URL", "GEMINI_API_KEY")}
    return subprocess.run(
        [sys.executable, "-m", "shared.cli", *arguments],
        env={**variables, "AGENT_TEAM_HOME": str(home), "PYTHONPATH": str(Path(cli_app.__file__).parents[2])},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_documents_are_added_without_a_platform_and_beside_one() -> None:
    with database_home() as home:
        file = home / "a.md"
        file.write_text("The ferry was late.", encoding="utf-8")
        first = command(home, "documents", "add", str(file), "--name", "a.md")
        assert (first.returncode, first.stdout) == (0, "added  a.md\n"), first.stderr

        async def beside() -> None:
            settings = Settings(app_env="test", agent_team_home=home)
            live = Runtime(settings, model=OfflineModel())
            async with open_platform(settings, runtime=live):
                file.write_text("The ferry was on time.", encoding="utf-8")
                second = await asyncio.to_thread(command, home, "documents", "add", str(file), "--name", "a.md")
                assert (second.returncode, second.stdout) == (0, "replaced  a.md\n"), second.stderr
                assert [hit["text"] for hit in await live.store.search_documents("ferry")] == ["The ferry was on time."]

        asyncio.run(beside())


@pytest.fixture
def workflow(database: str) -> str:
    """A workflow that failed in its second step."""

    async def work() -> None:
        store = WorkflowStore(PostgresCaller(database), max_running=1)
        await store.advance([requested([step("plan"), step("draft", "plan"), step("end", "draft")], WORKFLOW)])
        await store.advance([failed("plan", workflow=WORKFLOW, usage=USAGE, models={"flash": USAGE}, retry_after_seconds=0)])
        used = {"model_calls": 2, "input_tokens": 1200, "output_tokens": 34, "cost_microdollars": 12345}
        await store.advance([completed("plan", attempt=2, workflow=WORKFLOW, usage=used, models={"pro": used})])
        await store.advance([dead("draft", workflow=WORKFLOW)])
        await store.close()

    asyncio.run(work())
    return WORKFLOW


def test_a_workflow_is_shown_with_what_its_steps_and_models_used(run: Run, workflow: str) -> None:
    shown = run("show", workflow)
    assert (shown.exit_code, shown.stderr) == (0, ""), shown.output
    head, why, _, *lines = shown.stdout.splitlines()
    assert head == f"report v1 · {workflow} · FAILED"
    assert why == "DeadLettered: no delivery to worker succeeded"
    cells: list[Any] = [line.split() for line in lines]
    assert cells[0] == ["step", "agent", "status", "attempts", "tokens", "cost", "time"]
    assert cells[1][:6] == ["plan", "worker", "SUCCESS", "2", "1,264", "$0.0123"]
    assert cells[1][7] == "s"
    assert cells[2][:6] == ["draft", "worker", "FAILED", "1", "0", "$0.0000"]
    assert cells[3] == ["end", "worker", "CANCELLED", "0", "0", "$0.0000", "-"]
    assert [line.split() for line in lines[5:]] == [
        ["model", "calls", "input", "tokens", "output", "tokens", "cost"],
        ["flash", "1", "20", "10", "$0.0000"],
        ["pro", "2", "1,200", "34", "$0.0123"],
        ["total", "3", "1,220", "44", "$0.0123"],
    ]
    assert json.loads(run("show", workflow, "--json").stdout)["models"]["flash"] == USAGE


@pytest.mark.parametrize("id", ["report", "x\ny", "x" * 200])
def test_what_is_no_id_of_a_workflow_is_told_in_one_line(run: Run, id: str) -> None:
    refused(run("show", id), "is no workflow's id")


def test_a_workflow_that_is_not_there_is_told_in_one_line(run: Run, workflow: str) -> None:
    refused(run("show", "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CE"), "there is no workflow wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CE")
