"""What this process stands on, and whether it answers: asked by `GET /health/ready` and by `agent-team doctor`.

Asking spends neither money nor quota. What is found is one line a dependency: what is wrong, where, and how to mend it; never a
password.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Final
from uuid import uuid4

from shared.ai.guarded import breaker_state
from shared.config import redact_url
from shared.errors import AgentTeamError, CircuitOpen
from shared.guards import Guards, open_guards
from shared.runtime.wiring import Runtime
from shared.state import over_http
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
KEPT_SECONDS: Final = 5.0
_SHARE: Final = 0.9
"""Of that, after which a check tells by itself what did not answer."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """Something that the process needs. `ask` returns when it answers as it must, and raises the error that says why not."""

    name: str
    where: str
    ask: Callable[[Runtime], Awaitable[None]]


def dependencies(live: Runtime) -> list[Dependency]:
    """Those that the settings ask for."""
    settings = live.settings
    found = [Dependency("database", where_database(live), ask_database)]
    redis = "" if settings.redis_url is None else redact_url(settings.redis_url)
    if settings.guards_backend == "redis":
        found.append(Dependency("redis", redis, ask_guards))
    elif settings.agent_bus_provider == "redis":
        found.append(Dependency("redis", redis, _ask_redis_of_the_bus))
    if settings.guards_backend == "firestore":
        found.append(Dependency("firestore", str(settings.gcp_project_id), ask_guards))
    return [*found, Dependency("ai_service", "", ask_model)]


def explain(error: AgentTeamError, where: str) -> str:
    """What the error says, and where it happened if it does not say so itself."""
    text = " ".join(str(error).split())
    return text if where in text else f"{where}: {text}"


def where_database(live: Runtime) -> str:
    """The database's address, as this process calls it; empty where its errors say it themselves."""
    if over_http(live.settings, live.serves):
        return ""
    url = live.settings.database_url
    return "embedded PostgreSQL" if url is None else redact_url(url)


async def ask_database(live: Runtime) -> None:
    """Whether the platform's functions can be called, the way that this process calls them."""
    await live.store.recent(limit=1)


async def ask_guards(live: Runtime) -> None:
    """Whether the guards' store answers and takes changes."""
    await _claim(live.guards)


async def ask_model(live: Runtime) -> None:
    """Whether one of the models is there, and not all that are asked have just failed repeatedly."""
    _ = live.model
    if live.reach is None:
        return
    begun = live.clock.monotonic()
    left = await _with_closed_circuits(live)
    spent = live.clock.monotonic() - begun
    await live.reach.ask(left, timeout_seconds=CHECK_SECONDS * _SHARE - spent)


async def _with_closed_circuits(live: Runtime) -> list[str]:
    """The models that may be called. Raises CircuitOpen when none is left."""
    models = list(live.asked_models)
    if not live.settings.enable_circuit_breaker:
        return models
    states: list[str] = []
    # While the breakers' store hangs they let every call through: that is the store's fault, and no news of the model.
    with suppress(TimeoutError):
        async with asyncio.timeout(CHECK_SECONDS / 2):
            states = [await breaker_state(live.guards.breaker, model) for model in models]
    if states and all(state == "OPEN" for state in states):
        are = "breaker of {} is" if len(states) == 1 else "breakers of {} are"
        failing = are.format(", ".join(models))
        raise CircuitOpen(f"the circuit {failing} OPEN: calls failed repeatedly; the log says why, and soon a call is tried again")
    return [model for model, state in zip(models, states, strict=True) if state != "OPEN"] if states else models


async def _ask_redis_of_the_bus(live: Runtime) -> None:
    url = live.settings.redis_url
    guards = open_guards("redis", live.clock, redis_url=None if url is None else url.get_secret_value())
    try:
        await _claim(guards)
    finally:
        await guards.close()


async def _claim(guards: Guards) -> None:
    # A claim fails when the store is away, and writes: what is full or read-only shows too. It is gone in a second.
    await guards.idempotency.claim(f"health:{uuid4()}", lease_seconds=1, ttl_seconds=1)


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `errors` has a line for each check that is unhealthy."""

    status: str
    checks: dict[str, str]
    latency_ms: dict[str, float]
    errors: dict[str, str]

    @property
    def healthy(self) -> bool:
        """Whether everything is."""
        return not self.errors

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Readiness:
    """Whether this process can do its work. Who asks while others do, or within five seconds, shares their answer."""

    def __init__(self, live: Runtime) -> None:
        self._live = live
        self._running: asyncio.Task[Report] | None = None
        self._last: Report | None = None
        self._kept_until = 0.0

    async def report(self) -> Report:
        """Ask everything at once; what does not answer within two seconds is unhealthy."""
        if self._running is None:
            if self._last is not None and self._live.clock.monotonic() < self._kept_until:
                return self._last
            self._running = asyncio.create_task(self._ask_all())
        # The one who asked first may go away, the others still wait.
        return await asyncio.shield(self._running)

    async def _ask_all(self) -> Report:
        try:
            found = dependencies(self._live)
            answers = await asyncio.gather(*(self._ask(dependency) for dependency in found))
            names = [dependency.name for dependency in found]
            errors = {name: error for name, (error, _) in zip(names, answers, strict=True) if error is not None}
            self._log_changes(names, errors)
            self._last = Report(
                status="unhealthy" if errors else "healthy",
                checks={name: "unhealthy" if name in errors else "healthy" for name in names},
                latency_ms={name: round(seconds * 1000, 3) for name, (_, seconds) in zip(names, answers, strict=True)},
                errors=errors,
            )
            self._kept_until = self._live.clock.monotonic() + KEPT_SECONDS
            return self._last
        finally:
            self._running = None

    async def _ask(self, dependency: Dependency) -> tuple[str | None, float]:
        """What is wrong, None for nothing, and the seconds that it took to find out."""
        begun = self._live.clock.monotonic()
        wrong = None
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                await dependency.ask(self._live)
        except AgentTeamError as error:
            wrong = explain(error, dependency.where)
        except TimeoutError:
            where = dependency.where or dependency.name
            wrong = f"{where}: no answer within {CHECK_SECONDS:g} s; is it running, not overloaded, and reachable from here?"
        except Exception as error:
            wrong = f"{dependency.name} cannot be checked ({type(error).__name__}); see the log"
            _log.error("check failed", extra={"check": dependency.name, "error": describe_error(error)})
        return wrong, self._live.clock.monotonic() - begun

    def _log_changes(self, names: Iterable[str], errors: dict[str, str]) -> None:
        """A dependency that stays as it is says nothing new every five seconds."""
        before = {} if self._last is None else self._last.errors
        for name in names:
            if name in errors and errors[name] != before.get(name):
                _log.error("%s is unhealthy: %s", name, errors[name], extra={"check": name, "status": "unhealthy"})
            elif name in before and name not in errors:
                _log.warning("%s is healthy again", name, extra={"check": name, "status": "healthy"})
