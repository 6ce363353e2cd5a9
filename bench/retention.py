"""What retention costs: a batch, a call that finds nothing, a tick beside it; and how long a fork of 1,000 steps takes."""

import asyncio
import tempfile
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import uvloop

from bench.advance import through
from bench.world import chain
from shared.clock import SystemClock
from shared.ids import workflow_id
from shared.runtime.retention import BATCH_ROWS
from shared.state import WorkflowStore, embedded, migrations
from shared.state.postgres import PostgresCaller, connected
from shared.workflows import render_output, reusable

_WORKFLOWS = 1000
_TICKS = 100


async def _measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dsn = embedded.start(Path(folder) / "postgres")
        await migrations.migrate(dsn)
        store = WorkflowStore(PostgresCaller(dsn), max_running=100_000)
        fork = await _fork(store)
        for _ in range(_WORKFLOWS // 200):
            await asyncio.gather(*(through(store, chain("chain10", 10), []) for _ in range(200)))
        async with connected(dsn) as connection:
            await connection.execute("vacuum analyze")
        alone = [await _timed(store.advance([{"type": "tick"}])) for _ in range(_TICKS)]
        idle = [await _timed(store.purge(timedelta(days=1))) for _ in range(_TICKS)]
        batches: list[float] = []
        purging = asyncio.create_task(_purge(store, batches))
        beside = []
        while not purging.done():
            beside.append(await _timed(store.advance([{"type": "tick"}])))
        await purging
        await store.close()
    return {
        "retention.nothing_to_do_ms": median(idle),
        "retention.batch_p50_ms": median(batches),
        "retention.batch_p95_ms": quantiles(batches, n=20)[-1],
        "retention.rows_per_second": 1000 * BATCH_ROWS * len(batches) / sum(batches),
        "retention.tick_alone_p50_ms": median(alone),
        "retention.tick_while_purging_p50_ms": median(beside),
        "retention.tick_while_purging_p95_ms": quantiles(beside, n=20)[-1],
        "retention.fork_of_1000_steps_ms": fork,
    }


async def _fork(store: WorkflowStore) -> float:
    """The end of a workflow of 1,000 finished steps forked, from its plan to its commands."""
    await through(store, chain("chain1000", 1000), [])
    (original,) = await store.recent()
    times = []
    for _ in range(5):
        started = perf_counter()
        plan = await store.fork_plan(original["id"], None)
        wanted = {"from": plan["id"], "at": plan["seq"], "input": plan["input"], "workflow": workflow_id(SystemClock().now())}
        wanted |= {"request_key": None, "request_hash": "", "traceparent": None, **reusable(plan["steps"], ())._asdict()}
        commands = await store.fork(wanted, held=False)
        times.append(perf_counter() - started)
        await store.advance([render_output(command) for command in commands if command["type"] == "render"])
    return 1000 * median(times)


async def _purge(store: WorkflowStore, batches: list[float]) -> None:
    gone = 1
    while gone:
        started = perf_counter()
        gone = (await store.purge(timedelta(0), max_rows=BATCH_ROWS))["workflows"]
        batches.append((perf_counter() - started) * 1000)


async def _timed(call: Coroutine[Any, Any, Any]) -> float:
    started = perf_counter()
    await call
    return (perf_counter() - started) * 1000


def run() -> dict[str, float]:
    """Milliseconds, with 1,000 workflows of 10 steps and about 1 KB of output each to be deleted."""
    return uvloop.run(_measure())
