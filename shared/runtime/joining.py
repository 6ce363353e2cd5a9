"""Joins functions to a bus that hands them their messages, in processes that run several of them."""

import gc
from collections.abc import Iterable

from shared.runtime.entry import load
from shared.runtime.wiring import Runtime


async def join(live: Runtime, functions: Iterable[str]) -> None:
    """Subscribe each function to its topics. Raises NotFound, and what is wrong with the project or with the bus."""
    assert live.definitions is not None  # a mistake in a definition is told before anything runs
    for name in functions:
        handlers = load(name).handlers(live)
        for subscription in live.functions[name].subscriptions():
            await live.bus.subscribe(subscription, handlers[subscription.topic])


def tune_collector() -> None:
    """Spare the garbage collector work it would do in vain, once everything is started: about 5 % of the throughput."""
    gc.freeze()  # what starting made lives as long as the process
    gc.set_threshold(10_000)  # what a step makes is mostly freed by the end of it
