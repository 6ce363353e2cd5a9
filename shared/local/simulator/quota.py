"""The quota of one model over all its callers: requests a second with a burst, requests a day, tokens a minute.

A server sees arrivals, not departures: calls that were sent as the quota allows may arrive closer together, or just after the
window that they belong to. So the bucket is `qps * tolerance_seconds` larger than the burst, and a call that arrives within
`tolerance_seconds` after a window's start may count for the window before. Output counts for the minute in which its call came.

Nothing here keeps time: each call brings the clock's readings.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from shared.ai.catalog import Limit

_PACIFIC: Final = ZoneInfo("America/Los_Angeles")
_MINUTE_SECONDS: Final = 60
_NEARLY: Final = 1e-6
"""A caller that waits exactly as long as it must is not to fail by a rounding error."""


@dataclass(frozen=True, slots=True)
class Excess:
    """A call above the quota."""

    dimension: str
    """second, day or minute."""
    limit: float
    retry_after_seconds: float


class _Window:
    """A count that begins anew with each period: a day in California, or a minute."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used: dict[str, int] = {}

    def room(self, periods: list[str], cost: int) -> str | None:
        """The first of `periods` that still holds `cost`."""
        self._used = {period: used for period, used in self._used.items() if period in periods}
        return next((period for period in periods if self._used.get(period, 0) + cost <= self.limit), None)

    def take(self, period: str, cost: int) -> None:
        self._used[period] = self._used.get(period, 0) + cost


class Quota:
    """What is left of a `Limit`."""

    def __init__(self, limit: Limit, *, tolerance_seconds: float) -> None:
        self._limit = limit
        self._tolerance = tolerance_seconds
        self._size = limit.burst + limit.qps * tolerance_seconds
        self._tokens = self._size
        self._filled_at: float | None = None
        self._day = None if limit.per_day is None else _Window(limit.per_day)
        self._minute = None if limit.tokens_per_minute is None else _Window(limit.tokens_per_minute)

    def take(self, *, monotonic: float, now: datetime, input_tokens: int) -> Excess | str:
        """Let a call in and return the minute that it counts for, or say which limit it is above and take nothing."""
        self._refill(monotonic)
        if self._tokens < 1 - _NEARLY:
            return Excess("second", self._limit.qps, (1 - self._tokens) / self._limit.qps)
        began = now - timedelta(seconds=self._tolerance)
        day, minute = _day(now), _minute(now)
        if self._day is not None:
            period = self._day.room([_day(began), day] if _day(began) != day else [day], 1)
            if period is None:
                return Excess("day", self._day.limit, _until_tomorrow(now))
            day = period
        if self._minute is not None:
            period = self._minute.room([_minute(began), minute] if _minute(began) != minute else [minute], input_tokens)
            if period is None:
                return Excess("minute", self._minute.limit, _MINUTE_SECONDS - now.timestamp() % _MINUTE_SECONDS)
            minute = period
            self._minute.take(minute, input_tokens)
        if self._day is not None:
            self._day.take(day, 1)
        self._tokens -= 1
        return minute

    def used(self, minute: str, output_tokens: int) -> None:
        """A call that counts for `minute` was answered with so much."""
        if self._minute is not None:
            self._minute.take(minute, output_tokens)

    def _refill(self, monotonic: float) -> None:
        if self._filled_at is not None:
            self._tokens = min(self._size, self._tokens + (monotonic - self._filled_at) * self._limit.qps)
        self._filled_at = monotonic


def _day(now: datetime) -> str:
    return now.astimezone(_PACIFIC).date().isoformat()


def _minute(now: datetime) -> str:
    return str(int(now.timestamp() // _MINUTE_SECONDS))


def _until_tomorrow(now: datetime) -> float:
    here = now.astimezone(_PACIFIC)
    midnight = datetime.combine(here.date() + timedelta(days=1), datetime.min.time(), _PACIFIC)
    return midnight.timestamp() - now.timestamp()
