"""Buses: ways to publish messages and to be handed deliveries, all with Pub/Sub's rules."""

from shared.bus.base import Bus, Delivery, Handler, Message, Outcome, Subscription
from shared.clock import Clock
from shared.errors import ConfigurationError

__all__ = ["Bus", "Delivery", "Handler", "Message", "Outcome", "Subscription", "open_bus"]


def open_bus(
    provider: str,
    clock: Clock,
    *,
    max_bytes: int,
    redis_url: str | None = None,
    gcp_project: str | None = None,
    pubsub_emulator: str | None = None,
) -> Bus:
    """The bus that `AGENT_BUS_PROVIDER` names. It refuses messages with more than `max_bytes` of data. Nothing is connected yet.

    Raises ConfigurationError for a name that is not known here, and when what the bus needs is missing: `redis_url` or
    `gcp_project`. `pubsub_emulator` is the host:port of an emulator to use instead of the service.
    """
    if provider == "memory":
        from shared.bus.memory import MemoryBus

        return MemoryBus(clock, max_bytes=max_bytes)
    if provider == "redis":
        if redis_url is None:
            raise ConfigurationError("AGENT_BUS_PROVIDER is redis, and there is no address for it; set REDIS_URL")
        from shared.bus.redis import RedisBus

        return RedisBus(redis_url, clock, max_bytes=max_bytes)
    if provider == "pubsub":
        from shared.bus.pubsub import PubSubBus

        if gcp_project is None:
            raise ConfigurationError("AGENT_BUS_PROVIDER is pubsub and needs a project; set GCP_PROJECT_ID")
        return PubSubBus(gcp_project, clock, emulator=pubsub_emulator, max_bytes=max_bytes)
    raise ConfigurationError(f"AGENT_BUS_PROVIDER is {provider!r}; the buses that can be opened here are: memory, redis, pubsub")
