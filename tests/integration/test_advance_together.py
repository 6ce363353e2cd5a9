"""Where two ways to move a workflow meet: pauses and waits, signals now and later, reruns and budgets."""

from datetime import timedelta
from typing import Any

import pytest

from .door import (
    LEASE,
    Door,
    completed,
    dead,
    dispatches,
    failed,
    kinds,
    one,
    paused,
    redriven,
    rendered,
    requested,
    signalled,
    step,
    tick,
    unpaused,
    waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def approval(id: str = "ask", *needs: str) -> dict[str, Any]:
    return step(id, *needs, agent="wait:approval", signal=id)


async def status(door: Door, workflow: str = "wf_1") -> str:
    shown: str = (await door.workflow(workflow))["status"]
    return shown


async def test_a_wait_whose_lease_ran_out_while_paused_goes_on_with_what_it_was_told(door: Door) -> None:
    await door.advance(requested([approval()]))
    await door.advance(waiting("ask"))
    assert dispatches(await door.advance(signalled("ask", decision="approve"))) == [("ask", 1)]
    await door.advance(paused())
    door.wait(LEASE + timedelta(seconds=1))
    await door.advance(tick())
    assert await status(door) == "WAITING"
    refused = one(await door.advance(signalled("ask", "signal-2", decision="reject")), "refused")
    assert refused["problem"] == "ended"
    dispatch = one(await door.advance(unpaused()), "dispatch")
    assert (dispatch["step"], dispatch["attempt"], dispatch["woken"]["decision"]) == ("ask", 2, "approve")


async def test_a_wait_that_was_lost_before_it_began_is_tried_once_more_after_a_pause(door: Door) -> None:
    await door.advance(requested([approval()]))
    await door.advance(paused())
    door.wait(LEASE + timedelta(seconds=1))
    await door.advance(tick())
    assert dispatches(await door.advance(unpaused())) == [("ask", 2)]
    await door.advance(waiting("ask", attempt=2))
    assert (await door.step("ask"))["status"] == "WAITING"


async def test_a_signal_wakes_with_what_it_says_whatever_is_kept_for_others(door: Door) -> None:
    paid = {"agent": "wait:signal", "signal": "paid"}
    await door.advance(requested([step("one", **paid), step("two", **paid)]))
    await door.advance(waiting("one"))
    await door.advance(signalled("paid", "first", data=1, later=True))
    # The only one that waits is due for the first signal.
    assert one(await door.advance(signalled("paid", "second", data=2)), "signalled")["outcome"] == "kept"
    assert one(await door.advance(tick()), "dispatch")["woken"]["data"] == 1
    woken = one(await door.advance(waiting("two")), "dispatch")
    assert (woken["step"], woken["woken"]["data"]) == ("two", 2)
    assert one(await door.repeat(signalled("paid", "second", data=2)), "dispatch") == woken


async def test_of_two_that_wait_the_one_that_is_not_due_takes_the_next_signal(door: Door) -> None:
    paid = {"agent": "wait:signal", "signal": "paid"}
    await door.advance(requested([step("one", **paid), step("two", **paid)]))
    await door.advance(waiting("one"), waiting("two"))
    await door.advance(signalled("paid", "first", data=1, later=True))
    commands = await door.advance(signalled("paid", "second", data=2))
    assert (one(commands, "dispatch")["step"], one(commands, "dispatch")["woken"]["data"]) == ("two", 2)
    assert await door.repeat(signalled("paid", "second", data=2)) == commands
    assert one(await door.advance(tick()), "dispatch")["woken"]["data"] == 1


async def test_what_has_spent_its_budget_does_not_go_on_after_a_rerun(door: Door) -> None:
    await door.advance(requested([step("a"), step("b")], max_tokens=59))
    await door.advance(completed("a"), failed("b", permanent=True, usage={"input_tokens": 20, "output_tokens": 10}))
    assert (await door.workflow())["error"]["type"] == "ModelUnavailable"
    about = {"workflow": "wf_1", "request_key": "key", "max_running": 10}
    commands = await door.call("rerun_workflow", **about)
    assert kinds(commands) == ["finished", "rerun"]
    assert (await door.workflow())["error"]["type"] == "BudgetExceeded"
    before = await door.dump()
    assert kinds(await door.call("rerun_workflow", **about)) == ["finished", "rerun"]
    assert await door.dump() == before


async def test_what_has_spent_its_budget_does_not_go_on_after_a_redrive_and_says_so_twice(door: Door) -> None:
    await door.advance(requested([step("a"), step("b")], max_tokens=29))
    await door.advance(completed("a"), dead("b"))
    commands = await door.advance(redriven("b"))
    assert kinds(commands) == ["finished", "redriven"]
    assert kinds(await door.repeat(redriven("b"))) == ["finished", "redriven"]


async def test_a_retry_that_came_due_in_the_queue_leaves_nothing_behind_to_look_at(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a")]))
    await door.advance(failed("a", retry_after_seconds=20))
    await door.advance(paused())
    await door.advance(requested([step("b")], "wf_2"))
    door.wait(60)
    await door.advance(unpaused())
    assert await status(door) == "QUEUED"
    await door.advance(completed("b", workflow="wf_2"))
    await door.advance(rendered("wf_2"))
    assert await status(door) == "RUNNING"
    assert await door.repeat(tick()) == []
