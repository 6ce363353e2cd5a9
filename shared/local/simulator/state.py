"""What all calls to one simulator share."""

import asyncio
import itertools
from collections.abc import Coroutine
from typing import Any

from shared.clock import Clock
from shared.local.simulator.calls import Script
from shared.local.simulator.faults import Faults
from shared.local.simulator.ledger import Ledger
from shared.local.simulator.quota import Quota
from shared.local.simulator.settings import SimulatorSettings


class State:
    """The simulator's memory and its time."""

    def __init__(self, settings: SimulatorSettings, clock: Clock) -> None:
        self.settings = settings
        self.clock = clock
        self.ledger = Ledger()
        self.faults = Faults(settings.seed)
        self.scripts: dict[str, Script] = {}
        """By model: the calls to ask for, where somebody has given them."""
        self.numbers = itertools.count(1)
        self.closing = asyncio.Event()
        """Nobody waits any more: what is slow or hangs ends."""
        self.reset()

    def reset(self) -> None:
        """As if it had just been opened: no calls, no faults, no scripts, whole quotas."""
        self.ledger.clear()
        self.faults.clear()
        self.scripts.clear()
        tolerance = self.settings.tolerance_seconds
        self.quotas = {model: Quota(limit, tolerance_seconds=tolerance) for model, limit in self.settings.models.items()}

    async def pause(self, seconds: float) -> None:
        """Wait, unless the simulator is being closed."""
        if seconds > 0:
            await self.unless_closing(self.clock.sleep(seconds))

    async def unless_closing(self, waited_for: Coroutine[Any, Any, None]) -> None:
        """Return when that has come to its end, or the simulator is being closed."""
        waits = [asyncio.ensure_future(waited_for), asyncio.ensure_future(self.closing.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
