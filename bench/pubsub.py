"""What the official emulator's Pub/Sub lets through. Nothing where there is no emulator."""

import asyncio
import sys
from time import perf_counter

from shared.bus import Delivery, Message, Outcome, Subscription
from shared.bus.pubsub import PubSubBus, create
from shared.clock import SystemClock
from tests.support import pubsub

_ALONE = 200
_TOGETHER = 20_000
_MESSAGE = Message("bench", b"x" * 1024, {"content-type": "application/cloudevents+json", "hmac-key-id": "v1"})


async def _figures(emulator: str) -> dict[str, float]:
    bus = PubSubBus("bench", SystemClock(), emulator=emulator)
    workers = [Subscription(f"bench.{concurrency}", "bench", concurrency=concurrency) for concurrency in (8, 50)]
    await create("bench", [Subscription("alone.bench", "alone"), *workers], emulator=emulator)
    lone = Message("alone", _MESSAGE.data, _MESSAGE.attributes)
    await bus.publish([lone])
    started = perf_counter()
    for _ in range(_ALONE):
        await bus.publish([lone])
    alone_seconds = perf_counter() - started
    started = perf_counter()
    await bus.publish([_MESSAGE] * _TOGETHER)
    figures = {
        "pubsub.ms_per_publish_alone": alone_seconds / _ALONE * 1e3,
        "pubsub.published_per_second_together": _TOGETHER / (perf_counter() - started),
    }
    for worker in workers:
        seconds = await _drained(bus, worker)
        figures[f"pubsub.pulled_per_second_{worker.concurrency}_places"] = _TOGETHER / seconds
    await bus.close()
    return figures


async def _drained(bus: PubSubBus, subscription: Subscription) -> float:
    left, done = _TOGETHER, asyncio.Event()

    async def handler(_: Delivery) -> Outcome:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()
        return Outcome.ACK

    started = perf_counter()
    await bus.subscribe(subscription, handler)
    await done.wait()
    return perf_counter() - started


def run() -> dict[str, float]:
    """Messages a second, and milliseconds for one alone."""
    lack = pubsub.missing()
    if lack is not None:
        print(f"  left out: needs {lack}", file=sys.stderr)
        return {}
    with pubsub.emulator() as address:
        return asyncio.run(_figures(address))
