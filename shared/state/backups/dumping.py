"""Makes a backup: pg_dump and our own count of what there is see the same snapshot, however much is written meanwhile.

https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-SNAPSHOT-SYNCHRONIZATION
"""

import asyncio
import subprocess
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from shared.errors import ConfigurationError, InputError, StoreUnavailable
from shared.state.backups import archive
from shared.state.backups.archive import Dump, Manifest
from shared.state.backups.checksums import SCHEMAS, SETTINGS, measure
from shared.state.backups.programs import Programs, connection, find_programs, session_dsn
from shared.state.postgres import connected

COMMAND_SECONDS = 3600.0
Started = list["subprocess.Popen[bytes]"]
_Answer = TypeVar("_Answer")


async def back_up(dsn: str, file: Path) -> Manifest:
    """Dump the platform's database into `file`, which must not exist, and read it back; what cannot be read back is removed.

    Raises ConfigurationError where there is nothing to dump or no program to do it, StoreUnavailable when it fails.
    """
    made = await _dump(session_dsn(dsn), file)
    try:
        read = await asyncio.to_thread(archive.check, file)
        await contents(await asyncio.to_thread(find_programs, made.dumped_by), file)
    except InputError as error:
        await asyncio.to_thread(file.unlink, missing_ok=True)
        raise StoreUnavailable(f"what was written cannot be read back: {error}") from error
    if read != made:
        raise StoreUnavailable(f"{file} does not say what was written to it; somebody else writes there")
    return read


async def contents(programs: Programs, file: Path) -> str:
    """What the dump in `file` holds, as `pg_restore --list` tells it. Raises InputError."""

    def work(started: Started) -> str:
        with tempfile.TemporaryFile() as listed:
            process = subprocess.Popen(
                programs.command("pg_restore", "--list"), stdin=subprocess.PIPE, stdout=listed, stderr=subprocess.DEVNULL
            )
            started.append(process)
            assert process.stdin is not None
            archive.pour(file, process.stdin)
            if process.wait() != 0:
                raise InputError(f"{file} holds a dump that pg_restore {programs.major} cannot read; take another one")
            listed.seek(0)
            return listed.read().decode()

    return await apart(work)


async def apart(work: Callable[[Started], _Answer]) -> _Answer:
    """Run `work` in a thread; it adds the processes that it waits for to its argument. When we are cancelled they are killed."""
    started: Started = []
    try:
        return await asyncio.to_thread(work, started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
            process.wait()


async def _dump(dsn: str, file: Path) -> Manifest:
    async with connected(dsn, command_timeout_seconds=COMMAND_SECONDS) as own:
        if not await own.fetchval("select to_regclass('supabase_migrations.schema_migrations') is not null"):
            raise ConfigurationError("the database does not have the platform's schema: there is nothing to back up")
        server = int(await own.fetchval("show server_version_num")) // 10_000
        programs = await asyncio.to_thread(find_programs, server)
        async with own.transaction(isolation="repeatable_read", readonly=True):
            await own.execute(SETTINGS)
            snapshot = str(await own.fetchval("select pg_catalog.pg_export_snapshot()"))
            version = str(await own.fetchval("select max(version) from supabase_migrations.schema_migrations"))
            # Not at the same time: what is counted is needed for the manifest, which stands in the file that the dump goes to.
            made_at, tables = datetime.now(UTC), await measure(own)

            def manifest(dump: Dump) -> Manifest:
                about = {"format": archive.FORMAT, "made_at": made_at, "schema_version": version}
                return Manifest(**about, server_version=server, dumped_by=programs.major, tables=tables, dump=dump)

            return await _write(programs, dsn, snapshot, file, manifest)


async def _write(programs: Programs, dsn: str, snapshot: str, file: Path, manifest: Callable[[Dump], Manifest]) -> Manifest:
    where, environment = connection(dsn)
    options = (
        "--format=custom",
        f"--snapshot={snapshot}",
        "--no-owner",
        "--no-privileges",
        "--no-password",
        "--lock-wait-timeout=60s",
    )
    command = programs.command("pg_dump", *options, *(f"--schema={name}" for name in SCHEMAS), f"--dbname={where}")

    def work(started: Started) -> Manifest:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        started.append(process)

        def finished(dump: Dump) -> Manifest:
            if process.wait() != 0:
                raise StoreUnavailable(
                    "pg_dump failed; the server's log says why. See that the user of DATABASE_URL owns the tables"
                )
            return manifest(dump)

        assert process.stdout is not None
        with process.stdout:
            return archive.write(file, process.stdout, finished)

    return await apart(work)
