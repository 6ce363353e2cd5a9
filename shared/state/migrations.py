"""Brings a database to the platform's schema, file by file, recorded where the Supabase CLI records it.

`supabase/migrations/<14 digits>_<name>.sql` is applied in the order of the digits, each file in a transaction of its own together
with its record in `supabase_migrations.schema_migrations`. What `supabase db push` applied is not applied again, and vice versa.
"""

from dataclasses import dataclass
from pathlib import Path

import asyncpg

from shared.errors import ConfigurationError
from shared.state.postgres import connected

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
    async with connected(dsn, command_timeout_seconds=300) as connection:
        async with connection.transaction():
            await connection.execute(_LOCK)
            await connection.execute(_RECORD)
        return [one for one in migrations if await _apply(connection, one)]


async def missing(dsn: str, *, folder: Path = FOLDER) -> list[Migration]:
    """What `migrate` would apply. Errors as `Caller.call`."""
    migrations = load(folder)
    async with connected(dsn) as connection:
        if not await connection.fetchval("select to_regclass('supabase_migrations.schema_migrations') is not null"):
            return migrations
        rows = await connection.fetch("select version from supabase_migrations.schema_migrations")
    applied = {row["version"] for row in rows}
    return [one for one in migrations if one.version not in applied]


async def require(dsn: str) -> None:
    """Raises ConfigurationError when there is something that `migrate` would apply. Other errors as `Caller.call`."""
    if await missing(dsn):
        raise ConfigurationError("the database of DATABASE_URL does not have the platform's schema; run `agent-team migrate`")


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
            try:
                await connection.execute(migration.sql)
            except asyncpg.PostgresError as error:
                name = f"{migration.version}_{migration.name}"
                raise ConfigurationError(f"migration {name} cannot be applied (SQLSTATE {error.sqlstate})") from error
    return bool(recorded)
