"""Keeps the claims on work in progress: short leases, renewed while their holder lives.

So a claim says "somebody works on it" for a quarter of a minute after its process died, not for as long as the work might have
taken, and the copy that comes next does the work. Work that takes under five seconds costs no renewal.
"""

import asyncio
import logging
from dataclasses import dataclass

from shared.clock import Clock
from shared.guards import Idempotency
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
LEASE_SECONDS = 15.0
_RENEWED_AFTER_SECONDS = LEASE_SECONDS / 3


@dataclass(slots=True)
class _Held:
    token: str
    since: float
    renewed_at: float


class Leases:
    """The claims that one pipeline holds. `longest_seconds` after it was made a claim ends, whatever its holder does."""

    def __init__(self, guard: Idempotency, clock: Clock, *, longest_seconds: float) -> None:
        self.seconds = min(LEASE_SECONDS, longest_seconds)
        """The lease to claim with."""
        self.guard = guard
        self._clock = clock
        self._longest_seconds = longest_seconds
        self._held: dict[str, _Held] = {}
        self._keeping: asyncio.Task[None] | None = None

    def hold(self, key: str, token: str) -> None:
        """Renew this claim, which was just made, until it is dropped."""
        now = self._clock.monotonic()
        self._held[key] = _Held(token, now, now)
        if self._keeping is None:
            # One task for all: most claims are dropped long before it looks at them.
            self._keeping = asyncio.get_running_loop().create_task(self._keep(), name="leases")

    def drop(self, key: str, token: str) -> None:
        """Leave this claim alone from now on."""
        held = self._held.get(key)
        if held is not None and held.token == token:  # else the lease ran out, and another delivery here holds it now
            del self._held[key]

    async def _keep(self) -> None:
        try:
            while self._held:
                await self._clock.sleep(_RENEWED_AFTER_SECONDS)
                now = self._clock.monotonic()
                due = [(key, held) for key, held in self._held.items() if now - held.renewed_at >= _RENEWED_AFTER_SECONDS]
                await asyncio.gather(*(self._renew(key, held, now) for key, held in due))
        finally:
            self._keeping = None

    async def _renew(self, key: str, held: _Held, now: float) -> None:
        seconds = min(LEASE_SECONDS, held.since + self._longest_seconds - now)
        if seconds <= 0:
            self.drop(key, held.token)
            return
        held.renewed_at = now
        try:
            kept = await self.guard.renew(key, token=held.token, lease_seconds=seconds)
        except Exception as error:
            # There are two more tries before the lease ends; and if it does, the worst is that a copy does the work as well.
            _log.warning("the claim of %s is not renewed", key, extra={"error": describe_error(error)})
            return
        if not kept and self._held.get(key) is held:
            self.drop(key, held.token)
            _log.warning("the claim of %s was lost: somebody else may do the same work", key)
