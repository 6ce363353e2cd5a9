"""Schedules over real PostgreSQL, on a clock that tests move: what their policy says, and never two runs for one tick."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from functions.gateway.api import create_app
from functions.gateway.schedules import ScheduleList
from shared.bus import Delivery, Outcome
from shared.errors import BusUnavailable
from shared.local import open_platform
from shared.runtime import Runtime, load
from shared.runtime.schedules import start_due, start_due_of
from shared.state.postgres import connected
from shared.workflows import Definition, parse_definition
from shared.workflows.schedules import next_tick
from tests.support.doubles import SabotagedBus, Saboteur, ScriptedModel
from tests.support.live import AGENTS, Live, live, until

from .door import TABLES

MIDNIGHT = datetime(2026, 1, 1, tzinfo=UTC)
"""What the tests' clock shows at first."""
HOUR = 3600.0


def scheduled(cron: str, catch_up: str = "skip", *, name: str = "daily", input: str = "{}") -> Definition:
    return parse_definition(
        f"name: {name}\nversion: 1\nschedule: {{cron: '{cron}', catch_up: {catch_up}, input: {input}}}\n"
        "input: {brief: {type: string, default: Ferries}}\nsteps: [{id: a, agent: writer}]",
        file=f"{name}.yaml",
        agents=AGENTS,
    )


def deploy(team: Live, *definitions: Definition) -> None:
    """These are the definitions from now on."""
    team.runtime.__dict__["definitions"] = {one.name: one for one in definitions}


async def sweep(team: Live) -> None:
    await start_due(team.runtime, team.runtime.dispatcher("sweeper"))


async def say(team: Live, wanted: dict[str, Any], *, id: str = "77") -> Outcome:
    """What the scheduler publishes."""
    arrived = Delivery("workflow-schedules.intake", "workflow-schedules", orjson.dumps(wanted), {}, id, 1)
    return await load("intake").handlers(team.runtime)["workflow-schedules"](arrived)


async def fetch(team: Live, query: str) -> list[Any]:
    async with connected(team.dsn) as connection:
        return [row[0] for row in await connection.fetch(query)]


async def runs(team: Live) -> list[str]:
    """The request keys of all workflows, the oldest tick first."""
    return await fetch(team, "select request_key from workflows order by id")


def of(*ticks: str, name: str = "daily") -> list[str]:
    return [f"schedule/{name}/2026-01-01T{tick}:00Z" for tick in ticks]


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path, MAX_CONCURRENT_PIPELINES="1000") as opened:
        yield opened


async def test_a_tick_starts_its_workflow_with_its_input_once(team: Live) -> None:
    deploy(team, scheduled("0 6 * * *", input="{brief: Trains}"))
    await sweep(team)
    await team.clock.advance(6 * HOUR - 1)
    await sweep(team)
    assert await runs(team) == []
    await team.clock.advance(1)
    for _ in range(3):
        await sweep(team)
        await team.clock.advance(60)
    assert await runs(team) == of("06:00")
    assert team.dispatched() == [("a", 1)]
    (head,) = await team.store.recent()
    assert (await team.store.get(head["id"]))["input"] == {"brief": "Trains"}
    state = await team.store.schedules()
    assert [(one["name"], one["cron"], one["last_tick"], one["workflow"]) for one in state["schedules"]] == [
        ("daily", "0 6 * * *", "2026-01-01T06:00:00+00:00", head["id"])
    ]


async def test_the_sweeper_function_starts_what_is_due(team: Live) -> None:
    deploy(team, scheduled("0 6 * * *"))
    app = load("sweeper").app
    assert app is not None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(team.runtime)), base_url="http://sweeper") as client:
        assert (await client.post("/")).status_code == 204
        await team.clock.advance(6 * HOUR)
        assert (await client.post("/")).status_code == 204
    assert await runs(team) == of("06:00")


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [
        ("skip", of("06:00", "10:00")),
        ("last", of("06:00", "09:00", "10:00")),
        ("all", of("06:00", "07:00", "08:00", "09:00", "10:00")),
    ],
)
async def test_after_three_hours_away_it_does_what_its_policy_says(team: Live, catch_up: str, expected: list[str]) -> None:
    deploy(team, scheduled("0 * * * *", catch_up))
    await team.clock.advance(5.5 * HOUR)
    await sweep(team)
    await team.clock.advance(0.5 * HOUR)
    await sweep(team)
    await team.clock.advance(3.5 * HOUR)  # from 06:00 to 09:30 nobody looks
    for _ in range(40):
        await sweep(team)
        await team.clock.advance(60)
    assert await runs(team) == expected


async def test_what_was_passed_over_does_not_run_later_under_another_policy(team: Live) -> None:
    deploy(team, scheduled("0 * * * *", "skip"))
    await sweep(team)
    await team.clock.advance(3.5 * HOUR)
    await sweep(team)
    deploy(team, scheduled("0 * * * *", "all"))
    await sweep(team)
    assert await runs(team) == []


async def test_a_thousand_missed_ticks_are_caught_up_in_portions(team: Live) -> None:
    deploy(team, scheduled("* * * * *", "all"))
    await sweep(team)
    await team.clock.advance(250 * 60)
    counts = []
    for _ in range(4):
        await sweep(team)
        counts.append(len(await runs(team)))
    assert counts == [100, 200, 250, 250]


async def test_a_schedule_counts_from_when_it_is_first_seen(team: Live) -> None:
    await team.clock.advance(12 * HOUR)
    deploy(team, scheduled("* * * * *", "all"))
    await sweep(team)
    assert await runs(team) == []


@pytest.mark.parametrize("catch_up", ["last", "all"])
async def test_another_expression_counts_from_when_it_is_first_seen(team: Live, catch_up: str) -> None:
    deploy(team, scheduled("0 0 1 * *", catch_up))
    await sweep(team)
    await team.clock.advance(12 * HOUR)
    deploy(team, scheduled("0 * * * *", catch_up))
    await sweep(team)
    await team.clock.advance(HOUR)
    await sweep(team)
    assert await runs(team) == of("13:00")


@pytest.mark.parametrize("catch_up", ["last", "all"])
async def test_a_schedule_that_was_taken_away_and_comes_back_catches_nothing_up(team: Live, catch_up: str) -> None:
    deploy(team, scheduled("0 * * * *", catch_up))
    await sweep(team)
    deploy(team)
    await sweep(team)
    assert (await team.store.schedules())["schedules"] == []
    await team.clock.advance(5.5 * HOUR)
    deploy(team, scheduled("0 * * * *", catch_up))
    for _ in range(2):
        await sweep(team)
    assert await runs(team) == []


async def test_switched_off_nothing_starts_and_the_policy_decides_when_it_is_on_again(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path / "on") as team, live(database, tmp_path / "off", ORCH_ENABLED="false") as off:
        for one in (team, off):
            deploy(one, scheduled("0 * * * *", "last"))
        await sweep(team)
        for one in (team, off):
            await one.clock.advance(2.5 * HOUR)
        await sweep(off)
        assert await say(off, {"workflow": "daily"}) is Outcome.ACK
        assert await runs(team) == []
        await sweep(team)
        assert await runs(team) == of("02:00")


async def test_two_that_sweep_at_once_start_one_workflow(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path / "a") as one, live(database, tmp_path / "b") as other:
        for each in (one, other):
            deploy(each, *(scheduled("*/5 * * * *", "all", name=name) for name in ("left", "right")))
        await sweep(one)
        for _ in range(10):
            for each in (one, other):
                await each.clock.advance(600)
            await asyncio.gather(*(sweep(each) for each in (one, other, one, other)))
        expected = [
            f"schedule/{name}/{MIDNIGHT + timedelta(minutes=5 * n):%Y-%m-%dT%H:%M:%SZ}"
            for n in range(1, 21)
            for name in ("left", "right")
        ]
        assert sorted(await runs(one)) == sorted(expected)
        assert await fetch(one, "select count(*) from history where type = 'workflow.requested'") == [40]


class TestMessages:
    async def test_a_message_starts_the_tick_that_has_come_and_the_sweeper_no_other(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        await sweep(team)
        await team.clock.advance(6 * HOUR + 2)
        assert await say(team, {"workflow": "daily"}) is Outcome.ACK
        await sweep(team)
        assert await runs(team) == of("06:00")

    async def test_messages_that_come_twice_under_any_id_and_after_the_sweeper_start_nothing_more(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        await sweep(team)
        await team.clock.advance(6 * HOUR + 2)
        await sweep(team)
        for id in ("77", "77", "78"):
            await say(team, {"workflow": "daily"}, id=id)
            await team.clock.advance(90)
        assert await runs(team) == of("06:00")

    async def test_one_that_comes_before_the_first_sweep_is_kept_to(self, team: Live) -> None:
        deploy(team, scheduled("*/2 * * * *", "all"))
        await team.clock.advance(6 * HOUR + 2)
        await say(team, {"workflow": "daily"})
        assert await runs(team) == of("06:00")

    async def test_one_that_comes_between_ticks_starts_nothing(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        for _ in range(2):
            await say(team, {"workflow": "daily"})
            await sweep(team)
            await team.clock.advance(HOUR)
        assert await runs(team) == []

    async def test_one_for_an_expression_that_is_not_known_yet_waits_for_the_sweeper(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        await sweep(team)
        await team.clock.advance(7 * HOUR)
        deploy(team, scheduled("0 * * * *"))
        await say(team, {"workflow": "daily"})
        assert await runs(team) == []
        assert [one["cron"] for one in (await team.store.schedules())["schedules"]] == ["0 6 * * *"]

    async def test_one_before_which_others_were_missed_does_not_lose_them(self, team: Live) -> None:
        deploy(team, scheduled("0 * * * *", "all"))
        await sweep(team)
        await team.clock.advance(3 * HOUR + 1)
        await say(team, {"workflow": "daily"})
        assert await runs(team) == of("01:00", "02:00", "03:00")

    async def test_one_with_an_input_of_its_own_is_a_request_like_any_other(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        for id in ("77", "77", "78"):
            await say(team, {"workflow": "daily", "input": {"brief": "Trains"}}, id=id)
        assert sorted(await runs(team)) == ["schedule#77", "schedule#78"]

    async def test_what_was_started_and_not_published_is_published_when_the_message_comes_again(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        await sweep(team)
        await team.clock.advance(6 * HOUR + 2)
        working, team.runtime.bus = team.runtime.bus, SabotagedBus(team.bus, Saboteur("publish", error=BusUnavailable("down")))
        with pytest.raises(BusUnavailable):
            await say(team, {"workflow": "daily"})
        assert team.dispatched() == []
        team.runtime.bus = working
        await say(team, {"workflow": "daily"})
        assert (await runs(team), team.dispatched()) == (of("06:00"), [("a", 1)])

    async def test_a_copy_that_comes_when_the_workflow_is_long_gone_starts_none(self, team: Live) -> None:
        deploy(team, scheduled("0 6 * * *"))
        await sweep(team)
        await team.clock.advance(6 * HOUR)
        await sweep(team)
        async with connected(team.dsn) as connection:
            await connection.execute("delete from workflows; delete from steps; delete from history")
        await say(team, {"workflow": "daily"})
        assert await runs(team) == []


async def test_the_api_shows_when_each_is_due_next_and_what_was_started_last(team: Live) -> None:
    deploy(team, scheduled("0 6 * * *", "last"), scheduled("30 * * * *", name="hourly"))
    await sweep(team)
    await team.clock.advance(6 * HOUR)
    await sweep(team)
    (last_run,) = await fetch(team, "select id from workflows where name = 'daily'")
    deploy(team, scheduled("0 6 * * *", "last"), scheduled("0 0 29 2 *", name="leap"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(team.runtime)), base_url="http://gateway") as client:
        answer = await client.get("/v1/schedules")
    assert answer.status_code == 200
    assert ScheduleList.model_validate_json(answer.content)
    assert answer.json()["items"] == [
        {
            **{"workflow": "daily", "cron": "0 6 * * *", "catch_up": "last", "decided_until": "2026-01-01T06:00:00+00:00"},
            **{"next_tick": "2026-01-02T06:00:00+00:00", "last_run": last_run},
        },
        {
            **{"workflow": "leap", "cron": "0 0 29 2 *", "catch_up": "skip", "decided_until": None},
            **{"next_tick": "2028-02-29T00:00:00+00:00", "last_run": None},
        },
    ]


class TestPlatform:
    """The platform in one process sweeps each second by itself."""

    @staticmethod
    def runtime(team: Live) -> Runtime:
        runtime = Runtime(team.runtime.settings, clock=team.clock, store=team.store, model=ScriptedModel({"text": "done"}))
        runtime.__dict__["definitions"] = team.runtime.definitions
        return runtime

    @staticmethod
    async def until_it_holds(team: Live, holds: Callable[[], Awaitable[bool]]) -> None:
        """Second by second, because a sweep that is at work sleeps only afterwards."""
        async with asyncio.timeout(10):
            while not await holds():
                await team.clock.advance(1)

    async def test_served_it_starts_what_is_due(self, database: str, tmp_path: Path) -> None:
        async with live(database, tmp_path, DATABASE_URL=database) as team:
            deploy(team, scheduled("0 6 * * *"))

            async def registered() -> bool:
                return bool((await team.store.schedules())["schedules"])

            async def ran() -> bool:
                return await runs(team) == of("06:00")

            async with open_platform(team.runtime.settings, runtime=self.runtime(team)):
                await self.until_it_holds(team, registered)
                await team.clock.advance((MIDNIGHT + timedelta(hours=6) - team.clock.now()).total_seconds())
                await self.until_it_holds(team, ran)

    async def test_for_one_run_alone_it_starts_nothing(self, database: str, tmp_path: Path) -> None:
        async with live(database, tmp_path, DATABASE_URL=database) as team:
            deploy(team, scheduled("* * * * *"))
            await sweep(team)
            async with open_platform(team.runtime.settings, runtime=self.runtime(team), schedules=False):
                for _ in range(5):
                    await until(lambda: team.clock.sleepers > 0)
                    await team.clock.advance(60)
            assert await runs(team) == []


async def test_a_late_one_cannot_start_what_another_passed_over(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path / "a") as slow, live(database, tmp_path / "b") as quick:
        for each in (slow, quick):
            deploy(each, scheduled("0 6 * * *", "skip"))
        await sweep(slow)
        await slow.clock.advance(6 * HOUR)
        await quick.clock.advance(9 * HOUR)
        seen = await slow.store.schedules()
        await sweep(quick)
        await stale(slow, seen)
        assert await runs(slow) == []


async def test_a_late_one_cannot_take_back_what_another_passed_over(team: Live) -> None:
    deploy(team, scheduled("0 * * * *", "skip"))
    await sweep(team)
    await team.clock.advance(1.5 * HOUR)
    seen = await team.store.schedules()
    await team.clock.advance(2 * HOUR)
    await sweep(team)
    await stale(team, seen)
    assert [one["last_tick"] for one in (await team.store.schedules())["schedules"]] == ["2026-01-01T03:00:00+00:00"]


async def stale(team: Live, seen: dict[str, Any]) -> None:
    """A sweep that looked before others did, and acts after them."""

    async def schedules() -> dict[str, Any]:
        return seen

    team.store.__dict__["schedules"] = schedules
    try:
        await sweep(team)
    finally:
        del team.store.__dict__["schedules"]


@asynccontextmanager
async def fleet(dsn: str, home: Path) -> AsyncIterator[list[Live]]:
    async with connected(dsn) as connection:
        await connection.execute(f"truncate {', '.join(TABLES)} restart identity")
    async with live(dsn, home / "a") as one, live(dsn, home / "b") as other:
        yield [one, other]


Move = tuple[str, int]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.integers(1, 15_000)),
        st.tuples(st.sampled_from(["sweep", "say", "look", "act"]), st.integers(0, 1)),
        st.tuples(st.just("together"), st.integers(2, 4)),
    ),
    min_size=1,
    max_size=14,
)


async def play(dsn: str, home: Path, catch_up: str, moves: list[Move]) -> tuple[list[str], list[str]]:
    """The runs that came of it, and every tick that there was."""
    cron = "*/20 * * * *"
    async with fleet(dsn, home) as team:
        for each in team:
            deploy(each, scheduled(cron, catch_up))
        await sweep(team[0])
        looked = [await each.store.schedules() for each in team]
        for kind, value in [*moves, *[("sweep", 0)] * 4]:
            match kind:
                case "pass":
                    for each in team:
                        await each.clock.advance(value)
                case "sweep":
                    await sweep(team[value])
                case "say":
                    await start_due_of(team[value].runtime, team[value].runtime.dispatcher("intake"), "daily")
                case "look":
                    looked[value] = await team[value].store.schedules()
                case "act":
                    await stale(team[value], looked[value])
                case _:
                    await asyncio.gather(*(sweep(team[n % 2]) for n in range(value)), say(team[0], {"workflow": "daily"}))
        ticks, tick = list[str](), next_tick(cron, MIDNIGHT)
        while tick is not None and tick <= team[0].clock.now():
            ticks.append(f"schedule/daily/{tick:%Y-%m-%dT%H:%M:%SZ}")
            tick = next_tick(cron, tick)
        requested = await fetch(team[0], "select count(*) from history where type = 'workflow.requested'")
        found = await runs(team[0])
        assert requested == [len(found)]
        return found, ticks


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["all", "last", "skip"]), MOVES)
def test_under_any_interleaving_no_tick_runs_twice_and_all_loses_none(
    module_database: str, tmp_path: Path, catch_up: str, moves: list[Move]
) -> None:
    found, ticks = asyncio.run(play(module_database, tmp_path, catch_up, moves))
    assert len(found) == len(set(found))
    assert set(found) <= set(ticks)
    if catch_up == "all":
        assert found == ticks
