"""The platform's settings, with a simulated Gemini where the real one would be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr

from shared.ai.catalog import at_rate, find
from shared.config import Settings
from shared.local.simulator.opening import open_simulator
from shared.local.simulator.settings import RETIRED, SimulatorSettings, served_models

_KEY = "simulated-key"


def simulation_variables(settings: Settings) -> dict[str, str]:
    """What tells another process to ask the simulated Gemini that `settings` from `open_simulation` ask."""
    return {"GEMINI_BASE_URL": settings.gemini_base_url or "", "GEMINI_API_KEY": _KEY}


@asynccontextmanager
async def open_simulation(settings: Settings) -> AsyncIterator[Settings]:
    """Start a simulated Gemini with the quotas that `settings` believe in, and yield the settings that ask it."""
    models, default, qps = served_models(), settings.ai_model_default, settings.ai_rate_qps
    if default not in RETIRED:
        limit = find(default, qps=qps).limit
        # Whoever gives a rate of their own has another tier at Google, and so here.
        models[default] = at_rate(limit, qps) if "ai_rate_qps" in settings.model_fields_set else limit
    async with open_simulator(SimulatorSettings(models=models)) as simulator:
        # A real key is kept from going anywhere but to Google.
        yield settings.model_copy(update={"gemini_base_url": simulator.url, "gemini_api_key": SecretStr(_KEY)})
