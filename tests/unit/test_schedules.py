"""When a schedule is due. The clock is moved over everything that calendars are known for."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.workflows import Schedule
from shared.workflows.schedules import MOST_AT_ONCE, ON_TIME, Due, due, just_before, next_tick, objection

POLICIES = ("skip", "last", "all")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def schedule(cron: str, catch_up: str = "skip") -> Schedule:
    return Schedule.model_validate({"cron": cron, "catch_up": catch_up})


def followed(one: Schedule, start: datetime, end: datetime, *, every: timedelta) -> list[datetime]:
    """What starts when somebody looks every so often from `start` to `end`."""
    started: list[datetime] = []
    since = now = start
    while now < end:
        now += every
        found = due(one, since, now)
        started += found.start
        since = max([since, *found.start, *([] if found.passed is None else [found.passed])])
    return started


@pytest.mark.parametrize("catch_up", POLICIES)
class TestOnTime:
    def test_a_tick_is_due_from_its_second_on_and_once(self, catch_up: str) -> None:
        daily, tick = schedule("0 6 * * *", catch_up), at("2026-11-25T06:00")
        assert due(daily, at("2026-11-24T06:00"), tick - timedelta(microseconds=1)).start == ()
        assert due(daily, at("2026-11-24T06:00"), tick).start == (tick,)
        assert due(daily, tick, tick + timedelta(seconds=1)) == Due()

    def test_midnight_belongs_to_the_day_that_begins(self, catch_up: str) -> None:
        ends = schedule("0 0 1 1 *", catch_up)
        assert followed(ends, at("2026-12-31T23:50"), at("2027-01-01T00:10"), every=timedelta(seconds=60)) == [at("2027-01-01")]

    @pytest.mark.parametrize(
        ("zone", "day"),
        [
            ("Europe/Berlin", "2027-03-28"),
            ("Europe/Berlin", "2027-10-31"),
            ("America/New_York", "2027-03-14"),
            ("America/New_York", "2027-11-07"),
        ],
    )
    def test_clocks_that_change_in_europe_and_america_change_nothing(self, catch_up: str, zone: str, day: str) -> None:
        start = at(day)
        hours = [start + timedelta(hours=hour) for hour in range(1, 25)]
        assert followed(schedule("0 * * * *", catch_up), start, hours[-1], every=timedelta(seconds=61)) == hours[:24]
        # Whoever's clock shows local time gets the same answer for the same moments.
        local = [moment.astimezone(ZoneInfo(zone)) for moment in (start, hours[-1])]
        assert followed(schedule("30 1,2 * * *", catch_up), *local, every=timedelta(minutes=1)) == [
            at(f"{day}T01:30"),
            at(f"{day}T02:30"),
        ]

    @pytest.mark.parametrize(("year", "comes"), [(2027, False), (2028, True), (2100, False), (2400, True)])
    def test_the_leap_day_comes_when_it_comes(self, catch_up: str, year: int, comes: bool) -> None:
        leap, start = schedule("0 0 29 2 *", catch_up), datetime(year, 2, 28, 22, tzinfo=UTC)
        found = followed(leap, start, start + timedelta(hours=28), every=timedelta(minutes=5))
        assert found == [start + timedelta(hours=2)] * comes

    def test_the_end_of_february_is_no_tick_of_the_30th(self, catch_up: str) -> None:
        monthly = schedule("0 6 30 * *", catch_up)
        assert followed(monthly, at("2026-02-27"), at("2026-03-02"), every=timedelta(minutes=5)) == []
        assert followed(monthly, at("2026-03-30"), at("2026-03-31"), every=timedelta(minutes=5)) == [at("2026-03-30T06:00")]

    def test_looks_that_come_a_little_late_lose_nothing(self, catch_up: str) -> None:
        start = at("2026-11-25T12:00:30")
        found = followed(schedule("* * * * *", catch_up), start, start + timedelta(hours=1), every=timedelta(minutes=4))
        assert found == [at("2026-11-25T12:01") + timedelta(minutes=minute) for minute in range(60)]


class TestMissed:
    """Three hours nobody looked: from 06:30 to 09:30."""

    SINCE, NOW = at("2026-11-25T06:30"), at("2026-11-25T09:30")

    def test_skip_passes_over_what_was_missed(self) -> None:
        assert due(schedule("0 * * * *", "skip"), self.SINCE, self.NOW) == Due(passed=at("2026-11-25T09:00"))

    def test_last_starts_the_latest_alone(self) -> None:
        assert due(schedule("0 * * * *", "last"), self.SINCE, self.NOW) == Due((at("2026-11-25T09:00"),))

    def test_all_starts_each_the_oldest_first(self) -> None:
        hours = tuple(at(f"2026-11-25T0{hour}:00") for hour in (7, 8, 9))
        assert due(schedule("0 * * * *", "all"), self.SINCE, self.NOW) == Due(hours)

    @pytest.mark.parametrize("catch_up", ["skip", "last"])
    def test_what_is_on_time_starts_in_place_of_what_was_missed(self, catch_up: str) -> None:
        assert due(schedule("0,28 * * * *", catch_up), self.SINCE, self.NOW) == Due((at("2026-11-25T09:28"),))

    @pytest.mark.parametrize("catch_up", POLICIES)
    def test_nothing_was_missed_when_nothing_was_due(self, catch_up: str) -> None:
        assert due(schedule("0 6 * * *", catch_up), self.SINCE, self.NOW) == Due()

    def test_all_is_done_in_portions(self) -> None:
        minutely = schedule("* * * * *", "all")
        first = due(minutely, self.SINCE, self.NOW).start
        second = due(minutely, first[-1], self.NOW).start
        assert (len(first), len(second)) == (MOST_AT_ONCE, 180 - MOST_AT_ONCE)
        assert [*first, *second] == [self.SINCE + timedelta(minutes=minute) for minute in range(1, 181)]

    @pytest.mark.parametrize("catch_up", POLICIES)
    def test_a_decade_costs_no_more_than_a_day(self, catch_up: str) -> None:
        found = due(schedule("* * * * *", catch_up), at("2016-01-01"), self.NOW)
        assert len(found.start) <= MOST_AT_ONCE


@given(
    st.sampled_from(["* * * * *", "*/7 * * * *", "0 * * * *", "15 */5 * * *", "0 6 * * 1"]),
    st.sampled_from(POLICIES),
    st.lists(st.integers(1, 20_000), min_size=1, max_size=12),
)
def test_however_often_one_looks_no_tick_comes_twice_and_all_loses_none(cron: str, catch_up: str, pauses: list[int]) -> None:
    start = now = at("2026-02-28T22:00")
    since, started, on_time = start, list[datetime](), set[datetime]()
    one = schedule(cron, catch_up)
    for pause in pauses:
        now += timedelta(seconds=pause)
        on_time |= {tick for tick in due(schedule(cron, "all"), max(since, now - ON_TIME), now).start}
        while (found := due(one, since, now)) != Due():
            started += found.start
            since = max([since, *found.start, *([] if found.passed is None else [found.passed])])
    assert started == sorted(set(started))
    assert on_time <= set(started)
    if catch_up == "all":
        tick, every = next_tick(cron, start), list[datetime]()
        while tick is not None and tick <= now:
            every.append(tick)
            tick = next_tick(cron, tick)
        assert started == every


def test_the_moment_before_a_tick_that_is_on_time() -> None:
    assert just_before("0 6 * * *", at("2026-11-25T06:04")) == at("2026-11-25T05:59:59")
    assert just_before("0 6 * * *", at("2026-11-25T06:06")) == at("2026-11-25T06:06")


@pytest.mark.parametrize(
    ("cron", "reason"),
    [
        ("0 6 * *", "five fields"),
        ("0 0 6 * * 1", "five fields"),
        ("60 6 * * *", "Bad minute"),
        ("x 6 * * *", "Bad minute"),
        ("0 6 * * 8", "Bad day-of-week"),
        ("0/0 6 * * *", "Bad minute"),
        ("0 0 30 2 *", "day"),
        ("0 0 31 2,4,6,9,11 *", "day"),
        ("0 0 31 4 */2", "day"),
    ],
)
def test_an_expression_that_cannot_be_kept_to_is_refused(cron: str, reason: str) -> None:
    assert reason in (objection(cron) or "")


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "0 0 30 2 1", "*/5 6-18 * JAN,FEB MON", "0 0 L * *", "0 0 * * 1#5"])
def test_an_expression_that_comes_is_taken(cron: str) -> None:
    assert objection(cron) is None
