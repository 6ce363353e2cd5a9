"""Workflows that are stopped for a while: nothing starts, nothing is lost, and all goes on from there."""

from datetime import timedelta
from typing import Any

import orjson
import pytest

from .door import (
    LEASE,
    START,
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
    paused,
    rendered,
    requested,
    signalled,
    step,
    tick,
    unpaused,
    waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN = [step("a"), step("b", "a"), step("c", "b")]


def approval(id: str = "ask", *needs: str) -> dict[str, Any]:
    return step(id, *needs, agent="wait:approval", signal=id)


async def status(door: Door, workflow: str = "wf_1") -> str:
    shown: str = (await door.workflow(workflow))["status"]
    return shown


async def test_what_is_at_work_ends_and_nothing_follows_until_it_goes_on(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested(CHAIN), requested(CHAIN, "wf_2"))
    assert one(await door.advance(paused()), "paused") == {
        "type": "paused", "cause": 0, "workflow": "wf_1", "paused_at": START.isoformat(), "paused_by": "ann", "status": "RUNNING"
    }  # fmt: skip
    door.wait(5)
    first = await door.advance(completed("a"))
    assert [(c["workflow"], c["step"]) for c in first if c["type"] == "dispatch"] == [("wf_2", "a")]
    assert await door.repeat(completed("a")) == first
    shown = await door.workflow()
    assert (shown["status"], shown["paused_at"], shown["paused_by"], shown["queue"]) == ("WAITING", START.isoformat(), "ann", None)
    assert await door.statuses() == {"a": "SUCCESS", "b": "PENDING", "c": "PENDING"}
    assert await door.repeat(tick()) == []
    await door.advance(cancelled("wf_2"))
    door.wait(5)
    commands = await door.advance(unpaused())
    assert dispatches(commands) == [("b", 1)]
    assert await door.repeat(unpaused()) == commands
    shown = await door.workflow()
    assert (shown["status"], shown["paused_at"], shown["paused_by"]) == ("RUNNING", None, None)
    said = [(entry["type"], entry["at"], entry["data"]) for entry in await door.history() if "paused" in entry["type"]]
    assert said == [
        ("workflow.paused", START.isoformat(), {"by": "ann", "reason": ""}),
        ("workflow.unpaused", (START + timedelta(seconds=10)).isoformat(), {"by": "bob", "reason": ""}),
    ]


async def test_pausing_twice_and_resuming_twice_is_the_same_as_once(door: Door) -> None:
    await door.advance(requested(CHAIN))
    assert one(await door.repeat(unpaused()), "unpaused")["status"] == "RUNNING"
    first = await door.advance(paused())
    door.wait(5)
    assert await door.repeat({**paused(), "by": "eve"}) == first
    await door.advance(unpaused())
    await door.repeat(unpaused())


async def test_one_that_still_works_goes_on_at_once_and_keeps_its_slot(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a"), step("slow"), step("b", "a")]), requested(CHAIN, "wf_2"))
    await door.advance(paused())
    assert await door.advance(completed("a")) == []
    assert await status(door) == "RUNNING"
    door.wait(1)
    assert dispatches(await door.advance(unpaused())) == [("b", 1)]
    assert await status(door, "wf_2") == "QUEUED"


async def test_a_queued_workflow_can_be_paused_and_takes_its_place_again(door: Door) -> None:
    door.max_running = 0
    await door.advance(requested(CHAIN, "wf_1"), requested(CHAIN, "wf_2"))
    first = await door.advance(paused())
    assert one(first, "paused")["status"] == "WAITING"
    assert await door.repeat(paused()) == first
    door.max_running = 1
    assert [c["workflow"] for c in await door.advance(tick())] == ["wf_2"]
    assert one(await door.advance(unpaused()), "unpaused")["status"] == "QUEUED"
    assert [c["workflow"] for c in await door.advance(cancelled("wf_2")) if c["type"] == "dispatch"] == ["wf_1"]


async def test_a_pause_that_is_taken_back_before_anything_ran_starts_everything_once(door: Door) -> None:
    door.max_running = 0
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    door.max_running = 1
    commands = await door.advance(unpaused())
    assert dispatches(commands) == [("a", 1)]
    assert await door.repeat(unpaused()) == commands


@pytest.mark.parametrize("retry_after_seconds", [0, 60])
async def test_a_retry_waits_for_the_workflow_to_go_on(door: Door, retry_after_seconds: int) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    event = failed("a", retry_after_seconds=retry_after_seconds)
    assert await door.advance(event) == []
    assert await door.repeat(event) == []
    assert (await status(door), (await door.step("a"))["status"]) == ("WAITING", "WAITING")
    door.wait(3600)
    assert await door.repeat(tick()) == []
    commands = await door.advance(unpaused())
    assert dispatches(commands) == [("a", 2)]
    assert await door.repeat(unpaused()) == commands


async def test_a_retry_that_is_not_due_when_it_goes_on_starts_when_it_is(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    await door.advance(deferred("a", START + timedelta(hours=1)))
    door.wait(60)
    assert kinds(await door.advance(unpaused())) == ["unpaused"]
    assert await status(door) == "RUNNING"
    door.wait(3600)
    assert dispatches(await door.advance(tick())) == [("a", 1)]


async def test_a_retry_that_came_due_in_the_queue_starts_with_the_slot(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested(CHAIN), requested(CHAIN, "wf_2"))
    await door.advance(paused())
    await door.advance(failed("a", retry_after_seconds=60))
    await door.advance(unpaused())
    assert await status(door) == "QUEUED"
    door.wait(120)
    assert await door.repeat(tick()) == []
    first = await door.advance(cancelled("wf_2"))
    assert dispatches(first) == [("a", 2)]
    assert await door.repeat(cancelled("wf_2")) == first


async def test_a_result_that_comes_late_counts_while_paused(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(paused())
    door.wait(LEASE)
    assert kinds(await door.advance(tick())) == ["expired"]
    assert (await status(door), (await door.step("a"))["status"]) == ("WAITING", "WAITING")
    await door.advance(completed("a"))
    commands = await door.advance(unpaused())
    assert kinds(commands) == ["render", "unpaused"]
    assert one(await door.advance(rendered()), "finished")["status"] == "SUCCESS"


async def test_a_lease_that_ends_while_paused_gives_the_next_attempt_later(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    door.wait(LEASE)
    assert dispatches(await door.advance(tick())) == []
    assert dispatches(await door.advance(unpaused())) == [("a", 2)]


async def test_after_a_restart_only_what_was_at_work_starts_again(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "b")]))
    await door.advance(paused())
    await door.advance(failed("a", retry_after_seconds=60))
    door.wait(120)
    assert dispatches(await door.advance(tick(recover=True))) == [("b", 1)]


async def test_children_that_a_step_adds_while_paused_start_later(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(paused())
    event = expanded("a", children("a", 2))
    assert await door.advance(event) == []
    assert await door.repeat(event) == []
    assert dispatches(await door.advance(unpaused())) == [("a/0", 1), ("a/1", 1)]


async def test_the_last_result_ends_a_paused_workflow(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(paused())
    assert kinds(await door.advance(completed("a"))) == ["render"]
    await door.advance(rendered())
    shown = await door.workflow()
    assert (shown["status"], shown["paused_at"]) == ("SUCCESS", None)
    assert one(await door.repeat(paused()), "refused")["problem"] == "ended"
    assert kinds(await door.repeat(unpaused())) == ["refused"]


# Signals and time


async def test_a_decision_that_comes_while_paused_has_its_effect_afterwards(door: Door) -> None:
    await door.advance(requested([approval(), step("b", "ask")]))
    await door.advance(waiting("ask"))
    await door.advance(paused())
    told = signalled("ask", decision="approve", by="ann")
    commands = await door.advance(told)
    assert (kinds(commands), one(commands, "signalled")["outcome"]) == (["signalled"], "woken")
    assert await door.repeat(told) == commands
    assert await status(door) == "WAITING"
    again = one(await door.advance(unpaused()), "dispatch")
    assert (again["step"], again["attempt"], again["woken"]["by"]) == ("ask", 1, "ann")


async def test_a_kept_decision_is_found_by_a_step_that_begins_to_wait_while_paused(door: Door) -> None:
    await door.advance(requested([approval(), step("b", "ask")]))
    await door.advance(paused())
    await door.advance(signalled("ask", decision="approve"))
    assert await door.advance(waiting("ask")) == []
    assert await door.repeat(waiting("ask")) == []
    assert await door.statuses() == {"ask": "PENDING", "b": "PENDING"}
    assert one(await door.advance(unpaused()), "dispatch")["woken"]["decision"] == "approve"


async def test_a_moment_that_comes_while_paused_wakes_when_it_goes_on(door: Door) -> None:
    await door.advance(requested([step("pause", agent="wait:time", signal="pause"), step("b", "pause")]))
    await door.advance(waiting("pause", seconds=60))
    await door.advance(paused())
    door.wait(3600)
    assert await door.repeat(tick()) == []
    assert kinds(await door.advance(unpaused())) == ["unpaused"]
    assert await status(door) == "WAITING"
    assert one(await door.advance(tick()), "dispatch")["woken"]["woken_by"] == "time"


# Ends


async def test_a_deadline_runs_on_while_paused(door: Door) -> None:
    await door.advance(requested(CHAIN, deadline_seconds=60))
    await door.advance(paused())
    await door.advance(completed("a"))
    door.wait(60)
    finished = one(await door.advance(tick()), "finished")
    assert (finished["status"], finished["error"]["type"]) == ("FAILED", "BudgetExceeded")
    assert (await door.workflow())["paused_at"] is None


async def test_a_paused_workflow_can_be_cancelled(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    await door.advance(completed("a"))
    first = await door.advance(cancelled())
    assert (kinds(first), await status(door)) == (["finished"], "CANCELLED")
    assert await door.repeat(cancelled()) == first


async def test_a_budget_that_is_passed_while_paused_fails_it(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "a")], max_tokens=10))
    await door.advance(paused())
    assert one(await door.advance(completed("a")), "finished")["error"]["type"] == "BudgetExceeded"


async def test_one_that_failed_while_paused_is_not_paused_when_it_is_rerun(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(paused())
    await door.advance(failed("a", permanent=True))
    commands = await door.call("rerun_workflow", workflow="wf_1", max_running=1)
    assert dispatches(commands) == [("a", 2)]


async def test_a_fork_of_a_paused_workflow_is_not_paused(door: Door) -> None:
    await door.advance(requested(CHAIN, tenant="ci"))
    await door.advance(paused())
    fork = {"from": "wf_1", "at": 1, "workflow": "wf_9", "input": {}, "finished": [], "expanded": [], "tenant": "ann"}
    commands = await door.call("fork_workflow", fork=fork, max_running=5)
    assert dispatches(commands) == [("a", 1)]
    assert ((await door.workflow("wf_9"))["tenant"], (await door.workflow("wf_9"))["paused_at"]) == ("ann", None)


# Messages


async def test_a_copy_of_a_pause_does_not_stop_what_has_gone_on_since(door: Door) -> None:
    await door.advance(requested(CHAIN))
    for key in ("1", "2"):
        await door.advance(paused(key=key))
        await door.advance(unpaused(key=key))
        assert one(await door.repeat(paused(key=key)), "paused")["paused_at"] is None
    await door.advance(paused(key="3"))
    await door.repeat(unpaused(key="1"))
    assert (await door.workflow())["paused_at"] is not None


async def test_a_resumption_that_came_for_nothing_is_known_when_it_comes_again(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(unpaused(key="1"))
    await door.advance(paused(key="2"))
    await door.repeat(unpaused(key="1"))
    assert (await door.workflow())["paused_at"] is not None


async def test_an_unknown_workflow_is_neither_paused_nor_resumed(door: Door) -> None:
    assert kinds(await door.repeat(paused(), unpaused())) == ["ignored", "ignored"]


# The receipt of a cancellation


async def receipt(door: Door) -> Any:
    return orjson.loads(await door.connection.fetchval("select coalesce(cancel_receipt('wf_1'), 'null')"))


async def test_a_cancellation_tells_what_ran_what_was_stopped_and_what_it_had_cost(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a"), step("c", "b"), step("d", "a", agent="wait:time", signal="d")]))
    await door.advance(completed("a"))
    await door.advance(waiting("d", seconds=60))
    assert await receipt(door) is None
    door.wait(7)
    event = {**cancelled(), "by": "ann"}
    await door.advance(event)
    told = await receipt(door)
    assert told == {
        "at": (START + timedelta(seconds=7)).isoformat(), "by": "ann", "reason": "no longer needed", "was": "RUNNING",
        "running": 1, "running_steps": [{"step": "b", "agent": "worker", "attempt": 1, "since": START.isoformat()}],
        "stopped": 2, "stopped_steps": ["c", "d"], "finished": 1,
        "usage": {"model_calls": 1, "input_tokens": 20, "output_tokens": 10, "cost_microdollars": 5},
    }  # fmt: skip
    await door.advance(completed("b"))  # too late, and counted
    await door.repeat({**cancelled(), "by": "eve"})
    assert await receipt(door) == told
    assert (await door.history())[-2]["data"]["receipt"] == told
    assert (await door.workflow())["usage"]["cost_microdollars"] == 10


async def test_a_receipt_names_fifty_steps_of_each_kind_and_counts_all(door: Door) -> None:
    await door.advance(requested([step("a"), *(step(f"b{n}", "a") for n in range(70))]))
    await door.advance(expanded("a", children("a", 60)))
    await door.advance(cancelled())
    told = await receipt(door)
    assert (told["running"], len(told["running_steps"]), told["running_steps"][49]["step"]) == (60, 50, "a/49")
    assert (told["stopped"], len(told["stopped_steps"]), told["stopped_steps"][:2]) == (71, 50, ["a", "b0"])
