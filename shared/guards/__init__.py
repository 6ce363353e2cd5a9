"""Guards: idempotency, rate limits, circuit breakers and a cache, shared by all instances that share their back end."""

from shared.clock import Clock
from shared.errors import ConfigurationError
from shared.guards.base import Breaker, Cache, Claim, Done, Guards, Idempotency, InFlight, New, RateLimiter, Window

__all__ = ["Breaker", "Cache", "Claim", "Done", "Guards", "Idempotency", "InFlight", "New", "RateLimiter", "Window", "open_guards"]


def open_guards(
    backend: str, clock: Clock, *, redis_url: str | None = None, gcp_project: str | None = None, instances: int = 10
) -> Guards:
    """The guards that `GUARDS_BACKEND` names, prepared for the failure of their store; see shared.guards.fallback.

    Nothing is connected yet. While the store is down each instance takes one of `instances` shares of every rate limit: give as
    many as ever run at once. Raises ConfigurationError for a name that is not known here, and when what the back end needs is
    missing or malformed: `redis_url` or `gcp_project`.
    """
    if backend == "memory":
        from shared.guards.memory import open_memory

        return open_memory(clock)
    if backend == "redis":
        from shared.guards.fallback import with_fallbacks
        from shared.guards.redis import open_redis

        if redis_url is None:
            raise ConfigurationError("GUARDS_BACKEND is redis; set REDIS_URL to redis://user:password@host:6379/0")
        return with_fallbacks(open_redis(redis_url, clock), clock, instances=instances)
    if backend == "firestore":
        from shared.guards.fallback import with_fallbacks
        from shared.guards.firestore import open_firestore

        if gcp_project is None:
            raise ConfigurationError("GUARDS_BACKEND is firestore; set GCP_PROJECT_ID to the project whose Firestore to use")
        return with_fallbacks(open_firestore(gcp_project, clock), clock, instances=instances)
    raise ConfigurationError(f"GUARDS_BACKEND is {backend!r}; the back ends that can be opened here are: memory, redis, firestore")
