"""The whole platform in one process: the same functions, the same SQL and the same messages as in the cloud.

Every function is joined to an in-memory bus. The state is durable: what was submitted goes on after a crash, at once, since with a
bus inside the process nobody else can be working on it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from shared.ai.budget import seed
from shared.config import Settings
from shared.errors import ConfigurationError, Conflict
from shared.ids import workflow_id
from shared.local.home import Home
from shared.messages import Remaining, Usage, WorkflowRequested
from shared.runtime import Runtime
from shared.runtime.dispatcher import Dispatcher
from shared.runtime.joining import join, tune_collector
from shared.runtime.requests import request_event
from shared.runtime.retention import purge_old
from shared.runtime.schedules import start_due
from shared.telemetry import TraceContext, describe_error

_log = logging.getLogger(__name__)
_SWEEP_SECONDS = 1.0
_CLOSE_SECONDS = 1.0
_FOLLOW_SECONDS = 0.05
_ENDINGS = ("workflow.succeeded", "workflow.failed", "workflow.cancelled")


class Platform:
    """A running platform. Open one with `open_platform`."""

    def __init__(self, runtime: Runtime, unfinished: list[str]) -> None:
        self.runtime = runtime
        self.unfinished = unfinished
        """Workflows that an earlier process left unfinished, newest first; they go on."""
        self._dispatcher: Dispatcher = runtime.dispatcher("local")

    async def submit(self, wanted: WorkflowRequested, *, request_key: str | None = None) -> str:
        """Start a workflow and return its id; it is durable by then.

        Raises InputError for a workflow that is not there or does not take the input, Conflict when `request_key` was used for
        another request.
        """
        event = request_event(
            self.runtime,
            wanted,
            workflow=workflow_id(self.runtime.clock.now()),
            request_key=request_key,
            traceparent=TraceContext.new().header,
        )
        for answer in await self._dispatcher.apply([event]):
            if answer["type"] == "accepted":
                return str(answer["workflow"])
        raise Conflict(f"the request key {request_key!r} was used for another request")

    async def follow(self, workflow: str, *, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """The workflow's history entries as they are written, from entry `after` on, until it has ended. Raises NotFound."""
        store = self.runtime.store
        # After its last entry nothing would come any more, and of a workflow that is not there nothing ever.
        if not await store.history(workflow, after=after, limit=1) and (await store.get(workflow))["finished_at"] is not None:
            return
        while True:
            for entry in await store.history(workflow, after=after):
                after = entry["seq"]
                yield entry
                if entry["type"] in _ENDINGS:
                    return
            await self.runtime.clock.sleep(_FOLLOW_SECONDS)


@asynccontextmanager
async def open_platform(settings: Settings, *, runtime: Runtime | None = None, schedules: bool = True) -> AsyncIterator[Platform]:
    """Start everything, yield, and end it in order: handlers in progress finish, the database stops last.

    `runtime` replaces the one that the settings describe, for tests. Without `schedules` no workflow starts by itself.
    Raises ConfigurationError for whatever is not as it must be.
    """
    if settings.agent_bus_provider != "memory":
        raise ConfigurationError(
            f"AGENT_BUS_PROVIDER is {settings.agent_bus_provider}; the platform in one process needs memory, so unset it"
        )
    home = Home(settings.agent_team_home)
    try:
        # The guards live and die with the bus: a claim that outlived it would call work done whose reply was lost with it.
        live = Runtime(settings.model_copy(update={"guards_backend": "memory"})) if runtime is None else runtime
        async with _running(live, schedules=schedules) as platform:
            yield platform
    finally:
        home.release()


@asynccontextmanager
async def _running(live: Runtime, *, schedules: bool) -> AsyncIterator[Platform]:
    try:
        await prepare_database(live)
        await join(live, live.functions)
        left_over = [one for status in ("RUNNING", "QUEUED") for one in await live.store.recent(status=status, limit=1000)]
        # Those that wait go on by themselves one day: nobody waits for their end here, and their budgets are as spent.
        await _restore_budgets(live, [*left_over, *await live.store.recent(status="WAITING", limit=1000)])
        await live.dispatcher("local").apply([{"type": "tick", "recover": True, "limit": 1_000_000}])
        tune_collector()
        sweeping = asyncio.create_task(_sweep(live, schedules=schedules))
        try:
            yield Platform(live, [one["id"] for one in left_over])
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
    finally:
        await _close(live)


async def _restore_budgets(live: Runtime, workflows: list[dict[str, Any]]) -> None:
    """What these workflows have spent is known to the state, and no longer to guards that live in the memory of a process."""
    if live.settings.guards_backend != "memory":
        return
    for head in workflows:
        spent = Usage(**head["usage"])
        if spent != Usage():
            budget = (await live.store.get(head["id"]))["budget"]
            limits = Remaining(max_tokens=budget["max_tokens"], max_cost_microdollars=budget["max_cost_microdollars"])
            await seed(live.guards.limiter, workflow=head["id"], limits=limits, spent=spent)


async def _close(live: Runtime) -> None:
    # What is in progress is durable and starts again with the next platform: nobody should wait for a model to answer.
    with suppress(TimeoutError):
        async with asyncio.timeout(_CLOSE_SECONDS):
            await live.bus.close()
    await live.close()


async def prepare_database(live: Runtime) -> None:
    """Start the embedded database and bring it to the schema; of a given one, only look at the schema."""
    from shared.state import embedded, migrations

    dsn = await asyncio.to_thread(lambda: live.database_url)
    if live.settings.database_url is None:
        await embedded.evict_others(dsn)
        await migrations.migrate(dsn)
    else:
        await migrations.require(dsn)


async def is_guarded(live: Runtime) -> bool:
    """Whether callers of the API have to show who they are."""
    return live.settings.api_audience is not None or await live.store.keys.exist()


async def _sweep(live: Runtime, *, schedules: bool) -> None:
    """What the sweeper function does every minute in the cloud."""
    dispatcher = live.dispatcher("sweeper")
    while True:
        await live.clock.sleep(_SWEEP_SECONDS)
        try:
            await dispatcher.apply([{"type": "tick"}])
            if schedules:
                await start_due(live, dispatcher)
            await purge_old(live, max_batches=1)
        except Exception as error:
            # The next sweep finds all of it again.
            _log.warning("sweep failed", extra={"error": describe_error(error)})
