"""Functions in processes of their own, killed every second while they work; and asked to end in the middle of it.

Everything ends in SUCCESS, each step has one result, nothing stays behind on the bus.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from shared.config import load_settings
from shared.local.fleet import Fleet, open_fleet
from shared.local.servers import redis_binary
from tests.support import pubsub
from tests.support.reports import brief, database_home
from tests.support.servers import missing

pytestmark = pytest.mark.timeout(420)
KILL_EVERY_SECONDS = 1.0


@pytest.fixture(autouse=True)
def as_often_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All requests come from one address here. The processes take their settings from the environment."""
    monkeypatch.setenv("API_RATE_PER_MINUTE", "100000")


@asynccontextmanager
async def fleet_on(bus: str, home: Path, **variables: str) -> AsyncIterator[Fleet]:
    if redis_binary() is None:
        missing("redis-server")
    settings = load_settings({"AGENT_TEAM_HOME": str(home), "MAX_CONCURRENT_PIPELINES": "40", **variables})
    async with open_fleet(settings, bus=bus) as fleet:
        yield fleet


async def submit(fleet: Fleet, count: int) -> list[str]:
    """Ask for reports as a careful client does: again, with the same key, whenever there is no answer."""
    async with httpx.AsyncClient(base_url=fleet.addresses["gateway"], timeout=20) as client:

        async def one(number: int) -> str:
            body = {"workflow": "report", "input": {"brief": brief(number)}}
            while True:
                try:
                    answer = await client.post("/v1/workflows", json=body, headers={"idempotency-key": f"report-{number}"})
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                    continue
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                assert answer.status_code >= 500, answer.text
                await asyncio.sleep(0.1)

        ids = []
        for start in range(0, count, 20):
            ids += await asyncio.gather(*(one(number) for number in range(start, min(count, start + 20))))
        return ids


async def all_ended(connection: "asyncpg.Connection[asyncpg.Record]", count: int, *, within_seconds: float) -> None:
    ended = "select count(*) from workflows where status not in ('QUEUED', 'RUNNING', 'WAITING')"
    async with asyncio.timeout(within_seconds):
        while await connection.fetchval(ended) < count:  # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.1)


async def kill_at_random(fleet: Fleet, killed: Counter[str], chosen: random.Random) -> None:
    while True:
        await asyncio.sleep(KILL_EVERY_SECONDS)
        name = chosen.choice(sorted(fleet.functions))
        fleet.functions[name].kill()
        killed[name] += 1


async def assert_each_step_has_one_result(connection: "asyncpg.Connection[asyncpg.Record]", ids: Sequence[str]) -> None:
    assert len(set(ids)) == len(ids)
    statuses = await connection.fetch("select id, status, error from workflows")
    assert {row["id"] for row in statuses} == set(ids)
    assert [dict(row) for row in statuses if row["status"] != "SUCCESS"] == []
    assert await connection.fetchval("select count(*) from steps where status <> 'SUCCESS'") == 0
    results = await connection.fetch(
        "select workflow_id, step_id, count(*) as n from history"
        " where type in ('step.completed', 'step.late', 'step.failed') group by workflow_id, step_id having count(*) <> 1"
    )
    assert results == []
    assert await connection.fetchval("select count(*) from dead_letters") == 0


async def assert_nothing_stays_on_redis(fleet: Fleet) -> None:
    """No entry is pending, waiting for its time or undelivered."""
    from redis.asyncio import Redis

    client: Redis = Redis.from_url(fleet.environment["REDIS_URL"])
    try:
        async with asyncio.timeout(60):
            while left := await _left_on_redis(client):  # noqa: ASYNC110 - it is about other processes
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"left behind: {left}") from None
    finally:
        await client.aclose()


async def _left_on_redis(client: Any) -> dict[str, Any]:
    left: dict[str, Any] = {}
    async for key in client.scan_iter("agent-team:*:*"):
        kind = await client.type(key)
        if key.startswith(b"agent-team:held:") and await client.zcard(key):
            left[key.decode()] = await client.zcard(key)
        elif kind == b"stream":
            newest = (await client.xinfo_stream(key))["last-generated-id"]
            for group in await client.xinfo_groups(key):
                if group["pending"] or group["last-delivered-id"] != newest:
                    left[f"{key.decode()} {group['name'].decode()}"] = group["pending"], group["last-delivered-id"], newest
    return left


async def test_three_hundred_workflows_survive_a_kill_every_second_on_redis() -> None:
    chosen, killed = random.Random(11), Counter[str]()
    with database_home() as home:
        async with fleet_on("redis", home) as fleet:
            connection = await asyncpg.connect(fleet.environment["DATABASE_URL"])
            killing = asyncio.create_task(kill_at_random(fleet, killed, chosen))
            submitting = asyncio.create_task(submit(fleet, 300))
            await all_ended(connection, 100, within_seconds=120)
            fleet.servers["redis"].kill()
            ids = await submitting
            await all_ended(connection, 290, within_seconds=200)
            killing.cancel()
            await all_ended(connection, 300, within_seconds=120)
            await assert_each_step_has_one_result(connection, ids)
            await assert_nothing_stays_on_redis(fleet)
            await connection.close()
    assert sum(killed.values()) >= 10


async def test_sixty_workflows_survive_a_kill_every_second_on_pubsub() -> None:
    pubsub.require()
    chosen, killed = random.Random(12), Counter[str]()
    with database_home() as home:
        async with fleet_on("pubsub", home) as fleet:
            connection = await asyncpg.connect(fleet.environment["DATABASE_URL"])
            killing = asyncio.create_task(kill_at_random(fleet, killed, chosen))
            ids = await submit(fleet, 60)
            await all_ended(connection, 55, within_seconds=200)
            killing.cancel()
            await all_ended(connection, 60, within_seconds=120)
            await assert_each_step_has_one_result(connection, ids)
            await connection.close()
    assert sum(killed.values()) >= 10


@pytest.mark.parametrize("bus", ["redis", "pubsub"])
async def test_functions_that_are_asked_to_end_lose_nothing_and_do_nothing_again(bus: str) -> None:
    if bus == "pubsub":
        pubsub.require()
    with database_home() as home:
        async with fleet_on(bus, home) as fleet:
            connection = await asyncpg.connect(fleet.environment["DATABASE_URL"])
            submitting = asyncio.create_task(submit(fleet, 60))
            for number in range(1, 4):
                await all_ended(connection, number * 15, within_seconds=100)
                for process in fleet.functions.values():
                    process.terminate()
            ids = await submitting
            await all_ended(connection, 60, within_seconds=120)
            await assert_each_step_has_one_result(connection, ids)
            await connection.close()
            assert min(process.starts for process in fleet.functions.values()) >= 2
        lines = [orjson.loads(line) for line in (home / "agent-team.log").read_bytes().splitlines() if line.startswith(b"{")]
        done = Counter((line["workflowId"], line["step"]) for line in lines if line["msg"] == "step completed")
        assert len(done) > 60
        assert {step: count for step, count in done.items() if count > 1} == {}
