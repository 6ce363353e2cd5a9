"""The guards' interfaces. Each operation is atomic over all instances that share the back end, and one round trip."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class New:
    """The claim is yours until its lease ends. The fencing token proves it to `complete` and `release`."""

    token: str


@dataclass(frozen=True, slots=True)
class InFlight:
    """Somebody else works on it; their lease ends in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """The work was completed. `result` is what was stored with it, None when nothing was (or is any more)."""

    result: bytes | None


Claim = New | InFlight | Done


class Idempotency(Protocol):
    """The right to work on a message id, and the memory that the work is done."""

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        """Claim `key`. A claim whose lease ended can be taken over, under a new token; a record lives for `ttl_seconds`."""
        ...

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        """Hold an uncompleted claim for `lease_seconds` from now. False, changing nothing, when `token` no longer holds it."""
        ...

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        """Record the work as done and keep `result`. The holder may call it again to replace or, with None, drop the result.

        False, changing nothing, when `token` no longer holds the claim.
        """
        ...

    async def release(self, key: str, *, token: str) -> bool:
        """Give an uncompleted claim back so that the next delivery can work at once. False when `token` does not hold it."""
        ...


@dataclass(frozen=True, slots=True)
class Window:
    """A quota that begins anew at fixed moments: requests a day, tokens a minute."""

    name: str
    """Its name among the bucket's windows: "day", "minute"."""
    limit: float
    """What one window holds."""
    cost: float
    """What this reservation takes of it, at most `limit`."""
    ends_in_seconds: float
    """Until the current window ends, by the caller's clock."""
    length_seconds: float
    """Of each window after it."""


class RateLimiter(Protocol):
    """Buckets of several dimensions, kept as schedules: a caller learns at once how long to wait, and nobody polls."""

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
        """Take `cost` tokens of a bucket that refills at `rate` per second and holds `burst`, and each window's cost of it.

        Returns the seconds to wait first, until every dimension holds what is taken. First come, first served, among those who
        name the same windows. When the wait would be longer than `max_wait_seconds` nothing is taken of any dimension and
        RateLimited is raised; its `retry_after_seconds` is that wait, after which all is there if nobody else came. Raises
        ConfigurationError for a limit that cannot be kept, and for a cost that its window can never hold.
        """
        ...

    async def settle(self, bucket: str, *, window: str, cost: float, age_seconds: float) -> None:
        """Correct what a call reserved of a window that was let through `age_seconds` ago: `cost` more, or less where negative.

        Where that window is over, more counts against the one that is known now, and less is lost. Nobody waits for a correction,
        so that it may take a window above its limit: it reports what was used already.
        """
        ...

    async def penalise(self, bucket: str, seconds: float) -> None:
        """Let nobody through for `seconds` from now: what one instance learnt from a 429 slows all of them."""
        ...


class Breaker(Protocol):
    """CLOSED → OPEN after consecutive failures → HALF_OPEN after a pause → CLOSED after consecutive successes."""

    async def before(self, name: str) -> None:
        """Return when a call may be made. Raises CircuitOpen, with `retry_after_seconds`, when it may not."""
        ...

    async def after(self, name: str, *, success: bool) -> None:
        """Report how the permitted call went."""
        ...

    async def state(self, name: str) -> str:
        """CLOSED, OPEN or HALF_OPEN."""
        ...


class Cache(Protocol):
    """Bytes by key, for a time."""

    async def get(self, key: str) -> bytes | None:
        """The stored value, None when there is none or its time is over."""
        ...

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        """Store a value, replacing an earlier one."""
        ...


async def _nothing_to_close() -> None:
    """Guards without connections need no closing."""


@dataclass(frozen=True, slots=True)
class Guards:
    """All guards of one back end."""

    idempotency: Idempotency
    limiter: RateLimiter
    breaker: Breaker
    cache: Cache
    closing: Callable[[], Awaitable[None]] = _nothing_to_close
    """What frees the connections."""

    async def close(self) -> None:
        """Free the connections. The guards must not be used afterwards."""
        await self.closing()
