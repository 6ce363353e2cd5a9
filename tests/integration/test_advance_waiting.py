"""What a step that waits for people, time or a signal means to the state: signals, timers, slots, repetition."""

from datetime import timedelta
from typing import Any

import pytest

from shared.state import Command, Event

from .door import (
    START,
    Door,
    cancelled,
    completed,
    dead,
    deferred,
    dispatches,
    failed,
    kinds,
    one,
    redriven,
    rendered,
    requested,
    signalled,
    step,
    tick,
    waiting,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def approval(id: str = "ask", *needs: str, **more: Any) -> dict[str, Any]:
    return step(id, *needs, agent="wait:approval", signal=id, **more)


def pause(id: str, *needs: str, signal: str | None = None, **more: Any) -> dict[str, Any]:
    kind = "wait:time" if signal is None else "wait:signal"
    return step(id, *needs, agent=kind, signal=id if signal is None else signal, **more)


async def begun(door: Door, *steps: dict[str, Any], workflow: str = "wf_1", seconds: float | None = None, **more: Any) -> None:
    """A workflow whose first step waits."""
    await door.advance(requested(steps, workflow, **more))
    await door.advance(waiting(steps[0]["id"], workflow=workflow, seconds=seconds))


async def status(door: Door, workflow: str = "wf_1") -> str:
    shown: str = (await door.workflow(workflow))["status"]
    return shown


def woken(commands: list[Command]) -> dict[str, Any]:
    found: dict[str, Any] = one(commands, "dispatch")["woken"]
    return found


async def test_a_step_that_waits_holds_nothing_and_its_workflow_shows_that_it_waits(door: Door) -> None:
    (dispatch,) = [c for c in await door.advance(requested([approval(), step("b", "ask")])) if c["type"] == "dispatch"]
    assert (dispatch["agent"], dispatch["woken"]) == ("wait:approval", None)
    assert await door.advance(waiting("ask", prompt="Shall it go out?")) == []
    shown = await door.workflow()
    (ask, b) = shown["steps"]
    assert (shown["status"], ask["status"], b["status"]) == ("WAITING", "WAITING", "PENDING")
    assert ask["waiting"] == {
        "for": "approval", "name": "ask", "prompt": "Shall it go out?", "since": START.isoformat(), "until": None
    }  # fmt: skip
    assert b["waiting"] is None
    assert (await door.step("ask"))["due_at"] is None
    door.wait(timedelta(days=400))
    assert await door.repeat(tick()) == []


async def test_a_signal_wakes_the_step_once_with_who_and_when(door: Door) -> None:
    await begun(door, approval(), step("b", "ask"))
    door.wait(60)
    told = signalled("ask", decision="approve", by="ann", comment="fine")
    commands = await door.advance(told)
    assert one(commands, "signalled") == {
        "type": "signalled", "cause": 0, "workflow": "wf_1", "name": "ask", "outcome": "woken", "status": "RUNNING"
    }  # fmt: skip
    at = (START + timedelta(seconds=60)).isoformat()
    assert woken(commands) == {"woken_by": "signal", "by": "ann", "at": at, "decision": "approve", "comment": "fine"}
    assert await door.repeat(told) == commands
    entries = [(entry["type"], entry["step"]) for entry in (await door.history())[-4:]]
    assert entries == [
        ("step.woken", "ask"), ("workflow.woken", None), ("workflow.started", None), ("step.dispatched", "ask")
    ]  # fmt: skip
    said = next(entry for entry in await door.history() if entry["type"] == "workflow.signalled")
    assert (said["at"], said["data"]) == (at, {"name": "ask", "by": "ann", "decision": "approve", "comment": "fine"})
    assert dispatches(await door.advance(completed("ask"))) == [("b", 1)]
    again = await door.repeat(told)
    assert dispatches(again) == [("b", 1)]
    shown = (await door.workflow())["steps"][0]
    assert (shown["started_at"], shown["finished_at"]) == (START.isoformat(), at)


async def test_a_second_signal_changes_nothing_and_says_so(door: Door) -> None:
    await begun(door, approval(), step("b", "ask"))
    first = await door.advance(signalled("ask", "first", decision="approve"))
    second = await door.repeat(signalled("ask", "second", decision="reject"))
    refused = one(second, "refused")
    assert (refused["problem"], "what it was told first counts" in refused["reason"]) == ("ended", True)
    assert kinds(second) == ["refused"]
    assert dispatches(first) == [("ask", 1)]
    await door.advance(completed("ask"))
    assert one(await door.repeat(signalled("ask", "third", decision="reject")), "refused")["problem"] == "ended"


async def test_a_signal_that_comes_before_its_step_waits_is_kept_and_found(door: Door) -> None:
    await door.advance(requested([step("a"), approval("ask", "a"), step("b", "ask")]))
    early = signalled("ask", decision="approve", by="ann")
    assert one(await door.advance(early), "signalled")["outcome"] == "kept"
    assert one(await door.repeat(early), "signalled")["outcome"] == "kept"
    assert one(await door.repeat(signalled("ask", "other", decision="reject")), "refused")["problem"] == "ended"
    assert dispatches(await door.advance(completed("a"))) == [("ask", 1)]
    commands = await door.advance(waiting("ask"))
    assert woken(commands)["by"] == "ann"
    assert await door.repeat(waiting("ask")) == commands
    assert dispatches(await door.repeat(completed("a"))) == [("ask", 1)]
    assert await status(door) == "RUNNING"


async def test_signals_of_one_name_are_taken_in_order_by_the_steps_that_wait_for_it(door: Door) -> None:
    await door.advance(requested([step("a"), pause("p", "a", signal="paid"), pause("q", "p", signal="paid")]))
    for number in (1, 2):
        assert one(await door.advance(signalled("paid", str(number), data=number)), "signalled")["outcome"] == "kept"
    assert one(await door.repeat(signalled("paid", "3", data=3)), "refused")["problem"] == "ended"
    await door.advance(completed("a"))
    assert woken(await door.advance(waiting("p")))["data"] == 1
    await door.advance(completed("p"))
    assert woken(await door.advance(waiting("q")))["data"] == 2


async def test_a_step_takes_a_signal_by_its_own_id_too(door: Door) -> None:
    await begun(door, pause("p", signal="paid"))
    assert woken(await door.advance(signalled("p", data=7)))["data"] == 7


async def test_a_signal_is_refused_where_no_step_could_ever_take_it(door: Door) -> None:
    await begun(door, approval(), pause("p", signal="paid"), step("b", "ask"))
    unknown = one(await door.repeat(signalled("b")), "refused")
    assert unknown["problem"] == "unknown"
    assert unknown["reason"] == "no step of this workflow waits for b; there are ask, paid"
    unfit = [
        one(await door.repeat(signalled("ask")), "refused"),
        one(await door.repeat(signalled("p", decision="approve")), "refused"),
    ]
    assert [answer["problem"] for answer in unfit] == ["unfit", "unfit"]
    assert kinds(await door.repeat(signalled("ask", workflow="wf_0"))) == ["ignored"]
    await door.advance(cancelled())
    ended = await door.repeat(signalled("ask", decision="approve"))
    assert (kinds(ended), one(ended, "refused")["problem"]) == (["refused"], "ended")


async def test_a_timer_wakes_its_step_when_its_moment_has_come_and_not_before(door: Door) -> None:
    await begun(door, pause("p"), step("b", "p"), seconds=86_400.0)
    door.wait(86_399)
    assert await door.repeat(tick(recover=True)) == []
    door.wait(1)
    commands = await door.advance(tick())
    assert woken(commands) == {"woken_by": "time", "at": door.moment.isoformat()}
    assert dispatches(await door.advance(completed("p"))) == [("b", 1)]


async def test_a_moment_that_has_passed_is_not_waited_for(door: Door) -> None:
    await door.advance(requested([pause("p")]))
    event = {**waiting("p"), "until": (START - timedelta(days=1)).isoformat()}
    commands = await door.advance(event)
    assert woken(commands)["woken_by"] == "time"
    assert await door.repeat(event) == commands


async def test_a_workflow_that_only_waits_frees_its_slot_and_takes_one_again(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([approval()]))
    await door.advance(requested([step("x")], "wf_2"))
    assert await status(door, "wf_2") == "QUEUED"
    commands = await door.advance(waiting("ask"))
    assert dispatches(commands) == [("x", 1)]
    assert await door.repeat(waiting("ask")) == commands, "what its slot had started comes again"
    assert (await status(door), await status(door, "wf_2")) == ("WAITING", "RUNNING")

    told = signalled("ask", decision="approve")
    queued = await door.advance(told)
    assert (kinds(queued), await status(door)) == (["signalled"], "QUEUED")
    await door.repeat(told)
    await door.advance(completed("x", workflow="wf_2"))
    ending = await door.advance(rendered("wf_2"))
    assert dispatches(ending) == [("ask", 1)]
    assert dispatches(await door.repeat(rendered("wf_2"))) == [("ask", 1)]
    assert one(await door.advance(completed("ask")), "render")["workflow"] == "wf_1"


async def test_what_followed_a_wait_comes_again_when_what_gave_the_slot_away_is_repeated(door: Door) -> None:
    door.max_running = 1
    await begun(door, approval(), step("b", "ask"))
    await door.advance(requested([step("x")], "wf_2"))
    await door.advance(signalled("ask", decision="approve"), completed("x", workflow="wf_2"))
    await door.advance(rendered("wf_2"))
    door.wait(1)
    assert dispatches(await door.advance(completed("ask"))) == [("b", 1)]
    assert dispatches(await door.repeat(rendered("wf_2"))) == [("b", 1)]


async def test_a_workflow_keeps_its_slot_while_another_step_of_it_is_at_work(door: Door) -> None:
    await door.advance(requested([approval(), step("a"), step("b", "ask", "a")]))
    await door.advance(waiting("ask"))
    assert await status(door) == "RUNNING"
    await door.advance(completed("a"))
    assert await status(door) == "WAITING"


async def test_a_step_that_goes_on_with_a_later_slot_comes_again_when_what_gave_it_is_repeated(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a"), approval("ask", "a")]))
    await door.advance(requested([step("x")], "wf_2"))
    await door.advance(completed("a"))
    await door.advance(waiting("ask"))
    door.wait(5)
    await door.advance(signalled("ask", decision="approve"), completed("x", workflow="wf_2"))
    assert dispatches(await door.advance(rendered("wf_2"))) == [("ask", 1)]
    door.wait(5)
    assert dispatches(await door.repeat(rendered("wf_2"))) == [("ask", 1)]


async def test_a_step_that_was_deferred_keeps_the_slot(door: Door) -> None:
    await door.advance(requested([approval(), step("a")]))
    await door.advance(waiting("ask"), deferred("a", START + timedelta(minutes=5)))
    assert (await door.statuses(), await status(door)) == ({"ask": "WAITING", "a": "WAITING"}, "RUNNING")


async def test_a_deadline_passes_while_a_workflow_waits_and_while_it_is_queued_again(door: Door) -> None:
    door.max_running = 1
    await begun(door, approval(), deadline_seconds=100)
    await begun(door, approval(), workflow="wf_2", deadline_seconds=100)
    await door.advance(requested([step("x")], "wf_3"))
    await door.advance(signalled("ask", decision="approve", workflow="wf_2"))
    assert [await status(door, id) for id in ("wf_1", "wf_2", "wf_3")] == ["WAITING", "QUEUED", "RUNNING"]
    door.wait(99)
    assert await door.repeat(tick()) == []
    door.wait(1)
    ended = await door.advance(tick())
    assert sorted((c["workflow"], c["error"]["type"]) for c in ended) == [("wf_1", "BudgetExceeded"), ("wf_2", "BudgetExceeded")]


async def test_the_deadline_counts_from_the_first_start(door: Door) -> None:
    await begun(door, approval(), deadline_seconds=100)
    door.wait(90)
    await door.advance(signalled("ask", decision="approve"))
    door.wait(10)
    assert one(await door.advance(tick()), "finished")["status"] == "FAILED"


async def test_a_workflow_that_waits_can_be_cancelled_and_nothing_is_left_of_its_timers(door: Door) -> None:
    await begun(door, pause("p"), seconds=60)
    assert one(await door.advance(cancelled()), "finished")["status"] == "CANCELLED"
    assert await door.statuses() == {"p": "CANCELLED"}
    door.wait(61)
    assert await door.repeat(tick()) == []


async def test_a_step_that_was_woken_and_whose_dispatch_was_lost_starts_again(door: Door) -> None:
    await begun(door, approval())
    await door.advance(signalled("ask", decision="approve", by="ann"))
    recovered = await door.advance(tick(recover=True))
    assert woken(recovered)["by"] == "ann"
    door.wait(901)
    expired = one(await door.advance(tick()), "dispatch")
    assert (expired["attempt"], expired["woken"]["by"]) == (2, "ann")


async def test_a_resumed_workflow_waits_anew_and_remembers_what_it_was_told(door: Door) -> None:
    steps = [step("a", max_retries=0), approval(), pause("p", signal="paid"), step("b", "a", "ask", "p")]
    await door.advance(requested(steps))
    await door.advance(waiting("ask"), waiting("p", seconds=50), signalled("ask", decision="approve", by="ann"))
    await door.advance(dead("a"))
    assert one(await door.repeat(signalled("paid", "early")), "refused")["problem"] == "ended"
    door.wait(100)
    commands = await door.advance(redriven("a"))
    assert dispatches(commands) == [("a", 2), ("ask", 1), ("p", 2)]
    assert {c["step"]: c["woken"] and c["woken"]["by"] for c in commands if c["type"] == "dispatch"} == {
        "a": None, "ask": "ann", "p": None
    }  # fmt: skip
    await door.advance(waiting("p", attempt=2, seconds=50))
    await door.repeat(waiting("p", attempt=1, seconds=50))
    await door.advance(completed("ask"), completed("a", attempt=2))
    assert await status(door) == "WAITING"
    door.wait(49)
    assert await door.repeat(tick()) == []
    assert woken(await door.advance(signalled("paid", "in time")))["woken_by"] == "signal"


async def test_a_signal_for_later_is_taken_with_the_next_tick(door: Door) -> None:
    await begun(door, approval())
    later = signalled("ask", decision="approve", by="ann", later=True)
    assert kinds(await door.advance(later)) == ["signalled"]
    await door.repeat(later)
    assert woken(await door.advance(tick()))["by"] == "ann"


async def test_signals_for_later_wake_as_many_steps_as_there_are_signals(door: Door) -> None:
    await door.advance(requested([pause("p", signal="paid"), pause("q", signal="paid")]))
    await door.advance(waiting("p"), waiting("q", seconds=3600))
    await door.advance(signalled("paid", "1", data=1, later=True), signalled("paid", "2", data=2, later=True))
    commands = await door.advance(tick())
    assert {c["step"]: c["woken"]["data"] for c in commands} == {"p": 1, "q": 2}


async def test_a_step_that_was_rejected_fails_as_its_definition_says(door: Door) -> None:
    await begun(door, approval(on_failure="continue"), step("b", "ask"))
    await door.advance(signalled("ask", decision="reject"))
    rejection: Event = {**failed("ask", permanent=True), "error": {"type": "Rejected", "message": "rejected by ann"}}
    assert dispatches(await door.advance(rejection)) == [("b", 1)]
    assert dispatches(await door.repeat(rejection)) == [("b", 1)]


async def test_the_sweeper_finds_whose_moment_has_come_without_looking_at_all_that_wait(door: Door) -> None:
    async with door.connection.transaction():
        await door.connection.execute("set local enable_seqscan = off")
        plan = await door.connection.fetch(
            "explain select r.id from workflows as r where r.status in ('WAITING', 'QUEUED') and r.wake_at <= now()"
        )
    assert any("workflows_waiting" in row[0] for row in plan)
