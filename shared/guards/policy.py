"""What the guards decide: pure functions from a stored record and the time to the next record and an answer.

A back end is these functions plus a place where a record is read and replaced in one atomic step. Times are seconds on the back
end's own clock, whatever its zero. The bucket is the Generic Cell Rate Algorithm (ITU-T I.371, annex A), in its form as a virtual
schedule; the breaker is Nygard's ("Release It!"), with one probe at a time. A window is one record that only moves forward: who
does not fit in it begins the next one, and everybody after them joins that one.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from shared.errors import ConfigurationError
from shared.guards.base import Claim, Done, InFlight, New, Window

WINDOW_KEPT_SECONDS: Final = 3600.0
"""A window's record is kept so long after its end: the next one is told from it, whose days may be an hour longer or shorter."""
_SLACK_SECONDS: Final = 1e-6  # sums of floats round: whoever waited as told must not be told to wait for a rounding error


class ClaimRecord(NamedTuple):
    """What is known of a message id. Only the holder of `token` may complete or release it."""

    token: str
    lease_until: float
    expires_at: float
    """From then on the record counts as absent."""
    done: bool = False
    result: bytes | None = None


def claim(
    record: ClaimRecord | None, now: float, *, token: str, lease_seconds: float, ttl_seconds: float
) -> tuple[Claim, ClaimRecord | None]:
    """The answer to a claimant who would hold `token`, and the record to store; None to leave what is stored."""
    if record is not None and record.expires_at > now:
        if record.done:
            return Done(record.result), None
        if record.lease_until > now:
            return InFlight(record.lease_until - now), None
    # A record that expired during its own lease would let a second claimant in beside the first.
    return New(token), ClaimRecord(token, now + lease_seconds, now + max(ttl_seconds, lease_seconds))


def renew(record: ClaimRecord | None, now: float, *, token: str, lease_seconds: float) -> ClaimRecord | None:
    """The record with a new lease, or None when `token` does not hold an uncompleted claim (any more)."""
    if record is None or record.token != token or record.done or min(record.lease_until, record.expires_at) <= now:
        return None
    return record._replace(lease_until=now + lease_seconds, expires_at=max(record.expires_at, now + lease_seconds))


def complete(record: ClaimRecord | None, now: float, *, token: str, result: bytes | None) -> ClaimRecord | None:
    """The completed record, or None when `token` does not hold the claim (any more)."""
    if record is None or record.token != token or record.expires_at <= now:
        return None
    if not record.done and record.lease_until <= now:
        return None
    return ClaimRecord(token, record.lease_until, record.expires_at, True, result)


def release(record: ClaimRecord | None, now: float, *, token: str) -> ClaimRecord | None:
    """The record as one that anybody may claim, or None when `token` does not hold an uncompleted claim."""
    if record is None or record.token != token or record.done or min(record.lease_until, record.expires_at) <= now:
        return None
    return ClaimRecord("", now, record.expires_at)


class WindowRecord(NamedTuple):
    """What was taken of a window. It may not have begun yet: then callers wait for it."""

    begins: float
    ends: float
    used: float


class Bucket(NamedTuple):
    """A token bucket as a virtual schedule, which keeps moments instead of a level; and windows by name."""

    full_at: float
    """When the bucket will be full again if nobody takes more. May lie further ahead than one burst: then callers wait."""
    blocked_until: float
    """When the penalty ends."""
    windows: Mapping[str, WindowRecord] = {}

    @property
    def expires_at(self) -> float:
        """From then on the bucket is as good as a new one."""
        return max(self.full_at, self.blocked_until, *(one.ends + WINDOW_KEPT_SECONDS for one in self.windows.values()))


NEW_BUCKET: Final = Bucket(-1e18, -1e18)
"""Full and not blocked, on any clock."""


def check_limit(*, rate: float, burst: float, cost: float, windows: Iterable[Window] = ()) -> None:
    """Raise ConfigurationError for a limit that cannot be kept, and for a cost that can never be served."""
    if not (rate > 0 and burst > 0 and cost >= 0):
        raise ConfigurationError(f"a rate limit needs rate and burst above 0 and no negative cost, not {rate=}, {burst=}, {cost=}")
    for window in windows:
        if not (
            window.limit > 0 and window.cost >= 0 and 0 < window.length_seconds < math.inf and math.isfinite(window.ends_in_seconds)
        ):
            raise ConfigurationError(f"a window needs limit and length above 0, no negative cost and an end, not {window}")
        if window.cost > window.limit:
            raise ConfigurationError(
                f"a cost of {window.cost:g} can never be served: the limit of a {window.name} is {window.limit:g}; "
                "ask for less at once or raise the limit"
            )


def refusal(bucket: str, wait: float, max_wait_seconds: float) -> str:
    """What a caller is told whose wait would be too long."""
    return f"rate limit {bucket}: the wait is {wait:.1f} s and may be {max_wait_seconds:g} s; try later or raise the limit"


def reserve(
    bucket: Bucket, now: float, *, rate: float, burst: float, cost: float, windows: Iterable[Window] = ()
) -> tuple[float, Bucket]:
    """The seconds until the costs may be used, and the bucket without them.

    A penalty leaves the bucket empty but for the next caller's tokens, so that its end lets no burst through. A cost above `burst`
    waits until as much has flowed in. Tokens that wait for a window are taken when it begins: taken now, they would be there twice
    by then. Raises ConfigurationError as `check_limit` does.
    """
    windows = tuple(windows)
    check_limit(rate=rate, burst=burst, cost=cost, windows=windows)
    filling = burst / rate
    full_at = max(bucket.full_at, now) + cost / rate
    if bucket.blocked_until > now:
        full_at = max(full_at, bucket.blocked_until + filling)
    there_at = max(now, full_at - filling)
    used_at, records = place(bucket.windows, now, there_at, windows)
    if used_at > there_at:
        full_at = max(full_at, used_at + cost / rate)
    wait = used_at - now
    return (wait if wait > _SLACK_SECONDS else 0.0), Bucket(full_at, bucket.blocked_until, records)


def place(
    records: Mapping[str, WindowRecord], now: float, at: float, windows: Iterable[Window]
) -> tuple[float, Mapping[str, WindowRecord]]:
    """The first moment from `at` on at which every window holds its cost, and the records with the costs taken then."""
    placed: dict[str, WindowRecord] = {}
    earlier = -math.inf
    while earlier < at:  # a wait for one window may end in a later one of another
        earlier = at
        for window in windows:
            at, placed[window.name] = _place(records.get(window.name), now, at, window)
    return at, {**records, **placed} if placed else records


def _place(record: WindowRecord | None, now: float, at: float, window: Window) -> tuple[float, WindowRecord]:
    if record is not None and at < record.ends:
        if record.used + window.cost <= window.limit:
            return max(at, record.begins), record._replace(used=record.used + window.cost)
        at = record.ends
    length = window.length_seconds
    ends = now + window.ends_in_seconds
    if ends <= at:
        ends += (math.floor((at - ends) / length) + 1) * length
    if record is not None and ends - record.ends < length / 2:
        ends += length  # not a window between two, but a clock that is behind, or a day that has 25 hours
    return at, WindowRecord(min(ends - length, at), ends, window.cost)


def settle(records: Mapping[str, WindowRecord], *, used_at: float, window: str, cost: float) -> Mapping[str, WindowRecord]:
    """The records, corrected for a call that was let through at `used_at`: `cost` more, or less where negative.

    More is added to a window that came after the call's; less is not taken off it.
    """
    record = records.get(window)
    if record is None or (cost < 0 and used_at < record.begins - _SLACK_SECONDS):
        return records
    return {**records, window: record._replace(used=max(0.0, record.used + cost))}


def penalise(bucket: Bucket, now: float, seconds: float) -> Bucket:
    """The bucket, closed for `seconds` from now; a longer penalty stays."""
    return bucket._replace(blocked_until=max(bucket.blocked_until, now + seconds))


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """When a breaker opens and closes. Times are in seconds."""

    failures_to_open: int = 5
    """Consecutive failures while CLOSED."""
    pause_seconds: float = 30.0
    """From OPEN to HALF_OPEN."""
    successes_to_close: int = 2
    """Consecutive successes while HALF_OPEN."""
    probe_seconds: float = 60.0
    """A probe that reported nothing for so long is taken for lost, and another is let through."""


BreakerState = Literal["CLOSED", "OPEN", "HALF_OPEN"]


class Circuit(NamedTuple):
    """A breaker's record."""

    state: BreakerState = "CLOSED"
    streak: int = 0
    """CLOSED: consecutive failures. HALF_OPEN: consecutive successes. OPEN: 0."""
    until: float = 0.0
    """OPEN: the end of the pause. HALF_OPEN: the end of the probe's lease, 0 when no probe is under way."""


def permit(circuit: Circuit, now: float, rules: BreakerRules) -> tuple[float | None, Circuit]:
    """None when a call may be made, else the seconds after which to ask again; and the circuit with that call under way."""
    if circuit.state == "CLOSED":
        return None, circuit
    if now < circuit.until - _SLACK_SECONDS:
        # The probe may well report before its lease ends; nobody should wait longer for it than for an open breaker.
        return min(circuit.until - now, rules.pause_seconds), circuit
    return None, Circuit("HALF_OPEN", circuit.streak, now + rules.probe_seconds)


def open_message(name: str, state: str, seconds: float) -> str:
    """What a caller is told whose call a breaker refuses."""
    return f"circuit breaker {name} is {state}: it failed repeatedly; ask again in {seconds:.1f} s"


def report(circuit: Circuit, now: float, rules: BreakerRules, *, success: bool) -> Circuit:
    """The circuit after a call went well or not. Calls permitted before it opened say nothing about an OPEN one."""
    if circuit.state == "OPEN" or (circuit.state == "HALF_OPEN" and not circuit.until):
        return circuit
    if circuit.state == "HALF_OPEN":
        if not success:
            return Circuit("OPEN", 0, now + rules.pause_seconds)
        return Circuit() if circuit.streak + 1 >= rules.successes_to_close else Circuit("HALF_OPEN", circuit.streak + 1)
    if success:
        return Circuit()
    if circuit.streak + 1 >= rules.failures_to_open:
        return Circuit("OPEN", 0, now + rules.pause_seconds)
    return Circuit("CLOSED", circuit.streak + 1)


def state(circuit: Circuit, now: float) -> BreakerState:
    """The state as of now: an OPEN circuit whose pause is over is HALF_OPEN, though nobody has called yet."""
    return "HALF_OPEN" if circuit.state == "OPEN" and now >= circuit.until - _SLACK_SECONDS else circuit.state
