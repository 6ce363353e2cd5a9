"""Budgets, the number of workflows that run at once, and stopping them."""

from datetime import timedelta
from typing import Any

import pytest

from shared.state import Event

from .door import (
    START,
    USAGE,
    Door,
    cancelled,
    children,
    completed,
    deferred,
    dispatches,
    expanded,
    failed,
    kinds,
    one,
    rendered,
    requested,
    step,
    tick,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN = [step("a"), step("b", "a"), step("c", "b")]


# Budgets


async def test_more_steps_than_max_steps_fail_the_step_that_wants_them(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")], max_steps=3))
    event = completed("a", children=children("a", 2), join="*")
    finished = one(await door.advance(event), "finished")
    assert finished["error"] == {"type": "BudgetExceeded", "message": "2 more steps would pass max_steps", "step": "a"}
    assert finished["usage"] == USAGE
    assert await door.repeat(event) == [finished]


async def test_as_many_steps_as_max_steps_are_allowed(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")], max_steps=4))
    assert dispatches(await door.advance(expanded("a", children("a", 2)))) == [("a/0", 1), ("a/1", 1)]


@pytest.mark.parametrize(("limit", "word"), [({"max_tokens": 59}, "max_tokens"), ({"max_cost_microdollars": 9}, "max_cost_usd")])
async def test_a_workflow_that_used_too_much_fails(door: Door, limit: dict[str, Any], word: str) -> None:
    await door.advance(requested(CHAIN, **limit))
    assert dispatches(await door.advance(completed("a"))) == [("b", 1)]
    commands = await door.advance(completed("b"))
    finished = one(commands, "finished")
    assert kinds(commands) == ["finished"]
    assert finished["error"] == {"type": "BudgetExceeded", "message": f"the workflow passed its {word}"}
    assert await door.statuses() == {"a": "SUCCESS", "b": "SUCCESS", "c": "CANCELLED"}
    assert await door.repeat(completed("b")) == [finished]


async def test_what_remains_of_a_budget_goes_with_each_dispatch(door: Door) -> None:
    dispatch = one(await door.advance(requested(CHAIN, max_tokens=100, max_cost_microdollars=7, max_steps=5)), "dispatch")
    limits = {"max_tokens": 100, "max_cost_microdollars": 7, "steps": 2}
    assert dispatch["remaining"] == {"tokens": 100, "cost_microdollars": 7, **limits}
    dispatch = one(await door.advance(completed("a")), "dispatch")
    assert dispatch["remaining"] == {"tokens": 70, "cost_microdollars": 2, **limits}


async def test_a_workflow_whose_last_step_passes_the_budget_still_succeeds(door: Door) -> None:
    await door.advance(requested([step("a")], max_tokens=1))
    assert kinds(await door.advance(completed("a"))) == ["render"]
    assert one(await door.advance(rendered()), "finished")["status"] == "SUCCESS"


# Ends that a callback is told of

HOOK = "https://example.org/hook"


@pytest.mark.parametrize("end", [cancelled(), failed("a", permanent=True)])
async def test_an_end_is_told_once_more_a_minute_later_should_whoever_was_to_tell_be_gone(door: Door, end: Event) -> None:
    await door.advance(requested([step("a")], callback_url=HOOK), requested([step("a")], "wf_2"))
    await door.advance(end, cancelled("wf_2"))
    first = one(await door.repeat(end), "finished")
    door.wait(59)
    assert await door.advance(tick()) == []
    door.wait(1)
    assert one(await door.advance(tick()), "finished") == first
    door.wait(60)
    assert await door.advance(tick()) == []


async def test_an_end_that_the_sweeper_itself_brought_is_told_once_more(door: Door) -> None:
    await door.advance(requested([step("a")], callback_url=HOOK, deadline_seconds=10))
    door.wait(10)
    assert kinds(await door.advance(tick())) == ["finished"]
    door.wait(60)
    assert kinds(await door.advance(tick())) == ["finished"]
    assert await door.advance(tick()) == []


async def test_after_a_restart_ends_are_told_again_at_once_and_old_ones_never(door: Door) -> None:
    for workflow, minutes in (("wf_1", 61), ("wf_2", 0)):
        await door.advance(requested([step("a")], workflow, callback_url=HOOK))
        await door.advance(cancelled(workflow))
        door.wait(60 * minutes)
    assert [command["workflow"] for command in await door.advance(tick(recover=True))] == ["wf_2"]
    assert await door.advance(tick(recover=True)) == []


# Admission


async def test_no_more_than_max_running_workflows_run(door: Door) -> None:
    door.max_running = 2
    commands = await door.advance(*(requested([step("a")], f"wf_{n}") for n in range(4)))
    assert [c["workflow"] for c in commands if c["type"] == "dispatch"] == ["wf_0", "wf_1"]
    assert [c["status"] for c in commands if c["type"] == "accepted"] == ["RUNNING", "RUNNING", "QUEUED", "QUEUED"]
    assert await door.advance(tick()) == []


async def test_a_higher_priority_goes_first_and_then_the_older(door: Door) -> None:
    door.max_running = 0
    for workflow, priority in (("wf_1", 0), ("wf_2", 5), ("wf_3", -1), ("wf_4", 5)):
        await door.advance(requested([step("a")], workflow, priority=priority))
    order = []
    for door.max_running in range(1, 5):
        order += [command["workflow"] for command in await door.advance(tick())]
    assert order == ["wf_2", "wf_4", "wf_1", "wf_3"]


ENDS: dict[str, list[Event]] = {
    "success": [completed("a"), rendered()],
    "failure": [failed("a", permanent=True)],
    "cancel": [cancelled()],
    "budget": [completed("a", children=children("a", 9), join=None)],
}


@pytest.mark.parametrize("events", ENDS.values(), ids=ENDS.keys())
async def test_the_end_of_a_workflow_starts_a_queued_one_and_repeating_it_starts_the_same(door: Door, events: list[Event]) -> None:
    door.max_running = 1
    await door.advance(requested([step("a")], max_steps=5), requested(CHAIN, "wf_2"), requested(CHAIN, "wf_3"))
    *before, last = events
    for event in before:
        await door.advance(event)
    first = await door.advance(last)
    dispatch = one(first, "dispatch")
    assert (dispatch["workflow"], dispatch["step"]) == ("wf_2", "a")
    assert await door.repeat(last) == first
    await door.advance(completed("a", workflow="wf_2"))
    assert kinds(await door.repeat(last)) == ["finished"]


async def test_a_passed_deadline_starts_a_queued_workflow(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a")], deadline_seconds=60), requested([step("a")], "wf_2"))
    door.wait(60)
    assert [(c["type"], c["workflow"]) for c in await door.advance(tick())] == [("dispatch", "wf_2"), ("finished", "wf_1")]


async def test_a_request_that_starts_another_workflow_starts_it_again_when_repeated(door: Door) -> None:
    door.max_running = 0
    await door.advance(requested([step("a")], "wf_1"))
    door.max_running = 2
    request = requested([step("a")], "wf_2")
    first = await door.advance(request)
    assert {c["workflow"] for c in first if c["type"] == "dispatch"} == {"wf_1", "wf_2"}
    again = await door.repeat(request)
    assert {c["workflow"] for c in again if c["type"] == "dispatch"} == {"wf_1", "wf_2"}


async def test_what_a_tick_starts_is_caused_by_the_tick(door: Door) -> None:
    door.max_running = 0
    await door.advance(requested([step("a")], "wf_1"), requested([step("a")], "wf_2"))
    door.max_running = 1
    commands = await door.advance(completed("a", workflow="wf_unknown"), tick())
    assert (one(commands, "dispatch")["cause"], one(commands, "ignored")["cause"]) == (1, 0)


# Cancelling


async def test_a_queued_workflow_can_be_cancelled(door: Door) -> None:
    door.max_running = 0
    await door.advance(requested(CHAIN))
    finished = one(await door.advance(cancelled()), "finished")
    assert (finished["status"], finished["error"]) == ("CANCELLED", {"type": "Cancelled", "message": "no longer needed"})
    door.max_running = 1
    assert await door.advance(tick()) == []


@pytest.mark.parametrize(
    "events",
    [
        [],
        [completed("a")],
        [failed("a")],
        [failed("a", retry_after_seconds=60)],
        [deferred("a", START + timedelta(hours=1))],
        [expanded("a", children("a", 2))],
        [expanded("a", children("a", 2)), completed("a/0")],
        [completed("a"), completed("b"), completed("c")],
    ],
    ids=["running", "between", "retried", "waiting", "deferred", "expanded", "half joined", "to be rendered"],
)
async def test_a_workflow_can_be_cancelled_whatever_it_is_doing(door: Door, events: list[Event]) -> None:
    await door.advance(requested(CHAIN))
    for event in events:
        await door.advance(event)
    first = await door.advance(cancelled())
    assert kinds(first) == ["finished"]
    assert await door.repeat(cancelled()) == first
    shown = await door.workflow()
    assert (shown["status"], shown["steps_open"]) == ("CANCELLED", 0)
    assert set((await door.statuses()).values()) <= {"SUCCESS", "CANCELLED"}
    door.wait(timedelta(days=1))
    assert await door.repeat(tick(), rendered(), failed("a", permanent=True)) == [{**first[0], "cause": 2}]


@pytest.mark.parametrize("end", [rendered(), failed("a", permanent=True)], ids=["succeeded", "failed"])
async def test_an_ended_workflow_cannot_be_cancelled(door: Door, end: Event) -> None:
    await door.advance(requested([step("a")]))
    if end["type"] == "workflow.rendered":
        await door.advance(completed("a"))
    first = await door.advance(end)
    assert await door.repeat(cancelled()) == first
