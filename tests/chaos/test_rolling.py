"""A release under load: every function process is replaced by the next build, one after the other, and then by the build before.

The next build's messages have a field more than this one's, at every depth. Nothing is lost, nothing is done twice.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import asyncpg
import httpx
import orjson
import pytest

from shared.local.servers import redis_binary
from tests.support.builds import PARENTS, STEPS, Rollout, copy
from tests.support.doubles import SECRET
from tests.support.reports import brief
from tests.support.servers import missing, redis_server

pytestmark = pytest.mark.timeout(300)
WORKFLOWS = 200
WORKING = {"planner", "researcher", "writer", "critic", "judge"}
ONE_MORE_FIELD = ('extra="forbid")\n', 'extra="forbid")\n\n    later: dict[str, int] = Field(default={"x": 1})\n')


@asynccontextmanager
async def rolled_out(folder: Path, database: str, build: Path) -> AsyncIterator[Rollout]:
    with redis_server("--appendonly", "yes") as server:
        variables = {
            "AGENT_BUS_PROVIDER": "redis",
            "AGENT_TEAM_HOME": str(folder / "home"),
            "API_RATE_PER_MINUTE": "100000",
            "COMM_HMAC_DEFAULT_SECRET": SECRET,
            "DATABASE_URL": database,
            "MAX_CONCURRENT_PIPELINES": "40",
            "REDIS_URL": server.url,
        }
        rollout = Rollout(folder, variables)
        try:
            await rollout.start(build)
            yield rollout
        finally:
            await rollout.stop()


class Client:
    """Asks for workflows as a careful client does: again, with the same key, whenever there is no answer; and calls the sweeper."""

    def __init__(self, rollout: Rollout, http: httpx.AsyncClient) -> None:
        self.asked = 0
        self._rollout = rollout
        self._http = http
        self._asking: list[asyncio.Task[str]] = []

    def ask(self, count: int) -> None:
        """Ask for `count` more, without waiting for the answers."""
        for number in range(self.asked, self.asked + count):
            self._asking.append(asyncio.create_task(self._one(number)))
        self.asked += count

    async def ids(self) -> list[str]:
        return await asyncio.gather(*self._asking)

    @asynccontextmanager
    async def sweeping(self) -> AsyncIterator[None]:
        """What Cloud Scheduler does, meanwhile."""
        task = asyncio.create_task(self._sweep())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(1)
            try:
                await self._http.post(self._rollout.sweeper)
            except httpx.TransportError:
                continue  # it is being replaced

    async def _one(self, number: int) -> str:
        body = {"workflow": "small", "input": {"brief": brief(number)}}
        while True:
            try:
                url = f"{self._rollout.gateway}/v1/workflows"
                answer = await self._http.post(url, json=body, headers={"idempotency-key": f"small-{number}"})
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 202:
                return str(answer.json()["id"])
            assert answer.status_code >= 500, answer.text
            await asyncio.sleep(0.05)


async def all_ended(connection: "asyncpg.Connection[asyncpg.Record]", ids: Sequence[str], *, within_seconds: float) -> None:
    ended = "select count(*) from workflows where status not in ('QUEUED', 'RUNNING', 'WAITING')"
    async with asyncio.timeout(within_seconds):
        while await connection.fetchval(ended) < len(ids):  # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.1)


async def assert_each_step_has_one_result(connection: "asyncpg.Connection[asyncpg.Record]", ids: Sequence[str]) -> None:
    rows = await connection.fetch("select id, status, error from workflows")
    assert {row["id"] for row in rows} == set(ids)
    assert [dict(row) for row in rows if row["status"] != "SUCCESS"] == []
    assert await connection.fetchval("select count(*) from steps where status = 'SUCCESS'") == len(ids) * (STEPS + PARENTS)
    assert await connection.fetchval("select count(*) from steps where status <> 'SUCCESS'") == 0
    results = "select count(*), count(distinct (workflow_id, step_id)) from history where type = 'step.completed'"
    counted = await connection.fetchrow(results)
    assert counted is not None
    assert tuple(counted) == (len(ids) * (STEPS + PARENTS),) * 2
    assert await connection.fetchval("select count(*) from dead_letters") == 0


def logged(folder: Path, build: str) -> Counter[str]:
    """Steps that each function completed, by the log of a build. Nothing in there may be worth an error."""
    lines = [orjson.loads(line) for line in (folder / f"{build}.log").read_bytes().splitlines() if line.startswith(b"{")]
    assert [line for line in lines if line["level"] == "error" or line.get("status") == "rejected"] == []
    return Counter(line["agent"] for line in lines if line["msg"] == "step completed")


async def replace_all(rollout: Rollout, build: Path, client: Client, *, until_asked: int) -> None:
    """Replace every process. Each old one is asked to end amid work that was just asked for, up to so many workflows."""
    for left, name in zip(range(len(rollout.functions), 0, -1), rollout.functions, strict=True):

        async def work_begins(share: int, name: str) -> None:
            before = begun(rollout, name)
            client.ask(share)
            async with asyncio.timeout(30):
                while begun(rollout, name) == before:  # noqa: ASYNC110 - it is about other processes
                    await asyncio.sleep(0.005)

        await rollout.replace(build, name, meanwhile=partial(work_begins, (until_asked - client.asked) // left, name))
    assert set(rollout.build_of.values()) == {build.name}
    assert client.asked == until_asked


def begun(rollout: Rollout, name: str) -> int:
    """Calls of the model that this function has begun, or any when it makes none."""
    return sum(what == "began" and (name == function or name not in WORKING) for what, _, function in rollout.calls())


def finished_after_being_asked_to_end(rollout: Rollout) -> int:
    """Calls of the model that a process had in progress when it was asked to end, and brought to their end."""
    going, count = Counter[tuple[str, str]](), 0
    for what, build, function in rollout.calls():
        if what == "asked":
            count += going[build, function]
        else:
            going[build, function] += 1 if what == "began" else -1
    return count


async def test_a_release_and_the_way_back_lose_nothing_and_do_nothing_twice(tmp_path: Path, database: str) -> None:
    if redis_binary() is None:
        missing("redis-server")
    before = copy(tmp_path, "before", edits={})
    after = copy(tmp_path, "after", edits={"shared/messages/payloads.py": ONE_MORE_FIELD})
    async with rolled_out(tmp_path, database, before) as rollout, httpx.AsyncClient(timeout=20) as http:
        client = Client(rollout, http)
        connection = await asyncpg.connect(database)
        async with client.sweeping():
            for build in (after, before):
                await replace_all(rollout, build, client, until_asked=WORKFLOWS if build is before else WORKFLOWS // 2)
            ids = await client.ids()
            await all_ended(connection, ids, within_seconds=60)
        await assert_each_step_has_one_result(connection, ids)
        recorded = await connection.fetchval("select sum(model_calls) from workflows")
        await connection.close()

    done = {build: logged(tmp_path, build) for build in ("before", "after")}
    assert set(done["before"]) == set(done["after"]) == WORKING
    assert sum((done["before"] + done["after"]).values()) == WORKFLOWS * STEPS
    calls = Counter(what for what, _, _ in rollout.calls())
    assert calls["began"] == calls["ended"] == recorded
    assert finished_after_being_asked_to_end(rollout) > 0
