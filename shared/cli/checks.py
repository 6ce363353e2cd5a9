"""What `agent-team doctor` looks at. Looking changes nothing: no folder, no secret and no database is made."""

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from shared.ai import load_prompt
from shared.cli.output import counted, describe_model
from shared.config import Settings, load_settings, redact_url
from shared.errors import AgentTeamError, BusUnavailable
from shared.redis.store import Command, RedisStore
from shared.runtime import Runtime, health, load
from shared.runtime.spec import FUNCTIONS
from shared.state import migrations
from shared.state.postgres import connected

_OLDEST_PYTHON = (3, 11)
_SKEW_WORTH_A_WORD_SECONDS = 5.0
_SKEW_THAT_BREAKS_SECONDS = 60.0
"""Tokens are refused about then, and signatures of messages soon after."""
_SHORTEST_KEY = 20


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
        ("clock", _clock),
        ("API keys", _api_keys),
        ("functions", _functions),
        ("prompts", _prompts),
        ("workflows", _workflows),
        ("model key", _model_key),
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
    given, in_cloud = live.settings.comm_hmac_default_secret is not None, live.settings.secrets_from == "secret-manager"
    where = "kept in Secret Manager" if in_cloud else "kept in the data folder"
    active = (await live.keys.read()).active
    if active is None:
        if not (given or in_cloud or (live.settings.agent_team_home / "hmac-secret").exists()):
            return Check("signing secret", True, "made on first use, kept in the data folder")
        await live.ring.fresh()
        active, where = live.ring.active, "from COMM_HMAC_DEFAULT_SECRET" if given else where
    return Check("signing secret", True, f"{where}, signing as {active}")


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
    return Check("database", True, f"{where}, schema current, at {migrations.load()[-1].version}")


async def _clock(live: Runtime) -> Check:
    """Ours against the database's: deadlines, tokens and signatures stand on both."""
    if live.settings.database_url is None:
        return Check("clock", True, "the embedded database has this machine's")
    async with connected(live.database_url) as connection:
        before = live.clock.now()
        theirs = await connection.fetchval("select clock_timestamp()")
        after = live.clock.now()
    ours = before + (after - before) / 2
    return judge_skew((ours - theirs).total_seconds(), uncertain_seconds=(after - before).total_seconds() / 2)


def judge_skew(seconds: float, *, uncertain_seconds: float) -> Check:
    """What it means that this machine's clock is so much ahead of the database's, give or take what asking took."""
    least = max(0.0, abs(seconds) - uncertain_seconds)
    found = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} the database's"
    if least > _SKEW_THAT_BREAKS_SECONDS:
        return Check("clock", False, f"{found}: tokens and signatures are refused", "set the clock, and keep it set by NTP")
    if least > _SKEW_WORTH_A_WORD_SECONDS:
        return Check("clock", True, found, "set the clock, and keep it set by NTP, before it is off by a minute")
    return Check("clock", True, "agrees with the database's")


async def _api_keys(live: Runtime) -> Check:
    settings = live.settings
    if settings.database_url is None and not _embedded_exists(settings):
        return Check("API keys", True, "none: whoever reaches the gateway's port may use it")
    async with connected(await asyncio.to_thread(lambda: live.database_url)) as connection:
        known = await connection.fetchval("select to_regclass('api_keys') is not null")
        found = await connection.fetchval("select count(*) from api_keys where revoked_at is null") if known else 0
    if found:
        return Check("API keys", True, f"{counted(found, 'key')} in use")
    if settings.is_production:
        return Check(
            "API keys", False, "none, and in production nobody gets in without one", "make one: agent-team keys api add NAME"
        )
    return Check("API keys", True, "none: whoever reaches the gateway's port may use it")


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


async def _model_key(live: Runtime) -> Check:
    """Whether GEMINI_API_KEY looks like a key at all. Whether Google takes it only a call tells, and that could cost."""
    if live.settings.gemini_api_key is None:
        return Check("model key", True, "none: GEMINI_API_KEY is not set")
    key = live.settings.gemini_api_key.get_secret_value()
    if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable()) or " " in key:
        return Check(
            "model key", False, f"GEMINI_API_KEY has {counted(len(key), 'character')} and does not look like a key", "copy it again"
        )
    return Check("model key", True, "GEMINI_API_KEY looks like a key")


async def _model(live: Runtime) -> Check:
    await health.ask_model(live)
    return Check("model", True, describe_model(live.settings))


async def _bus(live: Runtime) -> Check:
    _ = live.bus
    settings = live.settings
    match settings.agent_bus_provider:
        case "redis" if settings.redis_url is not None:
            await _ping(settings.redis_url.get_secret_value())
            return Check("bus", True, f"redis {redact_url(settings.redis_url)}, answers")
        case "pubsub" if settings.pubsub_emulator_host is not None:
            await _reach(settings.pubsub_emulator_host)
            return Check("bus", True, f"pubsub, emulator at {settings.pubsub_emulator_host}, answers")
        case "pubsub":
            return Check("bus", True, f"pubsub, project {settings.gcp_project_id}; not asked, which would take its credentials")
    return Check("bus", True, settings.agent_bus_provider)


async def _ping(url: str) -> None:
    store = RedisStore(url, Path(), unavailable=BusUnavailable)
    try:
        await store.execute(Command(("PING",), ("PING",)))
    finally:
        await store.close()


async def _reach(address: str) -> None:
    """Whether a Pub/Sub emulator answers at `host:port`."""
    advice = "start it, or correct PUBSUB_EMULATOR_HOST"
    try:
        async with httpx.AsyncClient(timeout=health.CHECK_SECONDS, trust_env=False) as http:
            answer = await http.get(f"http://{address}/")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BusUnavailable(f"the Pub/Sub emulator at {address} cannot be reached ({type(error).__name__}); {advice}") from error
    if not answer.is_success:
        raise BusUnavailable(f"what answers at {address} is no Pub/Sub emulator (HTTP {answer.status_code}); {advice}")


async def _guards(live: Runtime) -> Check:
    settings = live.settings
    await health.ask_guards(live)
    where = {"memory": "", "redis": redact_url(settings.redis_url or ""), "firestore": settings.gcp_project_id or ""}
    return Check("guards", True, f"{settings.guards_backend} {where[settings.guards_backend]}".rstrip())
