"""Buses: ways to publish messages and to be handed deliveries, all with Pub/Sub's rules."""

from shared.bus.base import Bus, Delivery, Handler, Message, Outcome, Subscription
from shared.clock import Clock
from shared.errors import ConfigurationError

__all__ = ["Bus", "Delivery", "Handler", "Message", "Outcome", "Subscription", "open_bus"]


def open_bus(provider: str, clock: Clock, *, max_bytes: int) -> Bus:
    """The bus that `AGENT_BUS_PROVIDER` names. It refuses messages with more than `max_bytes` of data.

    Raises ConfigurationError for a name that is not known here.
    """
    if provider == "memory":
        from shared.bus.memory import MemoryBus

        return MemoryBus(clock, max_bytes=max_bytes)
    raise ConfigurationError(f"AGENT_BUS_PROVIDER is {provider!r}; the buses that can be opened here are: memory")
