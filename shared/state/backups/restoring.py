"""Restores a backup: whole or not at all, in one transaction, which commits only if what is there then is what the manifest says.

Nothing is touched before the file was read to its end. What the database held before is refused, or with `aside` kept: its schemas
get another name in the same transaction. Owners and rights are not the backup's but those of where it goes: the API's public roles
get nothing, Supabase's server role gets what `supabase/schemas/*_access.sql` says, and none of them need be there.
"""

import asyncio
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import asyncpg

from shared.errors import AgentTeamError, ConfigurationError, Conflict, InputError, StoreUnavailable
from shared.state import migrations
from shared.state.backups import archive
from shared.state.backups.archive import Manifest
from shared.state.backups.checksums import SCHEMAS, SETTINGS, statement
from shared.state.backups.dumping import COMMAND_SECONDS, Started, apart, contents
from shared.state.backups.programs import Programs, connection, find_programs, session_dsn
from shared.state.postgres import connected
from shared.state.sqlstates import error_for

_DIFFERS: Final = "AT001"
_HOLDS: Final = """
    select coalesce(array_agg(distinct n.nspname::text order by n.nspname::text), '{}')
    from pg_catalog.pg_namespace as n
    join (
        select oid, relnamespace as namespace, relowner as owner from pg_catalog.pg_class
        union all select oid, pronamespace, proowner from pg_catalog.pg_proc
    ) as o on o.namespace = n.oid
    where n.nspname <> 'information_schema' and n.nspname not like 'pg\\_%'
        and pg_catalog.pg_get_userbyid(o.owner) not like 'supabase\\_%'
        and not exists (select from pg_catalog.pg_depend as d where d.objid = o.oid and d.deptype = 'e')
"""
"""Schemas in which there is anything that is neither an extension's nor Supabase's own."""
_CLOSE: Final = """
    revoke execute on all functions in schema public from public;
    revoke all on all tables in schema public from public;
    do $$
    declare role name;
    begin
        for role in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated') loop
            execute pg_catalog.format('revoke all on all functions in schema public from %I', role);
            execute pg_catalog.format('revoke all on all tables in schema public from %I', role);
            execute pg_catalog.format('revoke all on all sequences in schema public from %I', role);
        end loop;
        for role in select rolname from pg_catalog.pg_roles where rolname in ('anon', 'authenticated', 'service_role') loop
            execute pg_catalog.format('grant usage on schema public to %I', role);
        end loop;
    end;
    $$;
"""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done: the backup's manifest, the migrations applied after it, and where what was there before is kept."""

    manifest: Manifest
    migrated: list[migrations.Migration]
    aside: list[str]


async def readable(file: Path) -> Manifest:
    """The manifest of a backup that this release and this machine can restore; every byte was read. Raises InputError."""
    manifest = await asyncio.to_thread(archive.check, file)
    newest = migrations.load()[-1].version
    if manifest.schema_version > newest:
        raise InputError(
            f"{file} has the schema {manifest.schema_version}, this release knows {newest} at most; "
            "restore it with the release that made it"
        )
    await contents(await asyncio.to_thread(find_programs, manifest.dumped_by), file)
    return manifest


async def restore(dsn: str, file: Path, *, force: bool = False) -> Restored:
    """Put what `file` holds into the database of `dsn`, and bring it to this release's schema.

    Raises InputError for a file that cannot be restored, Conflict for a database that is not empty, unless `force` moves what it
    has aside; in both cases, and whenever the transaction fails, nothing was changed. Other errors as `Caller.call`.
    """
    dsn, manifest = session_dsn(dsn), await readable(file)
    programs = await asyncio.to_thread(find_programs, manifest.dumped_by)
    async with connected(dsn) as own:
        aside = await _aside(own, manifest, force=force)
    opening = await _opening(programs, file, aside)
    await _run(programs, dsn, file, opening, manifest)
    migrated = await migrations.migrate(dsn)
    async with connected(dsn) as own:
        for path in sorted(migrations.FOLDER.with_name("schemas").glob("*_access.sql")):
            await own.execute(path.read_text(encoding="utf-8"))
    return Restored(manifest, migrated, list(aside.values()))


async def _aside(own: "asyncpg.Connection[asyncpg.Record]", manifest: Manifest, *, force: bool) -> dict[str, str]:
    """The schemas that must make room, each with its new name."""
    server = int(await own.fetchval("show server_version_num")) // 10_000
    if server < manifest.server_version:
        raise ConfigurationError(
            f"the backup is of PostgreSQL {manifest.server_version}, the database of {server}; "
            f"restore into {manifest.server_version} or newer"
        )
    held: list[str] = await own.fetchval(_HOLDS)
    if held and not force:
        raise Conflict(
            f"the database is not empty: there is something in {', '.join(held)}; give another one with --database NAME, "
            "or --force, which keeps what is there under another name"
        )
    stamp = datetime.now(UTC).strftime("%Y%m%d%H%M%S")
    return {name: f"{name}_before_{stamp}" for name in held if name in SCHEMAS}


async def _opening(programs: Programs, file: Path, aside: dict[str, str]) -> tuple[str, str]:
    """The first statements, and the list of what pg_restore takes: everything but the schemas, which are made here."""
    moved = "".join(f'alter schema "{name}" rename to "{new}";\n' for name, new in aside.items())
    made = "".join(f"create schema if not exists {name};\n" for name in SCHEMAS)
    opened = "" if "public" not in aside else "grant usage on schema public to public;\n"
    listed = await contents(programs, file)
    kept = [line for line in listed.splitlines() if re.match(r"\d+; \d+ \d+ (SCHEMA|COMMENT) - (SCHEMA )?", line) is None]
    return f"begin;\nset local client_min_messages = error;\n{moved}{made}{opened}", "\n".join(kept)


def _closing(manifest: Manifest) -> str:
    """The last statements: nobody gets in, and every table is compared with the manifest before anything is committed."""
    # The dump's own settings last for the session.
    parts = ["reset all;", _CLOSE, SETTINGS]
    for number, table in enumerate(manifest.tables):
        counted = statement(table.schema_name, table.name)
        parts.append(f"\\echo {number}")
        # As a string, since a table's name may be anything.
        differs = (
            f"select (m.rows, m.checksum) is distinct from ({table.rows}::bigint, '{table.checksum}'::text) from ({counted}) as m"
        )
        parts.append(
            f"select pg_catalog.set_config('agent_team.differs', ({differs})::text, true) \\g /dev/null\n"
            "do $$ begin if pg_catalog.current_setting('agent_team.differs')::boolean then"
            f" raise exception using errcode = '{_DIFFERS}'; end if; end; $$;"
        )
    return "\n".join([*parts, "commit;", "\\echo done", ""])


async def _run(programs: Programs, dsn: str, file: Path, opening: tuple[str, str], manifest: Manifest) -> None:
    where, environment = connection(dsn)
    options = ("--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password", "--set=ON_ERROR_STOP=1")
    command = programs.command("psql", *options, "--set=VERBOSITY=sqlstate", f"--dbname={where}")

    def work(started: Started) -> None:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            shell = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=out, stderr=err)
            started.append(shell)
            _script(programs, file, opening, _closing(manifest), started)
            shell.wait(timeout=COMMAND_SECONDS)
            out.seek(0)
            err.seek(0)
            told = out.read().decode().split()
            if not told or told[-1] != "done":
                raise _failure(err.read().decode(errors="replace"), told, manifest)

    await apart(work)


def _script(programs: Programs, file: Path, opening: tuple[str, str], closing: str, started: Started) -> None:
    """Feed psql, the first that was started. Only `closing` commits: what ends before it, however it ends, has changed nothing."""
    psql = started[0].stdin
    assert psql is not None
    # A pipe that breaks means that psql has ended, and has told why on its standard error.
    with suppress(BrokenPipeError), tempfile.NamedTemporaryFile("w") as listed, psql:
        psql.write(opening[0].encode())
        psql.flush()
        listed.write(opening[1])
        listed.flush()
        options = ("--no-owner", "--no-privileges", f"--use-list={listed.name}", "--file=-")
        command = programs.command("pg_restore", *options)
        reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=psql, stderr=subprocess.DEVNULL)
        started.append(reader)
        assert reader.stdin is not None
        archive.pour(file, reader.stdin)
        if reader.wait() == 0:
            psql.write(closing.encode())


def _failure(said: str, told: list[str], manifest: Manifest) -> AgentTeamError:
    found = re.search(r"(?:ERROR|FATAL): +([0-9A-Z]{5})", said)
    if found is None:
        return StoreUnavailable("the restore broke off, and was undone; see that the server runs, and try again")
    if found[1] == _DIFFERS:
        table = manifest.tables[int(told[-1])].name
        return StoreUnavailable(f"what was restored of {table} is not what the manifest says; the restore was undone")
    return error_for(found[1], "while restoring; it was undone", fixes={})
