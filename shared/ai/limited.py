"""A model that keeps to its limits, over all instances together: requests a second, requests a day, tokens a minute.

A call reserves its place before it is made, and tokens by a guess that is settled with what was used. A short wait is waited out;
for a longer one there is RateLimited, which says when to come back. What one instance learns from the provider's 429 slows all.
Retries stand outside: each of their calls reserves a place of its own, and waits no longer than its own part of the time allows.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, time, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from shared.ai.accounted import UNASKED
from shared.ai.base import Model, Reply, Request
from shared.ai.catalog import Limit
from shared.ai.sent import input_tokens_about
from shared.clock import Clock
from shared.errors import RateLimited
from shared.guards import RateLimiter, Window
from shared.telemetry import metrics

DAY: Final = "day"
MINUTE: Final = "minute"
_PACIFIC: Final = ZoneInfo("America/Los_Angeles")
_MINUTE_SECONDS: Final = 60.0
_LONGEST_WAIT_SECONDS: Final = 60.0
_LEAST_SHARE_OF_CALL: Final = 0.5
"""Of a request's timeout. A call that waited longer would hardly end in time, and what it did until then is paid for."""
_LONGEST_PENALTY_SECONDS: Final = 86_400.0
"""No quota is longer than a day, and a header may say anything."""


def pacific_day(now: datetime) -> tuple[float, float]:
    """The seconds until midnight in California, when Google's days end, and the seconds that this day has: 23, 24 or 25 hours."""
    today = now.astimezone(_PACIFIC).date()
    # There the clocks change at two, so a midnight is never skipped and never comes twice.
    begin, end = (datetime.combine(day, time(), _PACIFIC).timestamp() for day in (today, today + timedelta(days=1)))
    return end - now.timestamp(), end - begin


def tokens_at_most(request: Request) -> int:
    """A guess at the tokens that a request will use, on the high side: most answers are shorter than they may be."""
    return input_tokens_about(request) + request.max_tokens


def longest_wait(timeout_seconds: float) -> float:
    """The seconds that may be waited for a call that has so many in all."""
    return min(_LONGEST_WAIT_SECONDS, timeout_seconds * (1 - _LEAST_SHARE_OF_CALL))


class LimitedModel:
    """`inner`, asked as often as `limit` allows. `name` is the model's: whoever has the same shares the limit.

    `prepare` is what a first call has to load. A call that only began to load when its turn came would be late by that, and meet
    others' calls at the provider.
    """

    def __init__(
        self,
        inner: Model,
        limiter: RateLimiter,
        limit: Limit,
        clock: Clock,
        *,
        name: str,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._inner = inner
        self._prepare = prepare
        self._limiter = limiter
        self._limit = limit
        self._clock = clock
        self._name = name
        self._bucket = f"model:{name}"
        self._lately: deque[float] = deque()
        """When the calls of the last second were let through."""
        metrics.watch("ai.requests_per_second", self._requests_per_second, model=name)

    async def generate(self, request: Request) -> Reply:
        """Raises RateLimited when the wait would be longer than a minute, or than half of the request's timeout."""
        asked = self._clock.monotonic()
        if self._prepare is not None:
            self._prepare()
        tokens = self._tokens(request)
        windows = self._windows(tokens)
        await self._wait_for_turn(request, windows)
        begun = self._clock.monotonic()
        left = max(0.001, request.timeout_seconds - (begun - asked))
        self._let_through(begun, waited=begun - asked)
        try:
            reply = await self._inner.generate(replace(request, timeout_seconds=left))
        except UNASKED:
            await self._give_back(windows, since=begun)
            raise
        except RateLimited as error:
            if error.retry_after_seconds is not None:
                await self._limiter.penalise(self._bucket, min(error.retry_after_seconds, _LONGEST_PENALTY_SECONDS))
            raise
        # A call that failed keeps its guess: nobody knows what the provider counted.
        if self._limit.tokens_per_minute is not None:
            await self._settle(MINUTE, reply.usage.tokens - tokens, since=begun)
        return reply

    async def _wait_for_turn(self, request: Request, windows: Sequence[Window]) -> None:
        limit, longest = self._limit, longest_wait(request.timeout_seconds)
        try:
            wait = await self._limiter.reserve(
                self._bucket, rate=limit.qps, burst=limit.burst, windows=windows, max_wait_seconds=longest
            )
        except RateLimited:
            metrics.count("ai.rate_limit.denied", model=self._name)
            raise
        turn = self._clock.monotonic() + wait
        try:
            await self._clock.sleep(wait)
        except asyncio.CancelledError:
            await self._give_back(windows, since=turn)
            raise

    async def _give_back(self, windows: Sequence[Window], *, since: float) -> None:
        """The call was not made. Its place in the line passes by itself; a day's would be gone until midnight."""
        for window in windows:
            await self._settle(window.name, -window.cost, since=since)

    def _tokens(self, request: Request) -> int:
        guess = tokens_at_most(request)
        # A window that could never hold the call would keep it for ever; a whole one is all that there is.
        return guess if self._limit.tokens_per_minute is None else min(guess, self._limit.tokens_per_minute)

    def _windows(self, tokens: int) -> Sequence[Window]:
        limit, now = self._limit, self._clock.now()
        windows = []
        if limit.per_day is not None:
            ends_in, length = pacific_day(now)
            windows.append(Window(DAY, limit.per_day, 1, ends_in, length))
        if limit.tokens_per_minute is not None:
            ends_in = _MINUTE_SECONDS - now.timestamp() % _MINUTE_SECONDS
            windows.append(Window(MINUTE, limit.tokens_per_minute, tokens, ends_in, _MINUTE_SECONDS))
        return windows

    async def _settle(self, window: str, cost: float, *, since: float) -> None:
        if cost:
            await self._limiter.settle(self._bucket, window=window, cost=cost, age_seconds=self._clock.monotonic() - since)

    def _let_through(self, now: float, *, waited: float) -> None:
        self._lately.append(now)
        metrics.observe("ai.rate_limit.wait_ms", waited * 1000, model=self._name)
        metrics.gauge("ai.requests_per_second", self._requests_per_second(), model=self._name)

    def _requests_per_second(self) -> float:
        while self._lately and self._lately[0] <= self._clock.monotonic() - 1:
            self._lately.popleft()
        return len(self._lately)
