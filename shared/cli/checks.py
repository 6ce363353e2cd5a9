"""What `agent-team doctor` looks at. Looking changes nothing: no folder, no secret and no database is made."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.ai import load_prompt
from shared.cli.output import counted, describe_model
from shared.config import Settings, load_settings, redact_url
from shared.errors import AgentTeamError
from shared.runtime import Runtime, health, load
from shared.runtime.spec import FUNCTIONS
from shared.state import migrations

_OLDEST_PYTHON = (3, 11)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `advice` says what to do; it is empty where nothing is to be done."""

    name: str
    ok: bool
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


async def examine() -> list[Check]:
    """Every finding about this installation and its environment."""
    logging.getLogger().addHandler(logging.NullHandler())  # the findings say it; nothing is to be logged on top
    checks = [_python()]
    try:
        settings = load_settings()
    except AgentTeamError as error:
        return [*checks, Check("configuration", False, str(error), "mend these variables, in the environment or in .env")]
    live = Runtime(settings)
    checks.append(Check("configuration", True, f"{settings.app_env}, no mistakes"))
    examinations: tuple[tuple[str, Callable[[Runtime], Awaitable[Check]]], ...] = (
        ("data folder", _home),
        ("signing secret", _secret),
        ("database", _database),
        ("functions", _functions),
        ("prompts", _prompts),
        ("workflows", _workflows),
        ("model", _model),
        ("bus", _bus),
        ("guards", _guards),
    )
    for name, examination in examinations:
        try:
            checks.append(await examination(live))
        except AgentTeamError as error:
            where = health.where_database(live) if name == "database" else ""
            found, _, advice = health.explain(error, where).partition("; ")
            checks.append(Check(name, False, found, advice))
    await live.close()
    return checks


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= _OLDEST_PYTHON
    return Check("python", ok, found, "" if ok else "use Python 3.11 or newer")


async def _home(live: Runtime) -> Check:
    folder = live.settings.agent_team_home.resolve()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return Check("data folder", False, f"{nearest} is not a folder that can be written", "mend that, or set AGENT_TEAM_HOME")
    return Check("data folder", True, str(folder) if nearest == folder else f"{folder}, made on first use")


async def _secret(live: Runtime) -> Check:
    given = live.settings.comm_hmac_default_secret is not None
    if not given and not (live.settings.agent_team_home / "hmac-secret").exists():
        return Check("signing secret", True, "made on first use, kept in the data folder")
    _ = live.ring
    where = "from COMM_HMAC_DEFAULT_SECRET" if given else "kept in the data folder"
    return Check("signing secret", True, f"{where}, signing as {live.settings.comm_hmac_active_key_id}")


async def _database(live: Runtime) -> Check:
    url = live.settings.database_url
    if url is None and not _embedded_exists(live.settings):
        return Check("database", True, "embedded PostgreSQL, made on first use")
    dsn = await asyncio.to_thread(lambda: live.database_url)
    missing = await migrations.missing(dsn)
    where = "embedded PostgreSQL" if url is None else redact_url(url)
    if missing:
        # The embedded database is brought up to date whenever the platform starts.
        return Check("database", url is None, f"{where}, {counted(len(missing), 'migration')} missing", "run agent-team migrate")
    await health.ask_database(live)
    return Check("database", True, f"{where}, schema current")


def _embedded_exists(settings: Settings) -> bool:
    return (settings.agent_team_home / "postgres" / "PG_VERSION").exists()


async def _functions(live: Runtime) -> Check:
    for name in live.functions:
        load(name)
    return Check("functions", True, ", ".join(live.functions))


async def _prompts(live: Runtime) -> Check:
    files = [file for name in live.functions if (file := Path(FUNCTIONS / name / "prompt.md")).exists()]
    for file in files:
        load_prompt(file)
    return Check("prompts", True, f"{counted(len(files), 'prompt')} can be read")


async def _workflows(live: Runtime) -> Check:
    return Check("workflows", True, ", ".join(sorted(live.definitions)))


async def _model(live: Runtime) -> Check:
    await health.ask_model(live)
    return Check("model", True, describe_model(live.settings))


async def _bus(live: Runtime) -> Check:
    _ = live.bus
    return Check("bus", True, live.settings.agent_bus_provider)


async def _guards(live: Runtime) -> Check:
    settings = live.settings
    await health.ask_guards(live)
    where = {"memory": "", "redis": redact_url(settings.redis_url or ""), "firestore": settings.gcp_project_id or ""}
    return Check("guards", True, f"{settings.guards_backend} {where[settings.guards_backend]}".rstrip())
