"""What a message costs on the Redis bus: publish, deliver, acknowledge, in one process; and how long one message alone takes."""

import asyncio
from statistics import quantiles
from time import perf_counter

import uvloop

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.policy import MAX_DATA_BYTES
from shared.bus.redis import RedisBus
from shared.clock import SystemClock
from shared.local.servers import redis_binary
from tests.support.servers import redis_server

_MESSAGES = 20_000
_PUBLISHERS = 100
_ALONE = 1_000
_MESSAGE = Message("bench", b"x" * 1024, {"content-type": "application/cloudevents+json", "hmac-key-id": "v1"})


async def _together(url: str, concurrency: int) -> float:
    """Seconds for all, from 100 publishers of one message at a time to the last acknowledgement."""
    done = asyncio.Event()
    left = _MESSAGES

    async def handler(delivery: Delivery) -> Outcome:
        nonlocal left
        left -= 1
        if not left:
            done.set()
        return Outcome.ACK

    bus = RedisBus(url, SystemClock(), max_bytes=MAX_DATA_BYTES)
    await bus.subscribe(Subscription("bench", "bench", concurrency=concurrency), handler)

    async def publisher() -> None:
        for _ in range(_MESSAGES // _PUBLISHERS):
            await bus.publish([_MESSAGE])

    started = perf_counter()
    await asyncio.gather(*(publisher() for _ in range(_PUBLISHERS)))
    await done.wait()
    seconds = perf_counter() - started
    await bus.close()
    return seconds


async def _alone(url: str) -> list[float]:
    """Microseconds from publishing one message to the start of its handler, one after another."""
    arrived: asyncio.Queue[float] = asyncio.Queue()

    async def handler(delivery: Delivery) -> Outcome:
        arrived.put_nowait(perf_counter())
        return Outcome.ACK

    bus = RedisBus(url, SystemClock(), max_bytes=MAX_DATA_BYTES)
    await bus.subscribe(Subscription("alone", "alone"), handler)
    microseconds = []
    for _ in range(_ALONE):
        before = perf_counter()
        await bus.publish([Message("alone", _MESSAGE.data, _MESSAGE.attributes)])
        microseconds.append((await arrived.get() - before) * 1e6)
    await bus.close()
    return microseconds


def run() -> dict[str, float]:
    """Messages a second with many and with eight places, and microseconds of a message alone; the server is durable."""
    if redis_binary() is None:
        return {}
    with redis_server("--appendonly", "yes") as server, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        many = min(runner.run(_together(server.url, 250)) for _ in range(3))
        eight = min(runner.run(_together(server.url, 8)) for _ in range(3))
        alone = quantiles(runner.run(_alone(server.url)), n=100)
    return {
        "redis_bus.messages_per_second": _MESSAGES / many,
        "redis_bus.messages_per_second_8_places": _MESSAGES / eight,
        "redis_bus.alone_p50_us": alone[49],
        "redis_bus.alone_p99_us": alone[98],
    }
