"""A database to restore into, by name."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.state.backups.programs import for_database, session_dsn
from shared.state.postgres import connected


@asynccontextmanager
async def made(dsn: str, name: str) -> AsyncIterator[str]:
    """How to connect to the database `name` at the server of `dsn`; made when missing, and dropped when what follows fails."""
    dsn = session_dsn(dsn)
    quoted = '"' + name.replace('"', '""') + '"'
    async with connected(dsn) as own:
        new = not await own.fetchval("select exists (select from pg_catalog.pg_database where datname = $1)", name)
        if new:
            await own.execute(f"create database {quoted}")
    try:
        yield for_database(dsn, name)
    except BaseException:
        if new:
            async with connected(dsn) as own:
                await own.execute(f"drop database if exists {quoted} with (force)")
        raise
