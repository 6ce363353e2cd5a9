"""What the guards do while their store is down. Each wraps a guard of any back end and is one.

- Idempotency fails closed: without the memory of what was done, nothing may be done. The delivery comes again.
- The limiter keeps to this instance's share of each limit: the fleet stays within the limit, and nobody stands still.
- The breaker and the cache fail open: calls are made, unprotected and uncached.

A store that fails is left alone for a second (not by idempotency), so that a dead one does not slow every call down. Each change is
logged once, and each outage counted once. A store that refuses its user is down too: that is no fault of the message at hand.
"""

import logging
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from shared.clock import Clock
from shared.errors import AgentTeamError, ConfigurationError, RateLimited, ShareUsed, StoreUnavailable
from shared.guards import policy
from shared.guards.base import Breaker, Cache, Claim, Guards, Idempotency, RateLimiter, Window
from shared.guards.memory import MemoryRateLimiter
from shared.telemetry import metrics

_log = logging.getLogger(__name__)

_T = TypeVar("_T")
_REST_SECONDS: Final = 1.0
_DOWN: Final = (StoreUnavailable, ConfigurationError)


class Watch:
    """Knows whether a guard's store answers, and tells when that changes. `instead` says what the guard does then."""

    def __init__(self, guard: str, instead: str, clock: Clock) -> None:
        self._guard = guard
        self._instead = instead
        self._now = clock.monotonic
        self._down = False
        self._rest_until = 0.0

    def may_ask(self) -> bool:
        """Whether to ask the store: always while it answers, else one caller a second."""
        if self._down:
            now = self._now()
            if now < self._rest_until:
                return False
            self._rest_until = now + _REST_SECONDS
        return True

    async def ask(self, question: Awaitable[_T]) -> _T:
        """The store's answer, a refusal included. Raises StoreUnavailable when the store is down, whatever the reason."""
        try:
            answer = await question
        except _DOWN as error:
            self._failed(error)
            raise StoreUnavailable(str(error)) from error
        except AgentTeamError:
            self._answered()
            raise
        self._answered()
        return answer

    def _answered(self) -> None:
        if self._down:
            self._down = False
            _log.warning("the guards' store answers again: the %s works as usual", self._guard, extra={"guard": self._guard})

    def _failed(self, error: Exception) -> None:
        self._rest_until = self._now() + _REST_SECONDS
        if not self._down:
            self._down = True
            metrics.count("guards.outage", guard=self._guard)
            _log.error(
                "the guards' store is down, so the %s %s: %s", self._guard, self._instead, error, extra={"guard": self._guard}
            )


class ClosedIdempotency:
    """Claims that fail closed: every failure of the store is a StoreUnavailable, and the store is always asked."""

    def __init__(self, inner: Idempotency, clock: Clock) -> None:
        self._inner = inner
        self._watch = Watch("idempotency", "refuses all work", clock)

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        return await self._watch.ask(self._inner.claim(key, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds))

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        return await self._watch.ask(self._inner.renew(key, token=token, lease_seconds=lease_seconds))

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        return await self._watch.ask(self._inner.complete(key, token=token, result=result))

    async def release(self, key: str, *, token: str) -> bool:
        return await self._watch.ask(self._inner.release(key, token=token))


class ShareLimiter:
    """Rate limits of which this instance takes one share of `instances` while the store is down; what it refuses then is ShareUsed.

    With more instances than that the fleet exceeds the limit, with fewer it stays below it. A share begins full, so that at the
    moment of the change one more burst, and one more of each window, than the limit allows may pass. A cost above the share of a
    window is served when nothing was taken of the share yet: it would be refused for as long as the store is down otherwise, so a
    fleet that asks for nothing else takes up to `instances` such costs of each window.
    """

    def __init__(self, inner: RateLimiter, clock: Clock, *, instances: int) -> None:
        self._inner = inner
        self._instances = instances
        self._share = MemoryRateLimiter(clock)
        self._watch = Watch("limiter", f"takes 1/{instances} of each limit for this instance", clock)

    async def reserve(
        self,
        bucket: str,
        *,
        rate: float,
        burst: float,
        cost: float = 1.0,
        windows: Sequence[Window] = (),
        max_wait_seconds: float | None = None,
    ) -> float:
        policy.check_limit(rate=rate, burst=burst, cost=cost, windows=windows)
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                return await self._watch.ask(
                    self._inner.reserve(
                        bucket, rate=rate, burst=burst, cost=cost, windows=windows, max_wait_seconds=max_wait_seconds
                    )
                )
        shares = [replace(window, limit=max(window.limit / self._instances, window.cost)) for window in windows]
        rate, burst = rate / self._instances, burst / self._instances
        try:
            return await self._share.reserve(
                bucket, rate=rate, burst=burst, cost=cost, windows=shares, max_wait_seconds=max_wait_seconds
            )
        except RateLimited as error:
            raise ShareUsed(str(error), retry_after_seconds=error.retry_after_seconds) from error

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                return await self._watch.ask(self._inner.settle(bucket, window=window, cost=cost, age_seconds=age_seconds))
        # Whether the store or the share counted that call is not known: the share is what counts now.
        await self._share.settle(bucket, window=window, cost=cost, age_seconds=age_seconds)

    async def penalise(self, bucket: str, seconds: float) -> None:
        await self._share.penalise(bucket, seconds)  # the store may go down before the penalty ends
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                await self._watch.ask(self._inner.penalise(bucket, seconds))


class OpenBreaker:
    """Circuit breakers that let every call through while the store is down."""

    def __init__(self, inner: Breaker, clock: Clock) -> None:
        self._inner = inner
        self._watch = Watch("breaker", "lets every call through", clock)

    async def before(self, name: str) -> None:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                await self._watch.ask(self._inner.before(name))

    async def after(self, name: str, *, success: bool) -> None:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                await self._watch.ask(self._inner.after(name, success=success))

    async def state(self, name: str) -> str:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                return await self._watch.ask(self._inner.state(name))
        return "CLOSED"


class OpenCache:
    """A cache that knows and keeps nothing while the store is down."""

    def __init__(self, inner: Cache, clock: Clock) -> None:
        self._inner = inner
        self._watch = Watch("cache", "answers nothing", clock)

    async def get(self, key: str) -> bytes | None:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                return await self._watch.ask(self._inner.get(key))
        return None

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if self._watch.may_ask():
            with suppress(StoreUnavailable):
                await self._watch.ask(self._inner.put(key, value, ttl_seconds=ttl_seconds))


def with_fallbacks(guards: Guards, clock: Clock, *, instances: int) -> Guards:
    """The guards, prepared for the failure of their store; `instances` share each limit then."""
    return Guards(
        ClosedIdempotency(guards.idempotency, clock),
        ShareLimiter(guards.limiter, clock, instances=instances),
        OpenBreaker(guards.breaker, clock),
        OpenCache(guards.cache, clock),
        closing=guards.close,
    )
