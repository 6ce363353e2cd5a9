"""Eight worker processes against one quota: the simulator counts what passes it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import pytest

from shared.config import load_settings
from shared.ids import workflow_id
from shared.runtime import Runtime
from shared.runtime.dispatcher import Dispatcher
from shared.state import migrations
from shared.workflows import Definition, requested
from tests.support.live import definition
from tests.support.reports import brief, database_home
from tests.support.servers import redis_server

pytestmark = pytest.mark.timeout(300)
MODEL = "gemini-2.5-flash"
QPS = 20
WORKERS = 8
WORKFLOWS = 300
SECRET = "the secret of the fleet, long enough for all"
FAULTS = ("internal", "unavailable", "dropped", "broken-off")
"""Each by half a percent of the calls: two percent fail."""


@dataclass
class Fleet:
    """Workers that share a Redis, a database and a quota."""

    runtime: Runtime
    dispatcher: Dispatcher
    connection: "asyncpg.Connection[asyncpg.Record]"
    simulator: httpx.AsyncClient

    async def run(self, wanted: Definition, count: int) -> list[str]:
        """Start so many workflows; their ids."""
        ids = [workflow_id(self.runtime.clock.now()) for _ in range(count)]
        for number, one in enumerate(ids):
            given = {"brief": brief(number)[:1500]}
            await self.dispatcher.apply([requested(wanted, workflow=one, input=given, default_max_retries=3)])
        return ids

    async def ended(self, ids: Sequence[str], *, within_seconds: float) -> list[str]:
        """The statuses of these workflows once all have ended."""
        async with asyncio.timeout(within_seconds):
            while True:
                rows = await self.connection.fetch("select status from workflows where id = any($1)", ids)
                statuses = [row["status"] for row in rows]
                if len(statuses) == len(ids) and not {"QUEUED", "RUNNING", "WAITING"} & set(statuses):
                    return statuses
                await asyncio.sleep(0.1)

    async def ledger(self) -> dict[str, Any]:
        """What the simulator has seen of the model."""
        ledger = (await self.simulator.get("/_simulator/ledger")).json()
        entry: dict[str, Any] = ledger["models"].get(MODEL, {"calls": 0})
        return entry


async def _said(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().strip()


@asynccontextmanager
async def _process(*command: str, **variables: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of ours; what it writes to standard error is dropped."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env={**os.environ, **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(20):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def fleet(**variables: str) -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        home = stack.enter_context(database_home())
        redis = stack.enter_context(redis_server())
        simulator = await stack.enter_async_context(
            _process("-m", "shared.local.simulator", "--limit", f"{MODEL}={QPS},{QPS},10000,1000000", "--base-seconds", "0.05")
        )
        url = await _said(simulator)
        environment = {
            "AGENT_TEAM_HOME": str(home),
            "AGENT_BUS_PROVIDER": "redis",
            "REDIS_URL": redis.url,
            "COMM_HMAC_DEFAULT_SECRET": SECRET,
            "MAX_CONCURRENT_PIPELINES": str(WORKFLOWS),
            "GEMINI_API_KEY": "AIza-of-the-simulator",
            "GEMINI_BASE_URL": url,
            "AI_MODEL_DEFAULT": MODEL,
            "AI_MODEL_FALLBACKS": ",",
            "AI_MAX_TOKENS": "1024",
            **variables,
        }
        runtime = Runtime(load_settings(environment))
        stack.push_async_callback(runtime.close)
        environment["DATABASE_URL"] = await asyncio.to_thread(lambda: runtime.database_url)
        await migrations.migrate(runtime.database_url)
        started = [await stack.enter_async_context(_process("-m", "shared.cli", "worker", **environment)) for _ in range(WORKERS)]
        assert all("is ready" in said for said in await asyncio.gather(*map(_said, started)))
        connection = await asyncpg.connect(runtime.database_url)
        stack.push_async_callback(connection.close)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url))
        yield Fleet(runtime, runtime.dispatcher("tests"), connection, client)


def pair() -> Definition:
    """Two steps that ask the model."""
    return definition(
        """
        - {id: plan, agent: planner, input: {brief: "{{ input.brief }}"}}
        - {id: again, agent: planner, needs: [plan], input: {brief: "{{ steps.plan.output.summary }}"}}
        """,
        input="{brief: {type: string, required: true}}",
    )


async def all_at_once(team: Fleet) -> list[str]:
    """Two percent of the replies fail while 300 workflows ask for what they need."""
    for kind in FAULTS:
        await team.simulator.post("/_simulator/faults", json={"kind": kind, "probability": 0.02 / len(FAULTS)})
    return await team.run(pair(), WORKFLOWS)


async def test_no_call_passes_the_quota_and_the_quota_is_used() -> None:
    async with fleet(AI_RATE_QPS=str(QPS)) as team:
        # The first calls of a process are slow: it loads its client.
        assert set(await team.ended(await team.run(pair(), 5 * WORKERS), within_seconds=60)) == {"SUCCESS"}
        await team.simulator.post("/_simulator/reset")
        statuses = await team.ended(await all_at_once(team), within_seconds=120)
        ledger = await team.ledger()
        letters = await team.connection.fetchval("select count(*) from dead_letters")

    arrivals = ledger["arrivals"]
    throughput = (len(arrivals) - 1) / (arrivals[-1] - arrivals[0])
    print(f"{len(arrivals)} calls, {throughput:.2f} a second, {ledger['faults']}")  # noqa: T201
    assert statuses == ["SUCCESS"] * WORKFLOWS
    assert letters == 0
    assert ledger["violations"] == 0
    assert sum(ledger["faults"].values()) > 0
    assert ledger["calls"] >= 2 * WORKFLOWS + sum(ledger["faults"].values())
    assert throughput >= 0.95 * QPS, f"{throughput:.2f} calls a second"


async def test_without_the_limiter_the_same_run_passes_the_quota() -> None:
    async with fleet(AI_RATE_QPS="100000") as team:
        await all_at_once(team)
        async with asyncio.timeout(60):
            while not (ledger := await team.ledger()).get("violations"):  # noqa: ASYNC110 - it is about another process
                await asyncio.sleep(0.1)
    assert ledger["violations"] > 0
