"""`agent-team backup` and `restore`, as an operator and as the nightly job run them."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ConfigurationError, InputError
from shared.local.home import Home
from shared.state.backups import bucket, check, programs
from shared.state.postgres import connected
from tests.conftest import Postgres
from tests.support.live import until
from tests.support.storage import Storage, storage

from .door import Door, completed, requested, step
from .test_backups import manifest_with, rewrite

ROOT = Path(__file__).parents[2]
Answer = tuple[int, str, str]


class Shell:
    """Runs `agent-team` as a process of its own, in a folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENT_TEAM_HOME": str(self.home)}
        self._folder = folder

    async def __call__(self, *arguments: str, **environment: str) -> Answer:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shared.cli", *arguments),
            cwd=self._folder,
            env={**self.environment, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(90):
                out, err = await process.communicate()
        except BaseException:
            process.kill()
            raise
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def refused(answer: Answer, part: str) -> None:
    status, out, err = answer
    assert (status, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert part in err


async def _begin(dsn: str) -> None:
    async with connected(dsn) as connection:
        await Door(connection).advance(requested([step("a"), step("b", "a")]))


async def test_a_backup_goes_to_the_home_folder_and_becomes_another_database(
    shell: Shell, database: str, postgres: Postgres
) -> None:
    await _begin(database)
    old = [
        shell.home / "backups" / (datetime.now(UTC) - timedelta(days=days)).strftime("agent-team-%Y%m%dT%H%M%SZ.zip")
        for days in (6, 8)
    ]
    other = shell.home / "backups" / "agent-team-notes.zip"
    _touch(*old, other)
    status, out, err = await shell("backup", DATABASE_URL=database)
    assert (status, err) == (0, "")
    file = Path(out.partition(": ")[0])
    assert "12 tables" in out
    assert out.endswith("read back and whole\n")
    # One that is older than 7 days is gone, what is not ours stays.
    assert _names(shell.home / "backups") == sorted([old[0].name, other.name, file.name])
    other.unlink()
    old[0].unlink()

    refused(await shell("restore", str(file), DATABASE_URL=database), "the database is not empty: there is something in public")
    status, out, err = await shell("restore", str(file.parent), "--database", "restored copy", DATABASE_URL=database)
    assert (status, err) == (0, "")
    assert "database restored copy: 12 tables and" in out
    assert "counts and checksums agree" in out
    async with connected(programs.for_database(database, "restored copy")) as connection:
        assert [one["step"] for one in await Door(connection).advance(completed("a"))] == ["b"]
    refused(await shell("restore", str(file), "--database", "restored copy", DATABASE_URL=database), "not empty")
    status, out, err = await shell("restore", str(file), "--database", "restored copy", "--force", DATABASE_URL=database)
    assert (status, err) == (0, "")
    assert "what was there before is in the schema public_before_" in out
    postgres.execute('drop database "restored copy"')


async def test_a_database_that_was_made_for_a_restore_that_failed_is_dropped(shell: Shell, database: str, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.zip"
    status, _, err = await shell("backup", "--to", str(damaged), DATABASE_URL=database)
    assert (status, err) == (0, "")
    refused(await shell("backup", "--to", str(damaged), DATABASE_URL=database), "is there already")
    whole = damaged.with_name("whole.zip")
    _copy(damaged, whole)
    _cut(damaged)
    refused(await shell("restore", str(damaged), "--database", "new_one", DATABASE_URL=database), "cut off or damaged")
    other = rewrite(
        whole, tmp_path / "other.zip", manifest_with(tables=[{**one.model_dump(), "rows": 1} for one in check(whole).tables])
    )
    refused(await shell("restore", str(other), "--database", "new_one", DATABASE_URL=database), "the restore was undone")
    async with connected(database) as connection:
        assert await connection.fetchval("select count(*) from pg_database where datname = 'new_one'") == 0


async def test_the_nightly_job_writes_to_a_bucket_and_says_so_in_one_line_of_the_log(
    shell: Shell, database: str, postgres: Postgres
) -> None:
    await _begin(database)
    target = postgres.create_empty()
    async with storage() as double:
        job = {"CLOUD_RUN_JOB": "backup", "STORAGE_EMULATOR_HOST": double.url, "GCP_PROJECT_ID": "acme", "DATABASE_URL": database}
        status, out, err = await shell("backup", "--to", "gs://outputs/nightly", **job)
        assert (status, err) == (0, "")
        (line,) = out.splitlines()
        told: dict[str, Any] = json.loads(line)
        assert (told["message"], told["severity"], told["tables"]) == ("backup done", "INFO", 12)
        ((name, data),) = double.objects.items()
        assert told["to"] == f"gs://outputs/{name}"
        assert name.startswith("nightly/agent-team-2")
        assert told["sizeBytes"] == len(data)
        assert told["rows"] > 10
        assert not shell.home.exists()

        there = {"STORAGE_EMULATOR_HOST": double.url, "DATABASE_URL": target}
        status, out, err = await shell("restore", f"gs://outputs/{name}", **there)
        assert (status, err) == (0, "")
        async with connected(target) as connection:
            assert [one["step"] for one in await Door(connection).advance(completed("a"))] == ["b"]
        refused(await shell("restore", "gs://outputs/nightly/other.zip", **there), "there is no gs://outputs/nightly/other.zip")
        refused(await shell("restore", "gs://outputs", **there), "names no object")
        refused(
            await shell("backup", "--to", "gs://elsewhere", **{**there, "DATABASE_URL": database}),
            "the bucket elsewhere does not exist",
        )
    postgres.drop(target)


@pytest.mark.parametrize("status", [403, 503])
async def test_a_backup_that_the_bucket_does_not_take_is_not_told_as_done(shell: Shell, database: str, status: int) -> None:
    async with storage() as double:
        double.statuses = [status] * 1000
        job = {"CLOUD_RUN_JOB": "backup", "STORAGE_EMULATOR_HOST": double.url, "DATABASE_URL": database}
        if status == 403:
            code, out, err = await shell("backup", "--to", "gs://outputs", **job)
            assert (code, out) == (2, "")
            assert "the bucket outputs refuses this account; grant it storage.objects.create and .get" in err
        else:
            trying = asyncio.create_task(shell("backup", "--to", "gs://outputs", **job))
            await until(lambda: len(double.asked) > 1 or trying.done(), within_seconds=90)
            assert not trying.done(), "it is tried again"
            trying.cancel()
            await asyncio.wait([trying])


async def test_an_object_that_came_back_otherwise_is_no_backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "backup.zip"
    _touch(file)
    async with storage() as double:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", double.url)
        _twist(double)
        with pytest.raises(Exception, match="is not what was uploaded"):
            await asyncio.to_thread(bucket.upload, file, "gs://outputs/one.zip", project="acme")
        with pytest.raises(InputError, match="never overwritten"):
            await asyncio.to_thread(bucket.upload, file, "gs://outputs/one.zip", project="acme")


def _twist(double: Storage) -> None:
    class Twisted(dict[str, bytes]):
        def __setitem__(self, name: str, data: bytes) -> None:
            super().__setitem__(name, data + b"more")

    double.objects = Twisted()


async def test_the_embedded_database_is_backed_up_and_restored(shell: Shell, tmp_path: Path) -> None:
    status, _, err = await shell("migrate")
    assert (status, err) == (0, "")
    status, out, err = await shell("backup", "--to", f"{tmp_path}/")
    assert (status, err) == (0, "")
    file = Path(out.partition(": ")[0])
    assert check(file).rows > 0
    refused(await shell("restore", str(file)), "not empty")
    held = Home(shell.home)
    refused(await shell("restore", str(file), "--force"), "another platform")
    held.release()
    status, out, err = await shell("restore", str(file), "--force")
    assert (status, err) == (0, "")
    assert "public_before_" in out
    status, out, err = await shell("migrate")
    assert "the schema is current" in out
    status, out, err = await shell("restore", str(file), AGENT_TEAM_HOME=str(tmp_path / "another"))
    assert (status, err) == (0, "")
    assert out.startswith("embedded database in ")


async def test_a_password_is_no_option(shell: Shell, tmp_path: Path) -> None:
    _touch(tmp_path / "b.zip")
    for url in ("postgresql://me:hush@host/name", "postgresql://me@host/name?password=hush"):
        answer = await shell("restore", "b.zip", "--database-url", url)
        refused(answer, "put it in PGPASSWORD or ~/.pgpass")
        assert "hush" not in answer[2]
    refused(await shell("restore", "b.zip", "--database-url", "mysql://host"), "no")


def test_programs_are_told_the_password_by_the_environment_alone() -> None:
    where, environment = programs.connection("postgresql://me:a%20b@host:5432/name?sslmode=require&statement_cache_size=0")
    assert (where, environment["PGPASSWORD"]) == ("postgresql://me@host:5432/name?sslmode=require", "a b")
    where, environment = programs.connection("postgresql://me@/name?host=/run/pg&password=hush")
    assert (where, environment["PGPASSWORD"]) == ("postgresql://me@/name?host=/run/pg", "hush")
    assert programs.connection("postgresql:///name")[0] == "postgresql:///name"


def test_a_dump_goes_around_a_transaction_pooler_or_is_refused() -> None:
    pooled = "postgresql://me:x@aws-0-eu.pooler.supabase.com:6543/postgres?pgbouncer=true&sslmode=require"
    assert programs.session_dsn(pooled) == "postgresql://me:x@aws-0-eu.pooler.supabase.com:5432/postgres?sslmode=require"
    assert programs.session_dsn("postgresql://me@host:5432/name") == "postgresql://me@host:5432/name"
    for dsn in ("postgresql://me@pgbouncer:6543/name", "postgresql://me@host/name?pgbouncer=true"):
        with pytest.raises(ConfigurationError, match="transaction pooler"):
            programs.session_dsn(dsn)


def test_programs_that_are_too_old_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pg_dump", "pg_restore", "psql"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.1'\n", encoding="ascii")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = programs.find_programs(18)
    assert found.major >= 18
    assert programs.find_programs(9).folder == tmp_path
    with pytest.raises(ConfigurationError, match=r"of PostgreSQL 99 or newer \(there is 9 in .*install postgresql-client-99"):
        programs.find_programs(99)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setattr(programs, "program_folders", list)
    with pytest.raises(ConfigurationError, match="or newer; install"):
        programs.find_programs(18)


def _touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"something")


def _names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _copy(file: Path, to: Path) -> None:
    to.write_bytes(file.read_bytes())


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])
