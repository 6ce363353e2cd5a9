"""A model that is asked again when it fails in passing: at most three times more, after 200, 400 and 800 ms.

A server that wants a longer pause gets it, where that leaves at least half of the time and is no more than a minute; else the error
is raised, and says when to come back. An open circuit is not asked again, nor is our own rate limit, which was waited for already.
"""

import logging
from dataclasses import replace
from typing import Final

from shared.ai.base import Model, Reply, Request
from shared.ai.limited import longest_wait
from shared.clock import Clock
from shared.errors import CircuitOpen, RateLimited, Transient

_log = logging.getLogger(__name__)
_DELAYS: Final = (0.2, 0.4, 0.8)
_ENOUGH_SECONDS: Final = 60.0
"""For most answers. Beyond that a call gets an equal share, so that one that hangs leaves time for another."""


def time_for_one(left_seconds: float, calls_left: int) -> float:
    """What one of so many calls may take of the seconds that are left; above 0."""
    return max(0.001, left_seconds / calls_left, min(left_seconds, _ENOUGH_SECONDS))


class RetryingModel:
    """`inner`, asked up to four times."""

    def __init__(self, inner: Model, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock

    async def generate(self, request: Request) -> Reply:
        """Raises the last error."""
        deadline = self._clock.monotonic() + request.timeout_seconds
        for calls_left, delay in zip(range(len(_DELAYS) + 1, 1, -1), _DELAYS, strict=True):
            asked = replace(request, timeout_seconds=time_for_one(deadline - self._clock.monotonic(), calls_left))
            try:
                return await self._inner.generate(asked)
            except Transient as error:
                wait = self._wait(error, delay, deadline, asked)
                if wait is None:
                    raise
                _log.info("asking again in %g s: %s", wait, error)
            await self._clock.sleep(wait)
        return await self._inner.generate(replace(request, timeout_seconds=time_for_one(deadline - self._clock.monotonic(), 1)))

    def _wait(self, error: Transient, delay: float, deadline: float, asked: Request) -> float | None:
        """The seconds until the next call; None when there shall be none."""
        if isinstance(error, CircuitOpen):
            return None
        left = deadline - self._clock.monotonic()
        # A limit of our own refuses only waits beyond what the call's time allowed: so none of its waits is taken for a provider's.
        time = min(left, asked.timeout_seconds) if isinstance(error, RateLimited) else left
        wait = delay if error.retry_after_seconds is None else max(delay, error.retry_after_seconds)
        return wait if wait <= longest_wait(time) else None
