"""Brings a database to the platform's schema, file by file, recorded where the Supabase CLI records it.

`supabase/migrations/<14 digits>_<name>.sql` is applied in the order of the digits, each file in a transaction of its own together
with its record in `supabase_migrations.schema_migrations`; what `supabase db push` applied is not applied again, and the other way round.
"""

from dataclasses import dataclass
from pathlib import Path

import asyncpg

from shared.errors import ConfigurationError
from shared.state.postgres import translate

FOLDER = Path(__file__).parents[2] / "supabase" / "migrations"
_LOCK = "select pg_advisory_xact_lock(hashtext('agent-team migrations'))"
_RECORD = """
    create schema if not exists supabase_migrations;
    create table if not exists supabase_migrations.schema_migrations (version text primary key, statements text[], name text);
"""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its version is the 14 digits, its name the rest."""

    version: str
    name: str
    sql: str


def load(folder: Path = FOLDER) -> list[Migration]:
    """All migrations, oldest first. Raises ConfigurationError when the folder holds none."""
    found = []
    for path in sorted(folder.glob("*.sql")):
        version, _, name = path.stem.partition("_")
        found.append(Migration(version, name, path.read_text(encoding="utf-8")))
    if not found:
        raise ConfigurationError(f"{folder} holds no migrations; the installation is incomplete")
    return found


async def migrate(dsn: str, *, folder: Path = FOLDER) -> list[Migration]:
    """Apply what is missing and return it. Two that run at once take turns. Errors as `Caller.call`."""
    migrations = load(folder)
    try:
        connection = await asyncpg.connect(dsn, timeout=10, command_timeout=300)
    except Exception as error:
        raise translate(error) from error
    try:
        await connection.execute(_RECORD)
        return [one for one in migrations if await _apply(connection, one)]
    except asyncpg.PostgresError as error:
        raise translate(error) from error
    finally:
        await connection.close()


async def missing(dsn: str, *, folder: Path = FOLDER) -> list[Migration]:
    """What `migrate` would apply."""
    migrations = load(folder)
    try:
        connection = await asyncpg.connect(dsn, timeout=10, command_timeout=30)
    except Exception as error:
        raise translate(error) from error
    try:
        if not await connection.fetchval("select to_regclass('supabase_migrations.schema_migrations') is not null"):
            return migrations
        rows = await connection.fetch("select version from supabase_migrations.schema_migrations")
    finally:
        await connection.close()
    applied = {row["version"] for row in rows}
    return [one for one in migrations if one.version not in applied]


async def _apply(connection: "asyncpg.Connection[asyncpg.Record]", migration: Migration) -> bool:
    async with connection.transaction():
        await connection.execute(_LOCK)
        recorded = await connection.fetchval(
            "insert into supabase_migrations.schema_migrations (version, statements, name) values ($1, $2, $3)"
            " on conflict do nothing returning true",
            migration.version,
            [migration.sql],
            migration.name,
        )
        if recorded:
            await connection.execute(migration.sql)
    return bool(recorded)
