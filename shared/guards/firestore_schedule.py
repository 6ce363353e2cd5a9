"""A bucket whose tokens and windows several instances hold parts of at once: policy's virtual schedule, with holes.

Every token is a stretch of the schedule, `1 / rate` seconds long. A token whose stretch begins at `s` may be taken from
`s - burst / rate` on and is lost when `s` has passed; policy.reserve gives them out one after the other, from `full_at` on. Here
an instance may also take a *lease*: stretches from further ahead, of which it serves its callers without asking. What lies free
between them are holes, open to everybody.

Why the limit holds, however many instances there are and whatever becomes of their leases: stretches never overlap, and whoever
is served at `g` has stretches within `g … g + burst / rate`. So all who are served from `a` to `b` share `b - a + burst / rate`
seconds of schedule, which hold `burst + rate * (b - a)` tokens. A lease that nobody uses is overtaken by the time, like tokens
that overflow.

A lease also holds chunks of the windows that its callers name. They count as used from when they are lent: a window holds no more
than its limit, whoever uses it up.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from shared.guards import policy
from shared.guards.base import Window
from shared.guards.policy import Bucket, WindowRecord

_SLACK_SECONDS: Final = 1e-6  # as policy's: sums of floats round
_MOST_HOLES: Final = 200
_MOST_STEPS: Final = 20
_LARGEST_SHARE: Final = 0.5


class Stretch(NamedTuple):
    """A part of the schedule, in seconds on the back end's clock."""

    start: float
    end: float


class Schedule(NamedTuple):
    """The bucket. Free are the holes, which are sorted and apart, and everything from `full_at` on."""

    full_at: float = policy.NEW_BUCKET.full_at
    blocked_until: float = policy.NEW_BUCKET.blocked_until
    holes: tuple[Stretch, ...] = ()
    windows: Mapping[str, WindowRecord] = {}


class Chunk(NamedTuple):
    """A part of a window that has begun, to be used before it ends."""

    ends: float
    left: float


class Lease(NamedTuple):
    """What one instance may use without asking."""

    stretches: tuple[Stretch, ...] = ()
    chunks: Mapping[str, Chunk] = {}


def reserve(
    schedule: Schedule, now: float, *, rate: float, burst: float, cost: float, windows: Iterable[Window] = ()
) -> tuple[float, Schedule]:
    """The seconds until the costs may be used, and the schedule without them. Without holes exactly policy.reserve."""
    windows = tuple(windows)
    at = now
    while schedule.blocked_until <= now and (found := _of_holes(schedule, now, at, rate=rate, burst=burst, cost=cost)):
        there_at, rest = found
        at, records = policy.place(schedule.windows, now, there_at, windows)
        if at <= there_at:
            wait = there_at - now
            return (wait if wait > _SLACK_SECONDS else 0.0), rest._replace(windows=records)
    bucket = Bucket(schedule.full_at, schedule.blocked_until, schedule.windows)
    wait, bucket = policy.reserve(bucket, now, rate=rate, burst=burst, cost=cost, windows=windows)
    # What lies before the end of a penalty is lost to everybody.
    holes = () if schedule.blocked_until > now else _ahead(schedule.holes, now)
    return wait, Schedule(bucket.full_at, bucket.blocked_until, holes, bucket.windows)


def _of_holes(
    schedule: Schedule, now: float, at: float, *, rate: float, burst: float, cost: float
) -> tuple[float, Schedule] | None:
    """When tokens that holes help to make up may be used, not before `at`, and the schedule without them."""
    filling = burst / rate
    holes = _ahead(schedule.holes, at)
    free = (*holes, Stretch(max(schedule.full_at, at), float("inf")))
    for first in range(len(holes)):
        end, left = _fill(free[first:], cost / rate)
        # Else the first tokens would be too old by the time when the last may be used.
        if end <= free[first].start + filling + _SLACK_SECONDS:
            before = tuple(Stretch(one.start, min(one.end, at)) for one in _ahead(schedule.holes, now) if one.start < at)
            return max(at, end - filling), schedule._replace(full_at=left[-1].start, holes=(*before, *holes[:first], *left[:-1]))
    return None


def lease(
    schedule: Schedule,
    now: float,
    *,
    rate: float,
    burst: float,
    tokens: float,
    seconds: float,
    windows: Iterable[Window] = (),
) -> tuple[Lease, Schedule]:
    """About `tokens` to be used one by one over the next `seconds` and about the costs of `windows`; the schedule without them.

    A token can be used for no longer than a bucket takes to fill, so they are taken from stretches all along the schedule, the
    later ones to be used later; of each part, and of each window, at most half of what is free. Nothing is lent while callers
    wait, or in crumbs.
    """
    stretches, rest = _lend_stretches(schedule, now, rate=rate, burst=burst, tokens=tokens, seconds=seconds)
    chunks, records = {}, dict(schedule.windows)
    for window in windows:
        record = records.get(window.name)
        if record is None or not record.begins <= now < record.ends or record.used >= window.limit:
            return Lease(), schedule
        chunk = Chunk(record.ends, min(window.cost, _LARGEST_SHARE * (window.limit - record.used)))
        chunks[window.name] = chunk
        records[window.name] = record._replace(used=record.used + chunk.left)
    return (Lease(stretches, chunks), rest._replace(windows=records)) if stretches else (Lease(), schedule)


def _lend_stretches(
    schedule: Schedule, now: float, *, rate: float, burst: float, tokens: float, seconds: float
) -> tuple[tuple[Stretch, ...], Schedule]:
    filling = burst / rate
    holes = _ahead(schedule.holes, now)
    step = max(filling, seconds / _MOST_STEPS) / 2
    steps = max(1, math.ceil(seconds / step))
    first = max(schedule.full_at, now)
    if schedule.blocked_until > now or len(holes) >= _MOST_HOLES:
        return (), schedule
    end = now + filling + (steps - 1) * step
    free = [*holes, Stretch(first, max(first, end))]
    lent: list[Stretch] = []
    for number in range(steps):
        top = now + filling + number * step
        part = Stretch(now if number == 0 else top - step, top)
        share = tokens / rate / steps
        lent += _lend(free, part, share * filling / step if number == 0 else share)
        if not lent:
            return (), schedule
    if sum(one.end - one.start for one in lent) * rate < min(1.0, tokens) - _SLACK_SECONDS:
        return (), schedule
    holes = tuple(one for one in free if one.start < one.end)
    return tuple(lent), schedule._replace(full_at=max(first, end), holes=holes)


def give_back(schedule: Schedule, now: float, held: Lease) -> Schedule:
    """The schedule with what is left of a lease of it free again. What the time has overtaken is forgotten."""
    merged: list[Stretch] = []
    for one in sorted((*schedule.holes, *held.stretches)):
        if merged and one.start <= merged[-1].end + _SLACK_SECONDS:
            merged[-1] = Stretch(merged[-1].start, max(one.end, merged[-1].end))
        else:
            merged.append(one)
    full_at = schedule.full_at
    while merged and merged[-1].end >= full_at - _SLACK_SECONDS:
        full_at = merged.pop().start
    records = dict(schedule.windows)
    for name, chunk in held.chunks.items():
        record = records.get(name)
        if record is not None and record.ends == chunk.ends:
            records[name] = record._replace(used=max(0.0, record.used - chunk.left))
    return Schedule(full_at, schedule.blocked_until, _ahead(merged, now), records)


def use(held: Lease, now: float, *, rate: float, burst: float, cost: float, windows: Iterable[Window] = ()) -> Lease | None:
    """What is left of a lease after the costs were used at once; None when it doesn't hold as much."""
    chunks = dict(held.chunks)
    for window in windows:
        chunk = chunks.get(window.name)
        if chunk is None or now >= chunk.ends or chunk.left < window.cost:
            return None
        chunks[window.name] = chunk._replace(left=chunk.left - window.cost)
    stretches = _use_stretches(held.stretches, now, rate=rate, burst=burst, cost=cost)
    return None if stretches is None else Lease(stretches, chunks)


def _use_stretches(held: tuple[Stretch, ...], now: float, *, rate: float, burst: float, cost: float) -> tuple[Stretch, ...] | None:
    ahead = _ahead(held, now)
    if sum(one.end - one.start for one in ahead) < cost / rate - _SLACK_SECONDS:
        return None
    end, left = _fill((*ahead, Stretch(float("inf"), float("inf"))), cost / rate - _SLACK_SECONDS)
    return left[:-1] if end <= now + burst / rate + _SLACK_SECONDS else None


def _lend(free: list[Stretch], part: Stretch, length: float) -> list[Stretch]:
    """Take up to `length` from the far end of what is free within `part`."""
    usable = sum(max(0.0, min(one.end, part.end) - max(one.start, part.start)) for one in free)
    length = min(length, _LARGEST_SHARE * usable)
    taken: list[Stretch] = []
    for index in range(len(free) - 1, -1, -1):
        one = free[index]
        end = min(one.end, part.end)
        start = max(one.start, part.start, end - length)
        # give_back joins what lies closer together than the slack, and would free a shorter stretch that is still lent.
        if end - start > 2 * _SLACK_SECONDS and length > 0:
            free[index : index + 1] = [Stretch(one.start, start), Stretch(end, one.end)]
            taken.insert(0, Stretch(start, end))
            length -= end - start
    return taken


def _ahead(stretches: Iterable[Stretch], now: float) -> tuple[Stretch, ...]:
    return tuple(Stretch(max(one.start, now), one.end) for one in stretches if one.end > now)


def _fill(free: tuple[Stretch, ...], length: float) -> tuple[float, tuple[Stretch, ...]]:
    """Take `length` from the earliest of `free`, whose last has no end: where the taken part ends, and what is left."""
    for index, one in enumerate(free):
        if one.start + length <= one.end:
            end = one.start + length
            left = (Stretch(end, one.end),) if end < one.end else ()
            return end, (*left, *free[index + 1 :])
        length -= one.end - one.start
    return float("inf"), free[-1:]
