"""Opens a simulated Gemini on this machine, in the running loop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.clock import Clock, SystemClock
from shared.local.server import bind, serve
from shared.local.simulator.calls import Script
from shared.local.simulator.connections import Connections
from shared.local.simulator.faults import Fault
from shared.local.simulator.ledger import Ledger
from shared.local.simulator.service import create_service
from shared.local.simulator.settings import SimulatorSettings
from shared.local.simulator.state import State

_LOCALHOST = "127.0.0.1"


class Simulator:
    """A simulated Gemini that answers at `url`. Open one with `open_simulator`."""

    def __init__(self, url: str, state: State) -> None:
        self.url = url
        """What GEMINI_BASE_URL is to be."""
        self._state = state

    @property
    def ledger(self) -> Ledger:
        """What it has seen."""
        return self._state.ledger

    def fail(self, fault: Fault, *, model: str | None = None) -> None:
        """Let calls for `model` fail; None: for whichever model is called."""
        self._state.faults.add(fault, model=model)

    def script(self, model: str, calls: Script) -> None:
        """What `model` asks for where functions are declared, turn by turn, instead of each function once."""
        self._state.scripts[model] = calls

    def reset(self) -> None:
        """As if it had just been opened."""
        self._state.reset()


@asynccontextmanager
async def open_simulator(
    settings: SimulatorSettings | None = None, *, clock: Clock | None = None, port: int = 0
) -> AsyncIterator[Simulator]:
    """Serve on 127.0.0.1 and `port`, 0 for any free one. What is in progress in the end is broken off.

    Raises ConfigurationError when the port is in use.
    """
    state = State(SimulatorSettings() if settings is None else settings, SystemClock() if clock is None else clock)
    connections = Connections()
    started = asyncio.Event()
    with bind(_LOCALHOST, port) as listening:
        app = create_service(state, connections)
        serving = asyncio.create_task(serve(app, listening, on_started=started.set, protocol=connections.protocol()))
        try:
            await started.wait()
            yield Simulator(f"http://{_LOCALHOST}:{listening.getsockname()[1]}", state)
        finally:
            state.closing.set()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
