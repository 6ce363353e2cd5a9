"""End to end over Redis Streams, with a worker for an agent that does nothing and one for the orchestrator, everything on.

Redis keeps its data as the local platform's does: appendonly, appendfsync everysec. This process submits and looks on.
"""

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import asyncpg
import uvloop

from bench.world import KILOBYTE, chain, join_noop
from shared.config import load_settings
from shared.ids import workflow_id
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from shared.runtime.joining import join, tune_collector
from shared.runtime.requests import request_event
from shared.state import migrations
from shared.telemetry import configure_logging
from shared.workflows import Definition
from tests.support.servers import redis_server

_ROOT = Path(__file__).parents[1]
_ROLES = ("agent", "orchestrator")
_ROUNDS = 3
_REDIS = ("--appendonly", "yes", "--appendfsync", "everysec")


async def _work(home: str, role: str) -> None:
    """A worker process, as `agent-team worker --function …` is."""
    with (Path(home) / f"log-{os.getpid()}").open("w", encoding="utf-8") as log:
        configure_logging("info", stream=log)
        runtime = Runtime(load_settings())
        await (join_noop(runtime, starts=[]) if role == "agent" else join(runtime, [role]))
        tune_collector()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runtime.close()


class _Fleet:
    """What is submitted here is done by the workers."""

    def __init__(self, runtime: Runtime, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        self._runtime = runtime
        self._connection = connection

    async def run(self, definition: Definition, *, count: int = 1) -> tuple[float, list[str]]:
        """Seconds from the first submit until all have ended; and the ids."""
        self._runtime.definitions[definition.name] = definition
        dispatcher = self._runtime.dispatcher("bench")
        wanted = WorkflowRequested(workflow=definition.name, input={"text": KILOBYTE})
        ids = [workflow_id(self._runtime.clock.now()) for _ in range(count)]
        events = [request_event(self._runtime, wanted, workflow=one) for one in ids]
        started = perf_counter()
        await asyncio.gather(*(dispatcher.apply([event]) for event in events))
        done = "select count(*) from workflows where id = any($1) and status = 'SUCCESS'"
        while await self._connection.fetchval(done, ids) < count:  # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.01)
        return perf_counter() - started, ids

    async def gaps(self, workflow: str) -> list[float]:
        """Milliseconds from each step's commit to the next one's."""
        moments = await self._connection.fetch(
            "select at from history where workflow_id = $1 and type = 'step.completed' order by seq", workflow
        )
        return [(b["at"] - a["at"]).total_seconds() * 1000 for a, b in itertools.pairwise(moments)]


def _start(command: list[str], environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, cwd=_ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@asynccontextmanager
async def _fleet() -> AsyncIterator[_Fleet]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, redis_server(*_REDIS) as redis:
        variables = {
            "AGENT_TEAM_HOME": folder,
            "AGENT_BUS_PROVIDER": "redis",
            "REDIS_URL": redis.url,
            "COMM_HMAC_DEFAULT_SECRET": "the secret of the benchmark, long enough",
            "MAX_CONCURRENT_PIPELINES": "100000",
        }
        runtime = Runtime(load_settings(variables))
        variables["DATABASE_URL"] = runtime.database_url
        await migrations.migrate(runtime.database_url)
        runtime.definitions.clear()
        command = [sys.executable, "-m", "bench.steps_redis", folder]
        environment = {**os.environ, **variables}
        workers = [_start([*command, role], environment) for role in _ROLES]
        connection = await asyncpg.connect(runtime.database_url)
        try:
            for worker in workers:
                assert worker.stdout is not None
                assert await asyncio.to_thread(worker.stdout.readline) == b"ready\n"
            yield _Fleet(runtime, connection)
        finally:
            for worker in workers:
                await asyncio.to_thread(worker.communicate, timeout=30)
            await connection.close()
            await runtime.close()


async def _measure() -> dict[str, float]:
    async with _fleet() as fleet:
        await fleet.run(chain("warm", 10), count=50)
        together = [2000 / (await fleet.run(chain("chain10", 10), count=200))[0] for _ in range(_ROUNDS)]
        gaps = [gap for _ in range(_ROUNDS) for gap in await fleet.gaps((await fleet.run(chain("chain100", 100)))[1][0])]
    return {
        "steps_redis.per_second_200x10": median(together),
        "steps_redis.alone_p50_ms": median(gaps),
        "steps_redis.alone_p95_ms": quantiles(gaps, n=20)[-1],
    }


def run() -> dict[str, float]:
    """Medians: steps a second for 200 workflows of 10 steps, milliseconds a step for one workflow alone."""
    return uvloop.run(_measure())


if __name__ == "__main__":
    uvloop.run(_work(*sys.argv[1:]))  # one of the fleet's workers
