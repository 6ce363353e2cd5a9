"""The platform's buses, each on a server of its own."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager

from shared.bus import Bus, Subscription, open_bus
from shared.bus.memory import MemoryBus
from shared.bus.pubsub import create
from shared.clock import SystemClock
from tests.support import pubsub
from tests.support.doubles import MAX_BYTES
from tests.support.servers import redis_server

BUSES = ("memory", "redis", "pubsub")


@asynccontextmanager
async def serving(provider: str, subscriptions: Sequence[Subscription]) -> AsyncIterator[Callable[..., Bus]]:
    """What opens a bus on one and the same server, where `subscriptions` can be had; all are closed in the end."""
    clock = SystemClock()
    with ExitStack() as stack:
        where: dict[str, str] = {}
        if provider == "redis":
            where["redis_url"] = stack.enter_context(redis_server("--appendonly", "yes")).url
        elif provider == "pubsub":
            pubsub.require()
            where |= {"gcp_project": "tests", "pubsub_emulator": stack.enter_context(pubsub.emulator())}
            await create("tests", subscriptions, emulator=where["pubsub_emulator"])
        memory = MemoryBus(clock, max_bytes=100 * MAX_BYTES)
        opened: list[Bus] = [memory]

        def open_one(*, max_bytes: int = MAX_BYTES) -> Bus:
            if provider != "memory":
                opened.append(open_bus(provider, clock, max_bytes=max_bytes, **where))
            return opened[-1]

        try:
            yield open_one
        finally:
            for bus in reversed(opened):
                await bus.close()
