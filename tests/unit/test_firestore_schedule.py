"""The schedule that instances share: the limit holds whatever they lease, use, give back or forget."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.guards import Window, policy
from shared.guards.firestore_schedule import Chunk, Lease, Schedule, Stretch, give_back, lease, reserve, use
from shared.guards.policy import NEW_BUCKET, WindowRecord

MINUTE = 7.0
LIMIT = 9.0
"""Of a window that is a minute to the fleet."""

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "lease", "use", "use", "give back", "forget", "wait"]),
        st.integers(0, 2),
        st.floats(0.0, 4.0),
    ),
    max_size=60,
)


class Fleet:
    """Three instances that share a schedule, and who of their callers was served when."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst = rate, burst
        self.now = 0.0
        self.schedule = Schedule()
        self.held = [Lease()] * 3
        self.served: list[tuple[float, float]] = []

    def windows(self, cost: float) -> list[Window]:
        return [Window("minute", LIMIT, cost, MINUTE - self.now % MINUTE, MINUTE)]

    def reserve(self, _instance: int, cost: float) -> None:
        cost = min(cost, self.burst)
        wait, self.schedule = reserve(
            self.schedule, self.now, rate=self.rate, burst=self.burst, cost=cost, windows=self.windows(cost)
        )
        self.served.append((self.now + wait, cost))

    def lease(self, instance: int, tokens: float) -> None:
        self.give_back(instance)
        self.held[instance], self.schedule = lease(
            self.schedule,
            self.now,
            rate=self.rate,
            burst=self.burst,
            tokens=tokens * 3,
            seconds=tokens,
            windows=self.windows(tokens * 3),
        )

    def use(self, instance: int, cost: float) -> None:
        cost = min(cost, self.burst)
        left = use(self.held[instance], self.now, rate=self.rate, burst=self.burst, cost=cost, windows=self.windows(cost))
        if left is not None:
            self.held[instance] = left
            self.served.append((self.now, cost))

    def give_back(self, instance: int, _: float = 0.0) -> None:
        self.schedule = give_back(self.schedule, self.now, self.held[instance])
        self.held[instance] = Lease()

    def forget(self, instance: int, _: float) -> None:
        self.held[instance] = Lease()

    def wait(self, _instance: int, seconds: float) -> None:
        self.now += seconds

    def run(self, steps: list[tuple[str, int, float]]) -> None:
        for what, instance, number in steps:
            getattr(self, what.replace(" ", "_"))(instance, number)


@given(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1.0, 2.5, 6.0]), STEPS)
def test_no_span_of_time_lets_more_through_than_the_burst_and_what_flows_in(
    rate: float, burst: float, steps: list[tuple[str, int, float]]
) -> None:
    fleet = Fleet(rate, burst)
    fleet.run(steps)
    served = sorted(fleet.served)
    for first, (start, _) in enumerate(served):
        tokens = 0.0
        for end, cost in served[first:]:
            tokens += cost
            assert tokens <= burst + rate * (end - start) + 1e-3


@given(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1.0, 2.5, 6.0]), STEPS)
def test_no_window_lets_more_through_than_its_limit(rate: float, burst: float, steps: list[tuple[str, int, float]]) -> None:
    fleet = Fleet(rate, burst)
    fleet.run(steps)
    used: Counter[int] = Counter()
    for at, cost in fleet.served:
        used[int((at + 1e-6) / MINUTE)] += cost  # type: ignore[assignment]
    assert all(tokens <= LIMIT + 1e-6 for tokens in used.values())


@example(1.0, 1.0, [("lease", 0, 1.192092896e-07), ("lease", 1, 0.0)])  # a lease shorter than the slack of rounding
@given(st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([1.0, 2.5, 6.0]), STEPS)
def test_no_part_of_the_schedule_is_free_and_lent_or_lent_twice(
    rate: float, burst: float, steps: list[tuple[str, int, float]]
) -> None:
    fleet = Fleet(rate, burst)
    for step in steps:
        fleet.run([step])
        free = (*fleet.schedule.holes, Stretch(fleet.schedule.full_at, float("inf")))
        stretches = sorted((*free, *(one for held in fleet.held for one in held.stretches)))
        assert all(one.start <= one.end for one in stretches)
        assert all(one.end <= other.start + 1e-5 for one, other in pairwise(stretches))


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 8), st.booleans()), max_size=30))
def test_without_leases_it_is_the_plain_bucket(calls: list[tuple[float, float, bool]]) -> None:
    schedule, bucket, now = Schedule(), NEW_BUCKET, 0.0
    for pause, cost, penalised in calls:
        now += pause
        if penalised:
            bucket = policy.penalise(bucket, now, pause)
            schedule = schedule._replace(blocked_until=bucket.blocked_until)
        expected, bucket = policy.reserve(bucket, now, rate=2, burst=5, cost=cost)
        wait, schedule = reserve(schedule, now, rate=2, burst=5, cost=cost)
        assert (wait, schedule) == (expected, Schedule(bucket.full_at, bucket.blocked_until))


@given(st.floats(1, 30), st.floats(0.5, 20))
def test_a_lease_given_back_at_once_leaves_no_trace(tokens: float, seconds: float) -> None:
    _, before = reserve(Schedule(), 0.0, rate=10, burst=10, cost=2)
    lent, after = lease(before, 0.0, rate=10, burst=10, tokens=tokens, seconds=seconds)
    assert lent.stretches
    back = give_back(after, 0.0, lent)
    assert back.holes == ()
    assert back.full_at == pytest.approx(before.full_at)


def test_a_lease_can_be_used_evenly_for_as_long_as_it_was_asked_for() -> None:
    held, _ = lease(Schedule(), 0.0, rate=10, burst=10, tokens=20, seconds=10)
    for second in range(10):
        for _ in range(2):
            left = use(held, second, rate=10, burst=10, cost=1)
            assert left is not None, f"nothing is left after {second} s"
            held = left


def test_a_token_is_not_used_before_its_time() -> None:
    held, _ = lease(Schedule(), 0.0, rate=10, burst=10, tokens=40, seconds=10)
    used = 0
    while (left := use(held, 0.0, rate=10, burst=10, cost=1)) is not None:
        held, used = left, used + 1

    assert 0 < used <= 5
    assert use(held, 5.0, rate=10, burst=10, cost=1) is not None


def test_tokens_too_old_to_be_used_with_the_last_are_not_part_of_a_cost() -> None:
    """A hole ends 4 s before the next free stretch: with a burst of 2 s nobody can use both at once."""
    schedule = Schedule(full_at=5.0, holes=(Stretch(0.0, 1.0),))

    assert reserve(schedule, 0.0, rate=1, burst=2, cost=2) == (5.0, Schedule(7.0, schedule.blocked_until, (Stretch(0.0, 1.0),)))


def test_others_find_at_least_half_of_the_bucket() -> None:
    _, rest = lease(Schedule(), 0.0, rate=10, burst=10, tokens=1000, seconds=10)
    for _ in range(5):
        wait, rest = reserve(rest, 0.0, rate=10, burst=10, cost=1)
        assert wait == 0


def test_nothing_is_leased_while_callers_wait_or_a_penalty_runs() -> None:
    _, backlog = reserve(Schedule(), 0.0, rate=10, burst=10, cost=30)
    penalised = Schedule(blocked_until=5.0)
    for schedule in (backlog, penalised):
        assert lease(schedule, 0.0, rate=10, burst=10, tokens=5, seconds=10) == (Lease(), schedule)


def test_the_end_of_a_penalty_lets_no_burst_through_holes() -> None:
    _, lent = lease(Schedule(), 0.0, rate=10, burst=10, tokens=5, seconds=1)
    waits = []
    schedule = lent._replace(blocked_until=0.5)
    for _ in range(3):
        wait, schedule = reserve(schedule, 0.0, rate=10, burst=10, cost=1)
        waits.append(wait)
    assert waits == sorted(waits)
    assert waits[0] >= 0.5
    assert waits[2] - waits[0] == pytest.approx(0.2)


def minute(cost: float) -> list[Window]:
    return [Window("minute", 10.0, cost, 60.0, 60.0)]


def test_a_chunk_of_a_window_counts_as_used_until_it_is_given_back() -> None:
    _, before = reserve(Schedule(), 0.0, rate=10, burst=10, cost=1, windows=minute(2))
    held, lent = lease(before, 0.0, rate=10, burst=10, tokens=2, seconds=1, windows=minute(3))
    assert lent.windows["minute"].used == 5
    left = use(held, 0.0, rate=10, burst=10, cost=1, windows=minute(2))
    assert left is not None
    assert use(left, 0.0, rate=10, burst=10, cost=1, windows=minute(2)) is None
    assert give_back(lent, 0.0, left).windows["minute"].used == 4


def test_half_of_what_is_left_of_a_window_is_lent_at_most() -> None:
    _, before = reserve(Schedule(), 0.0, rate=10, burst=10, cost=1, windows=minute(2))
    held, _ = lease(before, 0.0, rate=10, burst=10, tokens=2, seconds=1, windows=minute(100))

    assert held.chunks == {"minute": Chunk(60.0, 4.0)}


def test_a_chunk_is_worth_nothing_when_its_window_is_over() -> None:
    _, before = reserve(Schedule(), 0.0, rate=10, burst=1000, cost=1, windows=minute(2))
    held, lent = lease(before, 0.0, rate=10, burst=1000, tokens=20, seconds=1, windows=minute(3))
    _, later = reserve(lent, 61.0, rate=10, burst=1000, cost=1, windows=[Window("minute", 10.0, 1.0, 59.0, 60.0)])

    assert use(held, 59.9, rate=10, burst=1000, cost=1, windows=minute(1)) is not None
    assert use(held, 60.0, rate=10, burst=1000, cost=1, windows=minute(1)) is None
    assert give_back(later, 61.0, held).windows["minute"] == WindowRecord(60.0, 120.0, 1.0)


def test_nothing_is_leased_while_callers_wait_for_a_window() -> None:
    _, before = reserve(Schedule(), 0.0, rate=10, burst=10, cost=1, windows=minute(10))
    assert lease(before, 0.0, rate=10, burst=10, tokens=2, seconds=1, windows=minute(3)) == (Lease(), before)
    _, waiting = reserve(before, 0.0, rate=10, burst=10, cost=1, windows=minute(1))
    assert lease(waiting, 0.0, rate=10, burst=10, tokens=2, seconds=1, windows=minute(3)) == (Lease(), waiting)


def test_tokens_in_a_hole_are_not_kept_for_a_caller_who_waits_for_a_window() -> None:
    record = WindowRecord(0.0, 60.0, 10.0)
    schedule = Schedule(full_at=5.0, holes=(Stretch(0.0, 1.0),), windows={"minute": record})

    wait, after = reserve(schedule, 0.0, rate=1, burst=2, cost=1, windows=minute(1))

    assert (wait, after.full_at, after.holes) == (60.0, 61.0, (Stretch(0.0, 1.0),))


def test_who_waits_for_a_window_finds_the_tokens_that_are_free_when_it_begins() -> None:
    record = WindowRecord(0.0, 60.0, 10.0)
    schedule = Schedule(full_at=200.0, holes=(Stretch(0.0, 1.0), Stretch(59.0, 62.0)), windows={"minute": record})

    wait, after = reserve(schedule, 0.0, rate=1, burst=2, cost=1, windows=minute(1))

    assert (wait, after.full_at) == (60.0, 200.0)
    assert after.holes == (Stretch(0.0, 1.0), Stretch(59.0, 60.0), Stretch(61.0, 62.0))
