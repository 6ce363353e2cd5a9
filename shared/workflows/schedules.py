"""When a schedule is due, and what becomes of ticks that were missed. Pure functions; time is an argument, and all of it is UTC.

Cron expressions have five fields and mean what Debian's cron means by them (https://manpages.debian.org/crontab.5). A tick is on
time up to five minutes after its moment: that long a restart, a failover or a late call may take without anything counting as
missed. What is on time always starts. Of what is later than that, `catch_up` decides: `skip` starts none of it, `last` the latest
one if nothing is on time, `all` each, the oldest first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cronsim import CronSim

    from shared.workflows.definitions import Schedule

ON_TIME: Final = timedelta(minutes=5)
"""How late a tick may be found and still not count as missed."""
MOST_AT_ONCE: Final = 100
"""Ticks that one look at a schedule starts at most under `all`; the next look finds the rest."""

_SECOND: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Due:
    """What a schedule asks for now."""

    start: tuple[datetime, ...] = ()
    """Ticks that start a workflow each, the oldest first. Every earlier one is thereby passed over."""
    passed: datetime | None = None
    """Where nothing starts: the last tick that is passed over, if there is one."""


def due(schedule: "Schedule", since: datetime, now: datetime) -> Due:
    """What became due after `since`, up to and including `now`. Its cost does not depend on how long that is."""
    if schedule.catch_up == "all":
        return Due(tuple(islice(_ticks(schedule.cron, since, now), MOST_AT_ONCE)))
    on_time = tuple(_ticks(schedule.cron, max(since, now - ON_TIME - _SECOND), now))
    if on_time:
        return Due(on_time)
    latest = next(_simulated(schedule.cron, now + _SECOND, reverse=True), None)
    if latest is None or latest <= since:
        return Due()
    return Due((latest,)) if schedule.catch_up == "last" else Due(passed=latest)


def next_tick(cron: str, after: datetime) -> datetime | None:
    """The first tick after a moment; None when there is none within fifty years."""
    return next(_simulated(cron, after), None)


def just_before(cron: str, now: datetime) -> datetime:
    """The moment before the latest tick that is on time; `now` when none is."""
    on_time = tuple(_ticks(cron, now - ON_TIME - _SECOND, now))
    return on_time[-1] - _SECOND if on_time else now


def objection(cron: str) -> str | None:
    """What is wrong with an expression, and what to do about it; None when it can be kept to."""
    from cronsim import CronSimError

    if len(cron.split()) != 5:
        return 'should be a cron expression of five fields, such as "0 6 * * 1"'
    try:
        # From a leap year's beginning: what does not come within the fifty years after it never comes.
        first = next_tick(cron, datetime(2000, 1, 1, tzinfo=UTC))
    except (CronSimError, ValueError) as exc:
        return (
            f'is no cron expression ({str(exc) or "unreadable"}); write minute, hour, day, month and weekday, such as "0 6 * * 1"'
        )
    return "never comes, no year has such a day; correct day and month" if first is None else None


def _ticks(cron: str, since: datetime, now: datetime) -> Iterator[datetime]:
    return takewhile(lambda tick: tick <= now, _simulated(cron, since))


def _simulated(cron: str, start: datetime, *, reverse: bool = False) -> "CronSim":
    """Ticks from `start` on, or backwards from it, each later or earlier than its whole second."""
    from cronsim import CronSim

    return CronSim(cron, start.astimezone(UTC).replace(microsecond=0), reverse=reverse)
