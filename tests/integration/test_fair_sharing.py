"""Who gets a slot next, and where everybody else stands: priority, then tenants in turn, then age."""

from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.state import Command
from shared.state.postgres import connected

from .door import TABLES, Door, cancelled, paused, requested, step, tick, unpaused

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def queue(door: Door, tenant: str, count: int, *, first: int = 0, priority: int = 0) -> None:
    """`count` workflows of a tenant that wait; their ids tell whose they are and how old."""
    slots, door.max_running = door.max_running, 0
    ids = [f"wf_{n:03}_{tenant}" for n in range(first, first + count)]
    await door.advance(*(requested([step("a")], id, tenant=tenant, priority=priority) for id in ids))
    door.max_running = slots


def started(commands: list[Command]) -> list[str]:
    return [command["workflow"] for command in commands if command["type"] == "dispatch"]


async def served(door: Door, ends: int) -> list[str]:
    """The workflows that get a slot, in order, while the one that has had it longest ends, `ends` times."""
    order = started(await door.advance(tick()))
    for n in range(ends):
        order += started(await door.advance(cancelled(order[n])))
    return order


def whose(order: list[str]) -> str:
    return "".join(id[-1] for id in order)


@pytest.mark.parametrize("slots", [1, 2, 10])
async def test_a_tenant_with_five_workflows_is_done_in_fifteen_slots_beside_one_with_five_hundred(door: Door, slots: int) -> None:
    door.max_running = slots
    await queue(door, "a", 500)
    await queue(door, "b", 5, first=500)
    order = await served(door, 14)
    assert whose(order[:15]).count("b") == 5


@pytest.mark.parametrize("slots", [1, 2, 10])
async def test_a_tenant_that_comes_later_gets_the_next_slots_that_become_free(door: Door, slots: int) -> None:
    door.max_running = slots
    await queue(door, "a", 500)
    before = started(await door.advance(tick()))
    assert whose(before) == "a" * slots
    await queue(door, "b", 5, first=500)
    order: list[str] = []
    for n in range(15):
        order += started(await door.advance(cancelled((before + order)[n])))
    assert whose(order).count("b") == 5


async def test_whoever_runs_fewest_comes_first_then_whoever_was_served_longest_ago_then_the_oldest(door: Door) -> None:
    door.max_running = 1
    for n, tenant in enumerate("cab"):
        await queue(door, tenant, 2, first=n)
    assert whose(await served(door, 5)) == "cabcab"


async def test_a_tenant_has_one_more_from_the_moment_it_is_given_a_slot(door: Door) -> None:
    door.max_running = 2
    await queue(door, "a", 4)
    assert whose(started(await door.advance(tick()))) == "aa"
    await queue(door, "b", 4, first=10)
    door.max_running = 5
    assert sorted(whose(started(await door.advance(tick())))) == ["a", "b", "b"]


async def test_a_higher_priority_comes_before_any_turn_and_turns_are_taken_within_one(door: Door) -> None:
    door.max_running = 1
    await queue(door, "a", 3, priority=1)
    await queue(door, "b", 2, first=10)
    await queue(door, "c", 2, first=20, priority=1)
    assert whose(await served(door, 6)) == "acacabb"


async def test_one_that_is_locked_keeps_nobody_else_from_its_slot(door: Door, module_database: str) -> None:
    await queue(door, "a", 1)
    await queue(door, "b", 1, first=1)
    async with connected(module_database) as other, other.transaction():
        await other.execute("select from workflows where id = 'wf_000_a' for update")
        door.max_running = 1
        assert started(await door.advance(tick())) == ["wf_001_b"]


async def test_the_end_that_starts_another_tenant_s_workflow_starts_the_same_when_repeated(door: Door) -> None:
    door.max_running = 1
    await queue(door, "a", 3)
    await queue(door, "b", 1, first=10)
    await door.advance(tick())
    first = await door.advance(cancelled("wf_000_a"))
    assert started(first) == ["wf_010_b"]
    assert await door.repeat(cancelled("wf_000_a")) == first


async def test_who_asked_is_shown_and_a_request_that_does_not_say_belongs_to_nobody(door: Door) -> None:
    await door.advance(requested([step("a")], "wf_1", tenant="ci"), requested([step("a")], "wf_2"))
    assert [(await door.workflow(id))["tenant"] for id in ("wf_1", "wf_2")] == ["ci", ""]


# The place in the queue


async def place(door: Door, workflow: str) -> Any:
    return (await door.workflow(workflow))["queue"]


async def test_only_what_is_queued_has_a_place(door: Door) -> None:
    door.max_running = 1
    await queue(door, "a", 3)
    await door.advance(tick())
    assert [await place(door, f"wf_00{n}_a") for n in range(3)] == [
        None,
        {"position": 1, "ahead": 0, "exact": True},
        {"position": 2, "ahead": 1, "exact": True},
    ]
    listed = orjson.loads(await door.connection.fetchval("select list_workflows()"))
    assert [item["queue"] and item["queue"]["position"] for item in listed] == [2, 1, None]
    await door.advance(paused("wf_001_a"))
    assert await place(door, "wf_001_a") is None
    assert (await place(door, "wf_002_a"))["position"] == 1
    await door.advance(unpaused("wf_001_a"))
    assert (await place(door, "wf_002_a"))["position"] == 2


async def test_a_place_is_counted_up_to_a_thousand_and_says_so(door: Door) -> None:
    door.max_running = 0
    await door.connection.execute(
        "insert into workflows (id, name, version, status, priority, input, output_template, output_needs, output_uses_input,"
        " steps_total, steps_open, created_at) select 'wf_' || lpad(n::text, 5, '0'), 'report', 1, 'QUEUED', 0, '{}', '{}', '{}',"
        " false, 0, 0, now() from generate_series(1, 1500) as n"
    )
    assert await place(door, "wf_01000") == {"position": 1000, "ahead": 999, "exact": True}
    assert await place(door, "wf_01001") == {"position": 1001, "ahead": 1000, "exact": False}
    assert await place(door, "wf_01500") == {"position": 1001, "ahead": 1000, "exact": False}


async def test_a_place_among_very_many_tenants_is_no_promise(door: Door) -> None:
    door.max_running = 0
    for n in range(101):
        await door.advance(requested([step("a")], f"wf_{n:03}", tenant=f"tenant {n:03}"))
    assert await place(door, "wf_005") == {"position": 6, "ahead": 5, "exact": False}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 1)), min_size=1, max_size=12),
    running=st.lists(st.sampled_from("abc"), max_size=4),
)
async def test_places_are_the_order_in_which_slots_are_given(
    module_database: str, wanted: list[tuple[str, int]], running: list[str]
) -> None:
    async with connected(module_database) as connection:
        await connection.execute("; ".join(f"delete from {table}" for table in TABLES))
        door = Door(connection, max_running=len(running))
        for n, tenant in enumerate(running):
            await door.advance(requested([step("a")], f"wf_0{n:02}", tenant=tenant))
        for n, (tenant, priority) in enumerate(wanted):
            await door.advance(requested([step("a")], f"wf_1{n:02}", tenant=tenant, priority=priority))
        places = {f"wf_1{n:02}": await place(door, f"wf_1{n:02}") for n in range(len(wanted))}
        assert sorted(shown["position"] for shown in places.values()) == list(range(1, len(wanted) + 1))
        one_by_one = []
        for _ in wanted:
            door.max_running += 1
            one_by_one += started(await door.advance(tick()))
        levels = {priority for _, priority in wanted}
        assert {id for id, shown in places.items() if shown["exact"]} == {
            f"wf_1{n:02}" for n, (_, priority) in enumerate(wanted) if priority == max(levels)
        }
        for given_as, id in enumerate(one_by_one, start=1):
            assert not places[id]["exact"] or places[id]["position"] == given_as


_READ = "select pg_stat_get_xact_tuples_returned('workflows_queued'::regclass)"


@pytest.mark.parametrize("tenants", [1, 20])
async def test_a_slot_costs_as_much_in_a_queue_of_twenty_thousand_as_in_a_short_one(door: Door, tenants: int) -> None:
    async def entries_read(queued: int) -> int:
        await door.connection.execute("; ".join(f"delete from {table}" for table in TABLES))
        await door.connection.execute(
            "insert into workflows (id, name, version, status, priority, input, output_template, output_needs, output_uses_input,"
            " steps_total, steps_open, created_at, tenant) select 'wf_' || lpad(n::text, 6, '0'), 'report', 1, 'QUEUED', 0, '{}',"
            " '{}', '{}', false, 1, 1, now(), 'tenant ' || n % $2 from generate_series(1, $1) as n",
            queued,
            tenants,
        )
        await door.connection.execute("vacuum analyze workflows")
        async with door.connection.transaction():
            before = int(await door.connection.fetchval(_READ))
            await door.advance(tick(limit=0))
            return int(await door.connection.fetchval(_READ)) - before

    door.max_running = 1
    few, many = await entries_read(50 * tenants), await entries_read(20_000)
    assert few > 0
    assert many <= few + 2, f"{many} entries of the index were read in a long queue, {few} in a short one"
