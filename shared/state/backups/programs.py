"""PostgreSQL's own programs, and how they are told where the database is: a password goes by the environment, never by argument."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from shared.errors import ConfigurationError
from shared.state.embedded import program_folders

_NAMES: Final = ("pg_dump", "pg_restore", "psql")
_OURS: Final = ("statement_cache_size", "pgbouncer")
_SECRET: Final = ("password", "sslpassword")
_POOLER_PORT: Final = ":6543"
_SUPABASE: Final = (".supabase.com", ".supabase.co")


@dataclass(frozen=True, slots=True)
class Programs:
    """A folder that has pg_dump, pg_restore and psql of one version."""

    folder: Path
    major: int

    def command(self, name: str, *arguments: str) -> list[str]:
        """What to run."""
        return [str(self.folder / name), *arguments]


def find_programs(at_least: int) -> Programs:
    """Those on the PATH, else the embedded PostgreSQL's own, of major version `at_least` or newer. Raises ConfigurationError."""
    older = []
    for folder in _folders():
        major = _major(folder)
        if major is not None and major >= at_least:
            return Programs(folder, major)
        if major is not None:
            older.append(f"{major} in {folder}")
    found = f" (there is {', '.join(older)})" if older else ""
    raise ConfigurationError(
        f"this takes pg_dump, pg_restore and psql of PostgreSQL {at_least} or newer{found}; "
        f"install postgresql-client-{at_least} and put it on the PATH"
    )


def session_dsn(dsn: str) -> str:
    """`dsn` as it leads to a session of its own. Raises ConfigurationError for a transaction pooler that there is no way around.

    pg_dump leaves an empty search_path behind, which a transaction pooler would hand to other clients. Supabase's hosts listen for
    sessions on port 5432: https://supabase.com/docs/guides/database/connecting-to-postgres.
    """
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    at_supabase = (parts.netloc.rpartition("@")[2].partition(":")[0]).endswith(_SUPABASE)
    pooled = query.get("pgbouncer") == "true" or parts.netloc.endswith(_POOLER_PORT)
    if pooled and not at_supabase:
        raise ConfigurationError(
            "DATABASE_URL leads to a transaction pooler, through which PostgreSQL's programs must not go; "
            "set it to the server's own address for this command"
        )
    netloc = f"{parts.netloc.removesuffix(_POOLER_PORT)}:5432" if parts.netloc.endswith(_POOLER_PORT) else parts.netloc
    return _joined(parts._replace(netloc=netloc, query=_query(query, without=_OURS)))


def connection(dsn: str) -> tuple[str, dict[str, str]]:
    """The connection string as an argument, without the password, and the environment that has it."""
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    login, at, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    given = query.get("password", unquote(password))
    environment = {**os.environ, "PGAPPNAME": "agent-team", "PGCONNECT_TIMEOUT": "10"}
    if given:
        environment["PGPASSWORD"] = given
    bare = parts._replace(netloc=f"{user}{at}{hosts}", query=_query(query, without=(*_OURS, *_SECRET)))
    return _joined(bare), environment


def for_database(dsn: str, name: str) -> str:
    """`dsn` with another database of the same server."""
    return _joined(urlsplit(dsn)._replace(path=f"/{quote(name, safe='')}"))


def has_password(dsn: str) -> bool:
    """Whether a connection string holds a password."""
    return urlsplit(dsn).password is not None or any(name in _SECRET for name, _ in parse_qsl(urlsplit(dsn).query))


def _joined(parts: SplitResult) -> str:
    """Not `urlunsplit`, which drops the slashes of an address without a host."""
    return f"{parts.scheme}://{parts.netloc}{parts.path}{'?' if parts.query else ''}{parts.query}"


def _query(query: dict[str, str], *, without: tuple[str, ...]) -> str:
    return urlencode({name: value for name, value in query.items() if name not in without}, safe="/", quote_via=quote)


def _folders() -> list[Path]:
    on_path = shutil.which("pg_dump")
    return [*([] if on_path is None else [Path(on_path).parent]), *program_folders()]


def _major(folder: Path) -> int | None:
    if not all((folder / name).exists() for name in _NAMES):
        return None
    try:
        told = subprocess.run([folder / "pg_dump", "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\(PostgreSQL\) (\d+)", told)
    return None if found is None else int(found[1])
