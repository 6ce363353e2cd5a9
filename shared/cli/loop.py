"""Runs a verb on an event loop that ends in order when it is told to."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Stopped(Exception):
    """A signal asked the process to end, and what was running has ended in order."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.exit_code = 128 + number
        """What a shell expects of a process that a signal ended."""


def run_async(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` on uvloop and return its result.

    SIGINT and SIGTERM cancel it; Stopped is raised once it has cleaned up. Another signal cuts the cleaning up short.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_signal(main))


async def _until_signal(main: Coroutine[Any, Any, _T]) -> _T:
    loop, work = asyncio.get_running_loop(), asyncio.ensure_future(main)
    received: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        received.append(number)
        work.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await work
    except asyncio.CancelledError:
        if received:
            raise Stopped(received[0]) from None
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
