"""End to end with an agent that does nothing: signatures, claims, durable commits and logs included."""

from statistics import median, quantiles

import uvloop

from bench.world import World, chain, fan, open_world

_ROUNDS = 3
_LENGTHS = {10: 15, 100: 5, 1000: 3}
"""By the number of steps, how often."""


async def _alone(world: World, length: int) -> tuple[float, list[float]]:
    """Milliseconds a step, and the milliseconds between one step's start and the next's."""
    seconds = await world.run(chain(f"chain{length}", length))
    gaps = [(after - before) * 1000 for before, after in zip(world.starts, world.starts[1:], strict=False)]
    return seconds / length * 1000, gaps


async def _measure() -> dict[str, float]:
    async with open_world() as world:
        await world.run(chain("warm", 10), count=50)
        together = [2000 / await world.run(chain("chain10", 10), count=200) for _ in range(_ROUNDS)]
        gaps = [gap for _ in range(_ROUNDS) for gap in (await _alone(world, 100))[1]]
        # A lone workflow of ten steps is over in milliseconds: enough of them for a steady figure.
        by_length = {
            length: median([(await _alone(world, length))[0] for _ in range(rounds)]) for length, rounds in _LENGTHS.items()
        }
        joins = [await world.run(fan("fan50", 50)) * 1000 for _ in range(_ROUNDS)]
    return {
        "steps.per_second_200x10": median(together),
        "steps.alone_p50_ms": median(gaps),
        "steps.alone_p95_ms": quantiles(gaps, n=20)[-1],
        **{f"steps.ms_per_step_{length}": figure for length, figure in by_length.items()},
        "steps.growth_1000_over_10": by_length[1000] / by_length[10],
        "steps.fan_1_50_1_ms": median(joins),
    }


def run() -> dict[str, float]:
    """Medians: steps a second for 200 workflows of 10 steps, milliseconds a step for one workflow alone."""
    return uvloop.run(_measure())
