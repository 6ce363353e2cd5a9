"""A simulated Gemini: the real wire format, quotas that are kept, failures on demand, and a ledger of what was asked.

It stands where Gemini would (`GEMINI_BASE_URL`), for `agent-team serve --simulate`, tests and benchmarks. What it says is
extracted from the prompt; every text that people may read says so at its end.
"""

from shared.local.simulator.faults import Fault, Kind
from shared.local.simulator.ledger import Entry, Ledger
from shared.local.simulator.opening import Simulator, open_simulator
from shared.local.simulator.settings import SimulatorSettings, served_models
from shared.local.simulator.simulation import open_simulation, simulation_variables

__all__ = [
    "Entry",
    "Fault",
    "Kind",
    "Ledger",
    "Simulator",
    "SimulatorSettings",
    "open_simulation",
    "open_simulator",
    "served_models",
    "simulation_variables",
]
