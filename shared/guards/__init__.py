"""Guards: idempotency, rate limits, circuit breakers and a cache, shared by all instances that share their back end."""

from shared.clock import Clock
from shared.errors import ConfigurationError
from shared.guards.base import Breaker, Cache, Claim, Done, Guards, Idempotency, InFlight, New, RateLimiter

__all__ = ["Breaker", "Cache", "Claim", "Done", "Guards", "Idempotency", "InFlight", "New", "RateLimiter", "open_guards"]


def open_guards(backend: str, clock: Clock) -> Guards:
    """The guards that `GUARDS_BACKEND` names. Raises ConfigurationError for a name that is not known here."""
    if backend == "memory":
        from shared.guards.memory import open_memory

        return open_memory(clock)
    raise ConfigurationError(f"GUARDS_BACKEND is {backend!r}; the back ends that can be opened here are: memory")
