"""An outage that outlasts every attempt: the whole platform, from the dead letter to the finished report."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bus import Bus
from shared.clock import SystemClock
from shared.config import Settings
from shared.errors import StoreUnavailable
from shared.guards import Claim, Guards, Idempotency, open_guards
from shared.local import Platform, open_platform
from shared.local.server import create_app
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from shared.runtime.spec import FunctionSpec, load_functions
from tests.support.buses import BUSES, serving
from tests.support.doubles import SECRET

BRIEF = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails?"


class FullStore:
    """Claims that cannot keep a reply while `is_full`."""

    def __init__(self, inner: Idempotency) -> None:
        self.is_full = True
        self._inner = inner

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        return await self._inner.claim(key, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        return await self._inner.renew(key, token=token, lease_seconds=lease_seconds)

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        if self.is_full and result is not None:
            raise StoreUnavailable("the guards' store is full")
        return await self._inner.complete(key, token=token, result=result)

    async def release(self, key: str, *, token: str) -> bool:
        return await self._inner.release(key, token=token)


async def ended(platform: Platform, workflow: str, *, after: int = 0) -> dict[str, Any]:
    async with asyncio.timeout(60):
        async for _ in platform.follow(workflow, after=after):
            pass
    return await platform.runtime.store.get(workflow)


@pytest.mark.parametrize("bus", BUSES)
async def test_a_workflow_that_an_outage_failed_is_finished_after_a_redrive(bus: str, database: str, tmp_path: Path) -> None:
    hasty = {"max_attempts": 5, "min_backoff_seconds": 0.01, "max_backoff_seconds": 0.02}
    functions = load_functions()
    functions["planner"] = functions["planner"].model_copy(update=hasty)
    async with serving(bus, [one for spec in functions.values() for one in spec.subscriptions()]) as open_one:
        await redrive_after_outage(open_one(), functions, database, tmp_path)


async def redrive_after_outage(bus: Bus, functions: dict[str, FunctionSpec], database: str, tmp_path: Path) -> None:
    settings = Settings(database_url=database, agent_team_home=tmp_path, comm_hmac_default_secret=SECRET)
    memory = open_guards("memory", SystemClock())
    store = FullStore(memory.idempotency)
    live = Runtime(settings, guards=Guards(store, memory.limiter, memory.breaker, memory.cache), bus=bus)
    live.functions.update(functions)
    async with (
        open_platform(settings, runtime=live) as platform,
        httpx.AsyncClient(transport=httpx.ASGITransport(create_app(live)), base_url="http://local") as client,
    ):
        workflow = await platform.submit(WorkflowRequested(workflow="report", input={"brief": BRIEF}))
        failed = await ended(platform, workflow)
        assert (failed["status"], failed["error"]["type"], failed["error"]["step"]) == ("FAILED", "DeadLettered", "plan")

        (letter,) = (await client.get("/v1/dead-letters", params={"workflow": workflow})).json()["items"]
        assert (letter["function"], letter["cause"], letter["attempts"], letter["state"]) == ("planner", "store", 5, "waiting")
        assert letter["last_error"]["message"] == "the guards' store is full"

        store.is_full = False
        told = (await client.post("/v1/dead-letters/redrive", json={"cause": "store"})).json()
        assert (told["matched"], told["redriven"], told["dry_run"]) == (1, 1, True)
        assert (await live.store.get(workflow))["status"] == "FAILED"
        done = (await client.post("/v1/dead-letters/redrive", json={"cause": "store", "dry_run": False})).json()
        assert (done["redriven"], done["refused"]) == (1, [])

        finished = await ended(platform, workflow, after=failed["seq"])
        assert finished["status"] == "SUCCESS"
        assert finished["output"]["text"]
        assert next(step["attempt"] for step in finished["steps"] if step["id"] == "plan") == 2
        assert (await client.post("/v1/dead-letters/redrive", json={})).json()["matched"] == 0
