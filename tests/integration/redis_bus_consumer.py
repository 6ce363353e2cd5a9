"""A consumer to be killed, `python -m tests.integration.redis_bus_consumer URL NAME TOPIC`: tells deliveries and finishes none."""

import asyncio
import sys

from shared.bus import Delivery, Outcome, Subscription, open_bus
from shared.clock import SystemClock


async def main(url: str, name: str, topic: str) -> None:
    bus = open_bus("redis", SystemClock(), max_bytes=1_000_000, redis_url=url)

    async def hang(delivery: Delivery) -> Outcome:
        sys.stdout.write(f"{delivery.data.decode()} {delivery.attempt}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()
        return Outcome.ACK

    await bus.subscribe(Subscription(name, topic, concurrency=10), hang)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
