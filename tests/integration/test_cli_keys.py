"""`agent-team keys api`, over a database and beside a running platform."""

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shared.ai.offline import OfflineModel
from shared.cli import app as cli_app
from shared.config import Settings
from shared.local import open_platform
from shared.runtime import Runtime
from shared.state.keys import digest, id_of

Run = Callable[..., Result]


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team` in this process, on a database of the test's own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", database)
    level = logging.getLogger().level

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli_app.app, list(arguments), prog_name="agent-team")

    yield invoke
    logging.getLogger().setLevel(level)


def refused(result: Result, part: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert part in result.stderr


def test_a_key_is_all_that_is_on_standard_output(run: Run, tmp_path: Path) -> None:
    added = run("keys", "api", "add", "ci")
    assert added.exit_code == 0, added.output
    (key,) = added.stdout.splitlines()
    assert id_of(key) is not None
    assert "not shown again" in added.stderr
    assert key not in added.stderr
    kept = "".join(file.read_text() for file in (tmp_path / "home").iterdir())
    assert key.split("_", 2)[2] not in kept


def test_keys_are_listed_with_their_scope_and_never_with_what_they_are(run: Run) -> None:
    key = run("keys", "api", "add", "ci", "--scope", "admin").stdout.strip()
    run("keys", "api", "add", "board", "--scope", "read")
    listed = run("keys", "api", "list").stdout
    assert [line.split()[:3] for line in listed.splitlines()] == [
        ["name", "id", "scope"],
        ["board", listed.splitlines()[1].split()[1], "read"],
        ["ci", id_of(key), "admin"],
    ]
    items = json.loads(run("keys", "api", "list", "--json").stdout)["items"]
    assert [(one["name"], one["scope"], one["last_used_at"], one["revoked_at"]) for one in items] == [
        ("board", "read", None, None),
        ("ci", "admin", None, None),
    ]
    assert digest(key) not in listed + str(items)


def test_a_revoked_key_stays_in_the_list_and_its_name_is_free(run: Run) -> None:
    run("keys", "api", "add", "ci")
    assert run("keys", "api", "revoke", "ci").stdout == "revoked  ci\n"
    refused(run("keys", "api", "revoke", "ci"), "there is no key 'ci' in use")
    assert run("keys", "api", "add", "ci").exit_code == 0
    refused(run("keys", "api", "add", "ci"), "there is a key ci already")
    items = json.loads(run("keys", "api", "list", "--json").stdout)["items"]
    assert sorted(one["revoked_at"] is None for one in items) == [False, True]


def test_json_is_one_object(run: Run) -> None:
    added = json.loads(run("keys", "api", "add", "ci", "--scope", "read", "--json").stdout)
    assert (added["name"], added["scope"], id_of(added["key"]) is None) == ("ci", "read", False)
    assert json.loads(run("keys", "api", "revoke", "ci", "--json").stdout) == {"revoked": "ci"}


def test_what_cannot_be_a_key_is_refused(run: Run) -> None:
    refused(run("keys", "api", "add", "a b"), "cannot be a key's name")
    assert run("keys", "api", "add", "ci", "--scope", "all").exit_code == 2
    none = run("keys", "api", "list")
    assert (none.stdout, none.stderr) == ("", "there are none; agent-team keys api add NAME adds one\n")


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


def test_keys_are_added_without_a_platform_and_revoked_beside_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    first = command(home, "keys", "api", "add", "ci")
    assert first.returncode == 0, first.stderr
    id = id_of(first.stdout.strip())
    assert id is not None

    async def beside() -> None:
        settings = Settings(app_env="test", agent_team_home=home)
        live = Runtime(settings, model=OfflineModel())
        async with open_platform(settings, runtime=live):
            found = await live.store.keys.find(id)
            assert found is not None
            assert found["hash"] == digest(first.stdout.strip())
            second = await asyncio.to_thread(command, home, "keys", "api", "revoke", "ci")
            assert (second.returncode, second.stdout) == (0, "revoked  ci\n"), second.stderr
            assert await live.store.keys.find(id) is None

    asyncio.run(beside())
