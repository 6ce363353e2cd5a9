"""A map-reduce of 1,000 steps (1 → 998 → 1) beside ones of 10 steps and beside chains: what width costs, and the join.

End to end, and `advance` alone with all results of the map given at once, as agents on many instances would give them. Each round
measures everything, so that a machine that slows down slows all of it.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import uvloop

from bench.advance import answer
from bench.world import KILOBYTE, World, chain, fan, open_world
from shared.clock import SystemClock
from shared.ids import workflow_id
from shared.state import Command, WorkflowStore, embedded, migrations
from shared.state.postgres import PostgresCaller
from shared.workflows import Definition, requested

_ROUNDS = 5
_STEPS = 1000
_NARROW = fan("fan8", 8)
_WIDE = fan("fan998", _STEPS - 2)
_LINEAR = chain("chain10", 10)


async def _end_to_end(world: World) -> dict[str, float]:
    """Milliseconds a step: one map-reduce of 10 alone, one of 1,000, and as many steps in a hundred workflows at once."""
    return {
        "ms_per_step_10_alone": median([await world.run(_NARROW) * 100 for _ in range(10)]),
        "ms_per_step_100x10": await world.run(_NARROW, count=_STEPS // 10),
        "ms_per_step_1000": await world.run(_WIDE),
        "ms_per_step_100_chains_of_10": await world.run(_LINEAR, count=_STEPS // 10),
    }


async def _results_per_second(store: WorkflowStore, definition: Definition, count: int) -> float:
    """First steps end in their own time; then whatever they let start ends at once, each result in a call of its own."""
    moment = SystemClock().now()
    wanted = [
        requested(definition, workflow=workflow_id(moment), input={"text": KILOBYTE}, default_max_retries=3) for _ in range(count)
    ]
    results = _answers(await store.advance(_answers(await store.advance(wanted))))
    started = perf_counter()
    heard = await asyncio.gather(*(store.advance([result]) for result in results))
    seconds = perf_counter() - started
    left = [command for commands in heard for command in commands]
    while left:
        left = await store.advance(_answers(left))
    return len(results) / seconds


def _answers(commands: Sequence[Command]) -> list[dict[str, Any]]:
    return [event for command in commands if (event := answer(command)) is not None]


async def _measure() -> dict[str, float]:
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        dsn = embedded.start(Path(folder) / "postgres")
        await migrations.migrate(dsn)
        store = WorkflowStore(PostgresCaller(dsn), max_running=100_000)
        async with open_world() as world:
            await world.run(_LINEAR, count=50)
            await _results_per_second(store, _LINEAR, 50)
            for _ in range(_ROUNDS):
                found = await _end_to_end(world)
                found["fan_in_per_second"] = await _results_per_second(store, _WIDE, 1)
                found["linear_per_second"] = await _results_per_second(store, _LINEAR, _STEPS - 2)
                for name, value in found.items():
                    figures.setdefault(name, []).append(value)
        await store.close()
    medians = {name: median(values) for name, values in figures.items()}
    return {f"mapreduce.{name}": value for name, value in medians.items()} | {
        "mapreduce.growth_1000_over_10_alone": medians["ms_per_step_1000"] / medians["ms_per_step_10_alone"],
        "mapreduce.growth_1000_over_100x10": medians["ms_per_step_1000"] / medians["ms_per_step_100x10"],
        "mapreduce.fan_in_over_linear": medians["fan_in_per_second"] / medians["linear_per_second"],
    }


def run() -> dict[str, float]:
    """Medians of the rounds; what is wanted is a growth of at most 1.2 and a fan-in of at least half the linear case."""
    return uvloop.run(_measure())
