"""What a message costs on the memory bus: publish, start the handler, acknowledge; beside a bare asyncio task."""

import asyncio
from time import perf_counter

import uvloop

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock

_MESSAGES = 100_000
_BATCH = 100


async def _bare_tasks() -> float:
    async def work() -> Outcome:
        return Outcome.ACK

    loop = asyncio.get_running_loop()
    started = perf_counter()
    for _ in range(_MESSAGES // _BATCH):
        await asyncio.wait({loop.create_task(work()) for _ in range(_BATCH)})
    return perf_counter() - started


async def _bus(concurrency: int) -> float:
    async def handler(delivery: Delivery) -> Outcome:
        return Outcome.ACK

    bus = MemoryBus(SystemClock())
    await bus.subscribe(Subscription("bench", "bench", concurrency=concurrency), handler)
    message = Message("bench", b"x" * 1024, {"content-type": "application/cloudevents+json", "hmac-key-id": "v1"})
    started = perf_counter()
    for _ in range(_MESSAGES // _BATCH):
        for _ in range(_BATCH):
            await bus.publish([message])
        await bus.idle()
    seconds = perf_counter() - started
    await bus.close()
    return seconds


def run() -> dict[str, float]:
    """Messages a second and microseconds a message, with free handlers and with eight busy ones."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        bare = min(runner.run(_bare_tasks()) for _ in range(3))
        free = min(runner.run(_bus(1_000)) for _ in range(3))
        queued = min(runner.run(_bus(8)) for _ in range(3))
    return {
        "bus.messages_per_second": _MESSAGES / free,
        "bus.us_per_message": free / _MESSAGES * 1e6,
        "bus.us_per_queued_message": queued / _MESSAGES * 1e6,
        "bus.us_per_bare_task": bare / _MESSAGES * 1e6,
        "bus.us_over_bare_task": (free - bare) / _MESSAGES * 1e6,
    }
