"""Backups: one snapshot, whole or refused, restored whole or not at all."""

import asyncio
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import asyncpg
import orjson
import pytest

from shared.errors import AgentTeamError, ConfigurationError, Conflict, InputError, StoreUnavailable
from shared.state import migrations
from shared.state.backups import archive, back_up, check, dumping, readable, restore, restoring
from shared.state.backups.checksums import SETTINGS, measure
from shared.state.backups.programs import Programs
from shared.state.postgres import connected
from tests.conftest import Postgres

from .door import Door, cancelled, completed, dispatches, failed, one, rendered, requested, step

WORKFLOWS = 1000


async def _fill(dsn: str, count: int = WORKFLOWS) -> None:
    """Workflows that are queued, run, have ended well, badly and early, and one that is in the midst of it: wf_0."""
    async with connected(dsn) as connection:
        door = Door(connection, max_running=count // 2)
        ids = [f"wf_{n}" for n in range(count)]
        await door.advance(*(requested([step("a"), step("b", "a"), step("c", "b")], id) for id in ids))
        await door.advance(completed("a", workflow="wf_0"))
        await door.advance(*(completed("a", workflow=id) for id in ids[1 : count // 2]))
        await door.advance(*(failed("b", workflow=id, permanent=True) for id in ids[1 : count // 4]))
        await door.advance(*(cancelled(id) for id in ids[count // 4 : count // 3]))
        for name in ("b", "c"):
            await door.advance(*(completed(name, workflow=id) for id in ids[count // 3 : count // 2]))
        await door.advance(*(rendered(id) for id in ids[count // 3 : count // 2]))


async def _measured(dsn: str) -> tuple[Any, ...]:
    async with connected(dsn) as connection, connection.transaction():
        await connection.execute(SETTINGS)
        return await measure(connection)


@pytest.fixture
async def backed_up(database: str, tmp_path: Path) -> Path:
    """A backup of three workflows."""
    await _fill(database, 12)
    await back_up(database, tmp_path / "backup.zip")
    return tmp_path / "backup.zip"


async def test_a_thousand_workflows_come_back_and_go_on(database: str, empty_database: str, tmp_path: Path) -> None:
    await _fill(database)
    file = tmp_path / "backup.zip"
    manifest = await back_up(database, file)
    async with connected(database) as connection:
        statuses = await connection.fetch("select status, count(*) from workflows group by 1 order by 1")
    assert [row["status"] for row in statuses] == ["CANCELLED", "FAILED", "QUEUED", "RUNNING", "SUCCESS"]
    rows = {table.name: table.rows for table in manifest.tables}
    assert (rows["workflows"], rows["steps"], rows["edges"]) == (WORKFLOWS, 3 * WORKFLOWS, 2 * WORKFLOWS)
    assert file.stat().st_mode & 0o777 == 0o600

    restored = await restore(empty_database, file)
    assert (restored.migrated, restored.aside) == ([], [])
    assert await _measured(empty_database) == manifest.tables == await _measured(database)
    async with connected(empty_database) as connection:
        door = Door(connection, max_running=WORKFLOWS)
        assert await door.statuses("wf_0") == {"a": "SUCCESS", "b": "RUNNING", "c": "PENDING"}
        assert dispatches(await door.advance(completed("b", workflow="wf_0"))) == [("c", 1)]
        await door.advance(completed("c", workflow="wf_0"))
        assert one(await door.advance(rendered("wf_0")), "finished")["status"] == "SUCCESS"


async def test_what_is_written_during_the_dump_is_in_it_whole_or_not_at_all(
    database: str, empty_database: str, tmp_path: Path
) -> None:
    stop = asyncio.Event()

    async def write() -> int:
        written = 0
        async with connected(database) as connection:
            door = Door(connection, max_running=100_000)
            while not stop.is_set():
                ids = [f"wf_{written + n}" for n in range(10)]
                await door.advance(*(requested([step("a"), step("b", "a")], id) for id in ids))
                written += len(ids)
        return written

    async with connected(database) as connection:
        writing = asyncio.create_task(write())
        while await connection.fetchval("select count(*) from workflows") == 0:
            pass
        manifest = await back_up(database, tmp_path / "backup.zip")
        stop.set()
        written = await writing
    rows = {table.name: table.rows for table in manifest.tables}
    assert 0 < rows["workflows"] < written
    assert rows["workflows"] % 10 == 0
    assert rows["steps"] == 2 * rows["workflows"]
    await restore(empty_database, tmp_path / "backup.zip")  # which compares the dump with what was counted
    assert await _measured(empty_database) == manifest.tables


async def test_a_backup_that_was_cut_off_anywhere_is_refused(backed_up: Path, tmp_path: Path, empty_database: str) -> None:
    whole, cut = _bytes(backed_up), tmp_path / "cut.zip"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 22, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(InputError, match="cut off or damaged"):
            await restore(empty_database, cut)
    assert await _is_empty(empty_database)


async def test_a_backup_of_which_any_part_was_changed_is_refused(backed_up: Path, tmp_path: Path, empty_database: str) -> None:
    whole, damaged = _bytes(backed_up), tmp_path / "damaged.zip"
    for position in range(0, len(whole), len(whole) // 40):
        changed = bytearray(whole)
        changed[position] ^= 0x55
        damaged.write_bytes(changed)
        try:
            manifest = await asyncio.to_thread(check, damaged)
        except InputError:
            continue
        # Times and the like in the ZIP's own directory change nothing of what it holds.
        assert manifest == check(backed_up), position
    assert await _is_empty(empty_database)


def rewrite(file: Path, into: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """A backup of which something was changed by somebody who knows ZIP."""
    with zipfile.ZipFile(file) as given:
        parts = {name: given.read(name) for name in given.namelist()}
    change(parts)
    with zipfile.ZipFile(into, "w") as made:
        for name, data in parts.items():
            made.writestr(name, data)
    return into


def manifest_with(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    """What changes the manifest."""

    def change(parts: dict[str, bytes]) -> None:
        parts["manifest.json"] = orjson.dumps({**orjson.loads(parts["manifest.json"]), **changes})

    return change


def _other_dump(parts: dict[str, bytes]) -> None:
    parts["database.dump"] = parts["database.dump"][:-1] + b"?"


def _no_dump(parts: dict[str, bytes]) -> None:
    from hashlib import sha256

    parts["database.dump"] = b"something else"
    manifest_with(dump={"size_bytes": 14, "sha256": sha256(b"something else").hexdigest()})(parts)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_dump, "another dump than its manifest says"),
        (_no_dump, r"pg_restore \d+ cannot read"),
        (manifest_with(format=2), "use the release that made it"),
        (manifest_with(schema_version="29990101000000"), "has the schema 29990101000000, this release knows"),
        (manifest_with(tables="none"), "does not understand"),
        (lambda parts: parts.update({"manifest.json": b"{"}), "does not understand"),
        (lambda parts: parts.pop("manifest.json"), "no backup of the platform"),
        (lambda parts: parts.pop("database.dump"), "no backup of the platform"),
    ],
)
async def test_what_is_no_backup_of_this_release_is_refused_before_anything_is_touched(
    backed_up: Path, tmp_path: Path, empty_database: str, change: Callable[[dict[str, bytes]], None], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        await restore(empty_database, rewrite(backed_up, tmp_path / "other.zip", change), force=True)
    assert await _is_empty(empty_database)


async def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        await readable(tmp_path / "nothing.zip")


async def test_a_database_that_holds_anything_is_refused(backed_up: Path, database: str, empty_database: str) -> None:
    before = await _measured(database)
    with pytest.raises(Conflict, match=r"something in public, supabase_migrations; .*--force"):
        await restore(database, backed_up)
    assert await _measured(database) == before
    async with connected(empty_database) as connection:
        await connection.execute("create schema app; create table app.things ()")
    with pytest.raises(Conflict, match="something in app;"):
        await restore(empty_database, backed_up)


async def test_force_keeps_what_was_there_under_another_name(backed_up: Path, database: str) -> None:
    async with connected(database) as connection:
        await Door(connection).advance(requested([step("late")], "wf_late"))
        await connection.execute("create table somebody_else_s (id integer); insert into somebody_else_s values (7)")
    restored = await restore(database, backed_up, force=True)
    public, recorded = restored.aside
    assert public.startswith("public_before_")
    assert recorded.startswith("supabase_migrations_before_")
    assert await _measured(database) == restored.manifest.tables
    async with connected(database) as connection:
        assert await connection.fetchval(f"select count(*) from {public}.workflows") == 13
        assert await connection.fetchval(f"select id from {public}.somebody_else_s") == 7
        assert await Door(connection).advance(completed("b", workflow="wf_0")) != []


async def test_a_restore_that_does_not_give_what_the_manifest_says_is_undone(
    backed_up: Path, tmp_path: Path, database: str, empty_database: str
) -> None:
    tables = [table.model_dump() for table in check(backed_up).tables]
    for change in ({"rows": 11}, {"checksum": "1"}):
        other = [{**table, **change} if table["name"] == "workflows" else table for table in tables]
        changed = rewrite(backed_up, tmp_path / "other.zip", manifest_with(tables=other))
        with pytest.raises(StoreUnavailable, match="restored of workflows is not what the manifest says; the restore was undone"):
            await restore(empty_database, changed)
        assert await _is_empty(empty_database)
        before = await _measured(database)
        with pytest.raises(StoreUnavailable, match="was undone"):
            await restore(database, changed, force=True)
        assert await _measured(database) == before


async def test_a_backup_of_an_older_schema_is_brought_to_this_release_s(
    empty_database: str, postgres: Postgres, tmp_path: Path
) -> None:
    everything, folder = migrations.load(), tmp_path / "older"
    folder.mkdir()
    for path in sorted(migrations.FOLDER.glob("*.sql"))[:-2]:
        shutil.copy(path, folder)
    await migrations.migrate(empty_database, folder=folder)
    manifest = await back_up(empty_database, tmp_path / "backup.zip")
    assert manifest.schema_version == everything[-3].version
    target = postgres.create_empty()
    assert (await restore(target, tmp_path / "backup.zip")).migrated == everything[-2:]
    assert await migrations.missing(target) == []
    postgres.drop(target)


@pytest.fixture
def roles(postgres: Postgres) -> Iterator[None]:
    """Supabase's roles, and the rights that it gives them on what is new."""
    names = ("anon", "authenticated", "service_role")
    postgres.execute(*(f"create role {name} nologin" for name in names))
    yield
    postgres.execute(*(f"drop role {name}" for name in names))


_RIGHTS = """
    select 'table ' || c.relname as name, a.grantee::regrole::text as role, a.privilege_type as what
    from pg_class as c, aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) as a
    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.grantee <> c.relowner
    union all select 'function ' || p.oid::regprocedure::text, a.grantee::regrole::text, a.privilege_type
    from pg_proc as p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
    where p.pronamespace = 'public'::regnamespace and a.grantee <> p.proowner
    union all select 'row security ' || c.relname, '', c.relrowsecurity::text
    from pg_class as c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
    order by 1, 2, 3
"""


@pytest.mark.parametrize("force", [False, True])
async def test_everybody_has_the_rights_that_a_migrated_database_gives(
    postgres: Postgres, database: str, tmp_path: Path, roles: None, force: bool
) -> None:
    file = tmp_path / "backup.zip"
    async with connected(database) as connection:
        await connection.execute("create table somebody_else_s ()")
    await back_up(database, file)
    generous = "alter default privileges in schema public grant all on {} to anon, authenticated, service_role"
    migrated, restored = postgres.create_empty(), postgres.create_empty()
    for dsn in (migrated, restored):
        async with connected(dsn) as connection:
            for kind in ("tables", "functions", "sequences"):
                await connection.execute(generous.format(kind))
            await connection.execute("grant usage on schema public to anon, authenticated, service_role")
    await migrations.migrate(migrated)
    if force:
        await migrations.migrate(restored)
    await restore(restored, file, force=force)
    rights = []
    for dsn in (migrated, restored):
        async with connected(dsn) as connection:
            rights.append([tuple(row) for row in await connection.fetch(_RIGHTS)])
            await connection.execute("set role service_role")
            await connection.fetchval("select list_workflows()")
            await connection.execute("reset role; set role anon")
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="for function"):
                await connection.fetchval("select list_workflows()")
    # What Supabase gives to its server role beyond what the platform asks for hangs on the project, not on the backup.
    kept = [
        [right for right in found if right[1] != "service_role" or right[2] in ("SELECT", "INSERT", "UPDATE", "EXECUTE")]
        for found in rights
    ]
    assert kept[0] == [right for right in kept[1] if "somebody_else_s" not in right[0]]
    assert {right[1] for right in kept[1]} == {"service_role", ""}
    for dsn in (migrated, restored):
        postgres.drop(dsn)


async def test_a_file_that_is_there_is_never_overwritten(database: str, backed_up: Path) -> None:
    before = _bytes(backed_up)
    with pytest.raises(ConfigurationError, match="File exists"):
        await back_up(database, backed_up)
    assert _bytes(backed_up) == before


async def test_a_backup_that_fails_leaves_no_file(
    database: str, tmp_path: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "backup.zip"
    with pytest.raises(ConfigurationError, match="nothing to back up"):
        await back_up(empty_database, file)
    monkeypatch.setattr(dumping, "connection", lambda dsn: ("postgresql://postgres@/postgres?host=/nowhere", {}))
    with pytest.raises(StoreUnavailable, match="pg_dump failed"):
        await back_up(database, file)
    assert _files(tmp_path) == []


async def test_a_cancelled_backup_ends_its_program_and_leaves_no_file(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "pid"
    slow = tmp_path / "bin" / "pg_dump"
    _script(slow, f"echo $$ > {begun}.new; mv {begun}.new {begun}; exec sleep 100")
    monkeypatch.setattr(dumping, "find_programs", lambda at_least: Programs(slow.parent, at_least))
    file = tmp_path / "backup.zip"
    backing_up = asyncio.create_task(back_up(database, file))
    async with asyncio.timeout(20):
        while not {begun, file} <= set(_files(tmp_path)):  # noqa: ASYNC110 - it is about another process and a thread
            await asyncio.sleep(0)
    backing_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await backing_up
    async with asyncio.timeout(20):
        while file in _files(tmp_path):  # noqa: ASYNC110 - the thread's last word
            await asyncio.sleep(0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(_bytes(begun)), 0)


def _script(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    file.chmod(0o755)


async def test_a_restore_that_breaks_off_changes_nothing(
    backed_up: Path, empty_database: str, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = await _measured(database), restoring._run

    async def cut_off(*arguments: Any) -> None:
        # What was whole a moment ago ends early now, as when the disk fails.
        monkeypatch.setattr(archive, "pour", _pour_less)
        await run(*arguments)

    for dsn in (empty_database, database):
        monkeypatch.setattr(restoring, "_run", cut_off)
        with pytest.raises(AgentTeamError, match="was undone"):
            await restore(dsn, backed_up, force=True)
        monkeypatch.undo()
    assert await _is_empty(empty_database)
    assert await _measured(database) == before


def _pour_less(file: Path, into: IO[bytes]) -> None:
    with zipfile.ZipFile(file) as whole:
        dump = whole.read("database.dump")
    with suppress(BrokenPipeError), into:
        into.write(dump[: len(dump) * 9 // 10])


async def _is_empty(dsn: str) -> bool:
    async with connected(dsn) as connection:
        count: int = await connection.fetchval(
            "select count(*) from pg_class where relnamespace = 'public'::regnamespace"
            " or relnamespace = to_regnamespace('supabase_migrations')"
        )
        return count == 0


def _bytes(file: Path) -> bytes:
    return file.read_bytes()


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())
