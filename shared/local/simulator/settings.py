"""How a simulator is to behave."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from shared.ai.catalog import CATALOG, Limit

RETIRED: Final = frozenset({"gemini-1.5-pro", "gemini-1.5-flash"})
"""In the catalog, and no longer served by Google."""


def served_models() -> dict[str, Limit]:
    """The catalog's models that Google serves, each with its limit."""
    return {name: entry.limit for name, entry in CATALOG.items() if name not in RETIRED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorSettings:
    """Nothing is slow, nothing thinks and every key is good, unless it says so here."""

    models: Mapping[str, Limit] = field(default_factory=served_models)
    """The models that there are, and how much of each all callers together may use."""
    keys: frozenset[str] | None = field(default=None, repr=False)
    """The keys that are accepted; None: any."""
    tolerance_seconds: float = 0.25
    """How much later than it was sent a call may arrive before it counts against its caller: see `shared.local.simulator.quota`."""
    base_seconds: float = 0.0
    """How long an answer takes at least."""
    seconds_per_token: float = 0.0
    """And for each token of output, thinking included."""
    thinking_tokens: int = 0
    """Spent on each answer, within its `maxOutputTokens`."""
    cached_share: float = 0.0
    """Of each prompt's tokens, from 0 to 1."""
    seed: int = 0
    """Of the chance by which calls fail."""
