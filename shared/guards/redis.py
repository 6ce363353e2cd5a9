"""Guards in Redis, shared by every instance that has the same `REDIS_URL`.

They decide as shared.guards.policy does, in one Lua script an operation, on the server's clock. All keys of an operation have one
hash tag, the name that it guards: any Redis Cluster can hold them. Every key has a time to live. The server must not evict
(`maxmemory-policy noeviction`): an evicted claim is work that can be done twice.
"""

import math
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from shared.clock import Clock
from shared.errors import CircuitOpen, RateLimited
from shared.guards import policy
from shared.guards.base import Claim, Done, Guards, InFlight, New, Window
from shared.guards.policy import BreakerRules
from shared.redis.store import RedisStore

LUA: Final = Path(__file__).parent / "lua"
_CIRCUIT_MILLISECONDS: Final = 86_400_000  # a circuit that nobody has touched for a day says nothing about today
_CORRECTION_MILLISECONDS: Final = 60_000  # longer than a call is asked for again
_VIEW_SECONDS: Final = 1.0


def key_of(guard: str, name: str) -> str:
    """The key of a record."""
    return f"agent-team:{guard}:{{{name}}}"


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))


class RedisIdempotency:
    """Claims. The claimant makes its token, so a claim whose answer was lost can be asked for again."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._claim, self._renew, self._complete, self._release = (
            store.script(name) for name in ("claim", "renew", "complete", "release")
        )

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        token = secrets.token_hex(16)
        life = _milliseconds(max(ttl_seconds, lease_seconds))
        answer = await self._store.run(self._claim, key_of("claim", key), token, lease_seconds, life)
        match answer[0]:
            case b"new":
                return New(token)
            case b"in_flight":
                return InFlight(float(answer[1]))
            case _:
                return Done(answer[1])

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        life = _milliseconds(lease_seconds)
        return bool(await self._store.run(self._renew, key_of("claim", key), token, lease_seconds, life))

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        arguments = (token,) if result is None else (token, result)
        return bool(await self._store.run(self._complete, key_of("claim", key), *arguments))

    async def release(self, key: str, *, token: str) -> bool:
        return bool(await self._store.run(self._release, key_of("claim", key), token))


class RedisRateLimiter:
    """Buckets. A reservation whose answer was lost is made again: tokens may be wasted, never granted twice."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store
        self._reserve, self._settle, self._penalise = (store.script(name) for name in ("reserve", "settle", "penalise"))

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
        longest = "" if max_wait_seconds is None else max_wait_seconds
        words = [
            word
            for window in windows
            for word in (window.name, window.limit, window.cost, window.ends_in_seconds, window.length_seconds)
        ]
        taken, seconds = await self._store.run(
            self._reserve, key_of("bucket", bucket), rate, burst, cost, longest, policy.WINDOW_KEPT_SECONDS, *words
        )
        wait = float(seconds)
        if not taken and max_wait_seconds is not None:
            raise RateLimited(policy.refusal(bucket, wait, max_wait_seconds), retry_after_seconds=wait)
        return wait

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        keys = key_of("bucket", bucket), f"{key_of('settled', bucket)}:{secrets.token_hex(8)}"
        await self._store.run(self._settle, keys, window, cost, age_seconds, _CORRECTION_MILLISECONDS)

    async def penalise(self, bucket: str, seconds: float) -> None:
        await self._store.run(self._penalise, key_of("bucket", bucket), seconds)


class RedisBreaker:
    """Circuit breakers. That one is CLOSED is believed for a second before Redis is asked again."""

    def __init__(self, store: RedisStore, clock: Clock, rules: BreakerRules | None = None) -> None:
        self._store = store
        self._now = clock.monotonic
        self._rules = BreakerRules() if rules is None else rules
        self._permit, self._report, self._state = (store.script(name) for name in ("permit", "report", "state"))
        self._closed_until: dict[str, float] = {}

    async def before(self, name: str) -> None:
        if self._now() < self._closed_until.get(name, -math.inf):
            return
        rules = self._rules
        state, *refused_for = await self._store.run(
            self._permit, key_of("breaker", name), rules.pause_seconds, rules.probe_seconds, _CIRCUIT_MILLISECONDS
        )
        if refused_for:
            seconds = float(refused_for[0])
            raise CircuitOpen(policy.open_message(name, state.decode(), seconds), retry_after_seconds=seconds)
        self._believe(name, state)

    async def after(self, name: str, *, success: bool) -> None:
        rules = self._rules
        state = await self._store.run(
            self._report,
            key_of("breaker", name),
            int(success),
            rules.failures_to_open,
            rules.pause_seconds,
            rules.successes_to_close,
            _CIRCUIT_MILLISECONDS,
        )
        self._believe(name, state)

    async def state(self, name: str) -> str:
        answer: bytes = await self._store.run(self._state, key_of("breaker", name))
        return answer.decode()

    def _believe(self, name: str, state: bytes) -> None:
        if state == b"CLOSED":
            self._closed_until[name] = self._now() + _VIEW_SECONDS
        else:
            self._closed_until.pop(name, None)


class RedisCache:
    """Values by key. What the server has no room for is refused by the server, see the module."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    async def get(self, key: str) -> bytes | None:
        value: bytes | None = await self._store.call("GET", key_of("cache", key))
        return value

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        await self._store.call("SET", key_of("cache", key), value, "PX", _milliseconds(ttl_seconds))


def guards_over(store: RedisStore, clock: Clock) -> Guards:
    """Guards over an open store; closing them closes it."""
    return Guards(
        RedisIdempotency(store), RedisRateLimiter(store), RedisBreaker(store, clock), RedisCache(store), closing=store.close
    )


def open_redis(url: str, clock: Clock) -> Guards:
    """Guards in the Redis at `url`, connected at the first call. Raises ConfigurationError when it is not a Redis URL."""
    return guards_over(RedisStore(url, LUA), clock)
