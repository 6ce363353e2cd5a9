"""Transitions a second of `advance` alone: no bus, no signatures, durable commits. One event a call, and batched by the store."""

import asyncio
import tempfile
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import uvloop

from bench.world import KILOBYTE, chain
from shared.clock import SystemClock
from shared.ids import workflow_id
from shared.state import Command, WorkflowStore, embedded, migrations
from shared.state.postgres import PostgresCaller
from shared.workflows import Definition, render_output, requested

_USAGE = {"model_calls": 1, "input_tokens": 10, "output_tokens": 10, "cost_microdollars": 0}
_OUTPUT = {"text": KILOBYTE}
_ROUNDS = 3


async def through(store: WorkflowStore, definition: Definition, latencies: list[float]) -> None:
    """One workflow from its request to its end, every step answered at once."""
    wanted = requested(definition, workflow=workflow_id(SystemClock().now()), input={"text": KILOBYTE}, default_max_retries=3)
    commands: list[Command] = await store.advance([wanted])
    while commands:
        events = [event for command in commands if (event := answer(command)) is not None]
        before = perf_counter()
        commands = await store.advance(events)
        latencies.append((perf_counter() - before) * 1000)


def answer(command: Command) -> dict[str, Any] | None:
    """What an agent that does nothing, or the dispatcher, makes of a command."""
    match command["type"]:
        case "dispatch":
            about = {"workflow": command["workflow"], "step": command["step"], "attempt": command["attempt"]}
            return {"type": "step.completed", **about, "output": _OUTPUT, "usage": _USAGE}
        case "render":
            return render_output(command)
        case _:
            return None


async def _measure() -> dict[str, float]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dsn = embedded.start(Path(folder) / "postgres")
        await migrations.migrate(dsn)
        store = WorkflowStore(PostgresCaller(dsn), max_running=100_000)
        ten = chain("chain10", 10)
        await asyncio.gather(*(through(store, ten, []) for _ in range(50)))
        alone: list[float] = []
        for _ in range(30):
            await through(store, ten, alone)
        rates = []
        for _ in range(_ROUNDS):
            started = perf_counter()
            await asyncio.gather(*(through(store, ten, []) for _ in range(200)))
            rates.append(2000 / (perf_counter() - started))
        await store.close()
    return {
        "advance.alone_per_second": 1000 / median(alone),
        "advance.alone_p50_ms": median(alone),
        "advance.alone_p95_ms": quantiles(alone, n=20)[-1],
        "advance.batched_per_second": median(rates),
    }


def run() -> dict[str, float]:
    """Steps a second, and milliseconds a call, with about 1 KB of output each."""
    return uvloop.run(_measure())
