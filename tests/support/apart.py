"""A team whose agents are functions of the test, over the real bus and the real state; and stores of outputs that fail."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from shared.ai import Model
from shared.bus import Subscription
from shared.config import load_settings
from shared.errors import StoreUnavailable
from shared.outputs import Outputs, OutputStore
from shared.runtime import Runtime
from shared.runtime.contract import Run
from shared.runtime.joining import join
from shared.runtime.pipeline import Pipeline
from shared.runtime.team import AgentWork, ModelSettings
from shared.state import WorkflowStore
from shared.state.postgres import PostgresCaller
from tests.support.doubles import SECRET, WORKFLOW, ScriptedModel


@asynccontextmanager
async def working(
    database: str, home: Path, agents: Mapping[str, Run], outputs: Outputs | None = None, **variables: str
) -> AsyncIterator[Runtime]:
    """The orchestrator and these agents at work; `variables` are settings by their environment names."""
    settings = load_settings({"AGENT_TEAM_HOME": str(home), "COMM_HMAC_DEFAULT_SECRET": SECRET, **variables})
    live = Runtime(settings, store=WorkflowStore(PostgresCaller(database), max_running=10), outputs=outputs)
    try:
        await join(live, ["orchestrator"])
        for name, run in agents.items():
            await live.bus.subscribe(
                Subscription(f"agent-{name}.{name}", f"agent-{name}", ack_deadline_seconds=60, min_backoff_seconds=0.05),
                _pipeline(live, name, run),
            )
        yield live
    finally:
        await live.close()


def _pipeline(live: Runtime, name: str, run: Run) -> Pipeline:
    model: Model = ScriptedModel({"text": "not asked"})
    work = AgentWork(
        name,
        run,
        prompt=None,
        model=model,
        settings=ModelSettings(temperature=0.2, max_tokens=100),
        sender=live.sender(name),
        clock=live.clock,
        limiter=live.guards.limiter,
        cancellations=live.cancellations,
        progress=live.progress,
        outputs=live.outputs,
    )
    return Pipeline(live.link, name, work, longest_seconds=60, keeps_reply=True)


async def ended(live: Runtime, workflow: str = WORKFLOW, *, within_seconds: float = 60) -> dict[str, Any]:
    """The workflow, once it has ended."""
    async with asyncio.timeout(within_seconds):
        while True:
            found = await live.store.get(workflow)
            if found["finished_at"] is not None:
                return found
            await asyncio.sleep(0.02)


class FailingStore:
    """`inner`, which is down as often as `failures` says, and loses or changes what it has when told."""

    def __init__(self, inner: OutputStore, *, failures: int = 0) -> None:
        self.failures = failures
        self.calls: list[str] = []
        self._inner = inner

    async def put(self, id: str, data: bytes) -> None:
        self._try("put")
        await self._inner.put(id, data)

    async def get(self, id: str) -> bytes | None:
        self._try("get")
        return await self._inner.get(id)

    async def stale(self, older_than: timedelta) -> list[str]:
        return await self._inner.stale(older_than)

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        return await self._inner.remove(ids, older_than)

    async def close(self) -> None:
        await self._inner.close()

    def _try(self, call: str) -> None:
        self.calls.append(call)
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("the store of the tests is down")
