"""What attempts used is in the ledger, once, by step, by model and by workflow, however late they tell."""

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
    dead,
    deferred,
    failed,
    kinds,
    redriven,
    requested,
    step,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

CUT_OFF: dict[str, Event] = {
    "failed": failed("a", usage=USAGE, models={"pro": USAGE}),
    "failed for good": failed("a", permanent=True, usage=USAGE, models={"pro": USAGE}),
    "deferred": deferred("a", START + timedelta(hours=1), models={"pro": USAGE}),
    "result": completed("a", models={"pro": USAGE}),
    "result with children": completed("a", children=children("a", 2), join="*", models={"pro": USAGE}),
}


@pytest.mark.parametrize("event", CUT_OFF.values(), ids=CUT_OFF)
async def test_what_an_attempt_used_that_was_cut_off_is_noted_once(door: Door, event: Event) -> None:
    await door.advance(requested([step("a"), step("b")]))
    await door.advance(cancelled())
    assert kinds(await door.advance(event)) == ["finished"]
    assert [(entry["step"], entry["attempt"]) for entry in await door.history() if entry["type"] == "step.late"] == [("a", 1)]
    shown = await door.workflow()
    assert (shown["usage"], shown["models"]) == (USAGE, {"pro": USAGE})
    assert [(one["status"], one["usage"] == USAGE, one["models"]) for one in shown["steps"]] == [
        ("CANCELLED", True, {"pro": USAGE}),
        ("CANCELLED", False, {}),
    ]
    for again in CUT_OFF.values():
        await door.repeat(again)


async def test_an_error_that_was_counted_before_its_step_was_cut_off_is_not_counted_again(door: Door) -> None:
    retried, pause = failed("a", usage=USAGE), deferred("b", START + timedelta(hours=1))
    blink = deferred("c", START + timedelta(seconds=1))
    await door.advance(requested([step("a"), step("b"), step("c"), step("d")]))
    await door.advance(retried, pause, blink)
    assert (await door.statuses())["c"] == "RUNNING"
    await door.advance(cancelled())
    for event in (retried, pause, blink, failed("b", usage=USAGE), failed("d", attempt=2, usage=USAGE)):
        await door.repeat(event)
    assert (await door.workflow())["usage"] == {name: 3 * count for name, count in USAGE.items()}


async def test_an_error_without_usage_leaves_the_place_in_the_ledger_to_one_that_has_it(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(cancelled())
    await door.repeat(dead("a"))
    await door.advance(completed("a"))
    assert (await door.workflow())["usage"] == USAGE


@pytest.mark.parametrize("more", [{}, {"children": [], "join": "*"}], ids=["result", "result with children"])
async def test_what_was_noted_as_late_counts_once_when_its_workflow_goes_on_and_takes_it_as_the_result(
    door: Door, more: dict[str, Any]
) -> None:
    await door.advance(requested([step("a"), step("b")]))
    await door.advance(dead("a"))
    late = completed("b", models={"pro": USAGE}, **more)
    await door.advance(late)
    await door.advance(redriven("a"))
    assert (await door.statuses())["b"] == "RUNNING"
    await door.advance(late)
    assert (await door.statuses())["b"] == "SUCCESS"
    shown = await door.workflow()
    assert (shown["usage"], shown["models"]) == (USAGE, {"pro": USAGE})


async def test_a_result_that_comes_while_its_resumed_workflow_waits_for_a_slot_is_in_the_ledger(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a"), step("b")]), requested([step("x")], "wf_2"))
    await door.advance(dead("a"))
    await door.advance(redriven("a"))
    waiting = await door.step("b")
    assert (waiting["status"], waiting["due_at"]) == ("PENDING", None)
    await door.advance(completed("b"))
    await door.repeat(completed("b"))
    assert ((await door.statuses())["b"], (await door.workflow())["usage"]) == ("PENDING", USAGE)


async def test_usage_by_model_adds_up_over_attempts_and_steps(door: Door) -> None:
    twice = {name: 2 * count for name, count in USAGE.items()}
    await door.advance(requested([step("a"), step("b")]))
    await door.advance(failed("a", usage=USAGE, models={"pro": USAGE}))
    await door.advance(completed("a", attempt=2, usage=twice, models={"pro": USAGE, "flash": USAGE}))
    await door.advance(completed("b", models={"flash": USAGE}, children=children("b", 1), join="*"))
    await door.advance(completed("b/0", models={}))
    shown = await door.workflow()
    assert {one["id"]: one["models"] for one in shown["steps"]} == {
        "a": {"pro": twice, "flash": USAGE},
        "b": {"flash": USAGE},
        "b/0": {},
    }
    assert shown["models"] == {"pro": twice, "flash": twice}


async def test_a_result_that_wants_too_many_steps_is_paid_for(door: Door) -> None:
    await door.advance(requested([step("a")], max_steps=1))
    await door.advance(completed("a", models={"pro": USAGE}, children=children("a", 1), join="*"))
    shown = await door.workflow()
    assert (shown["error"]["type"], shown["usage"], shown["models"]) == ("BudgetExceeded", USAGE, {"pro": USAGE})
