"""What guarding one piece of work costs, in memory and, where there are, two servers.

It is a claim, a reservation as a model call makes it (its rate, tokens a minute and requests a day), and the completion.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from statistics import quantiles
from time import perf_counter

import uvloop

from shared.clock import SystemClock
from shared.guards import Guards, New, Window, open_guards
from shared.local.servers import redis_binary
from tests.support import firestore
from tests.support.servers import redis_server

_CALLERS = (1, 10, 100)
_PIECES = {1: 2_000, 10: 5_000, 100: 10_000}
_OPERATIONS = 3
_WINDOWS = (Window("minute", 1e9, 1000, 60, 60), Window("day", 1e9, 1, 86_400, 86_400))
_numbers = itertools.count()


async def _piece(guards: Guards) -> None:
    """Everything that is asked of the guards for one piece of work."""
    key = f"bench:{next(_numbers)}"
    claim = await guards.idempotency.claim(key, lease_seconds=30, ttl_seconds=60)
    assert isinstance(claim, New)
    await guards.limiter.reserve("bench", rate=1e6, burst=1e6, windows=_WINDOWS)
    assert await guards.idempotency.complete(key, token=claim.token, result=None)


async def _pieces(work: Callable[[], Awaitable[None]], callers: int, count: int) -> tuple[float, list[float]]:
    """Seconds for all, and microseconds of each."""
    left = iter(range(count))
    microseconds: list[float] = []

    async def caller() -> None:
        for _ in left:
            before = perf_counter()
            await work()
            microseconds.append((perf_counter() - before) * 1e6)

    started = perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return perf_counter() - started, microseconds


async def _measure(name: str, guards: Guards, *, share: int = 1) -> dict[str, float]:
    """The figures; of the usual number of pieces only one in `share` is measured."""
    figures = {}
    await _pieces(lambda: _piece(guards), 10, 500 // share)
    for callers in _CALLERS:
        seconds, each = await _pieces(lambda: _piece(guards), callers, _PIECES[callers] // share)
        percentiles = quantiles(each, n=100)
        figures[f"guards.{name}_{callers}_together_p50_us"] = percentiles[49]
        figures[f"guards.{name}_{callers}_together_p99_us"] = percentiles[98]
        figures[f"guards.{name}_{callers}_per_second"] = _PIECES[callers] // share * _OPERATIONS / seconds
    await guards.close()
    return figures


async def _run() -> dict[str, float]:
    figures = await _measure("memory", open_guards("memory", SystemClock()))
    if redis_binary() is not None:
        with redis_server() as server:
            figures |= await _measure("redis", open_guards("redis", SystemClock(), redis_url=server.url))
    return figures | await _firestore()


async def _firestore() -> dict[str, float]:
    """An emulator's figures: the service's round trips take longer, and many at once are served side by side."""
    if firestore.missing() is not None:
        return {}
    from shared.guards.firestore import open_firestore

    with firestore.emulator() as address:
        return await _measure("firestore", open_firestore("bench", SystemClock(), emulator=address), share=10)


def run() -> dict[str, float]:
    """Microseconds for the three together, and single operations a second, for 1, 10 and 100 callers at once."""
    return uvloop.run(_run())
