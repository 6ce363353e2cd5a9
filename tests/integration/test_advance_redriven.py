"""Workflows that a dead letter had failed, and that go on when it is redriven."""

from typing import Any

import asyncpg
import orjson
import pytest

from shared.state import Event

from .door import (
    LEASE,
    Door,
    cancelled,
    children,
    completed,
    dead,
    deferred,
    dispatches,
    expanded,
    failed,
    kinds,
    one,
    redriven,
    rendered,
    requested,
    skipped,
    step,
    tick,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


def refusal(commands: list[Any]) -> str:
    return str(one(commands, "refused")["reason"])


async def test_a_redriven_step_gets_another_attempt_and_its_workflow_goes_on(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a"), step("c", "b")], deadline_seconds=1000.0))
    await door.advance(completed("a"))
    assert one(await door.advance(dead("b")), "finished")["status"] == "FAILED"
    door.wait(5000)

    commands = await door.advance(redriven("b"))
    assert kinds(commands) == ["dispatch", "redriven"]
    assert dispatches(commands) == [("b", 2)]
    assert one(commands, "dispatch")["upstream"] == {"a": {"by": "a"}}
    shown = await door.workflow()
    assert (shown["status"], shown["error"], shown["finished_at"], shown["steps_open"]) == ("RUNNING", None, None, 2)
    assert await door.statuses() == {"a": "SUCCESS", "b": "RUNNING", "c": "PENDING"}
    assert [entry["type"] for entry in (await door.history())[-4:]] == [
        *("step.redriven", "workflow.resumed", "workflow.started", "step.dispatched")
    ]

    assert dispatches(await door.advance(completed("b", attempt=2))) == [("c", 1)]
    assert kinds(await door.advance(completed("c"))) == ["render"]
    finished = one(await door.advance(rendered()), "finished")
    assert (finished["status"], finished["resumed"]) == ("SUCCESS", 1)
    assert (await door.workflow())["steps_open"] == 0


async def test_a_redrive_that_is_repeated_changes_nothing_and_gives_its_commands_again_until_the_attempt_has_ended(
    door: Door,
) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "a", "b")]))
    await door.advance(dead("a"))
    first = await door.advance(redriven("a"))
    assert dispatches(first) == [("a", 2), ("b", 2)]
    assert await door.repeat(redriven("a")) == first
    door.wait(1)
    await door.advance(completed("a", attempt=2))
    assert dispatches(await door.repeat(redriven("a"))) == [("b", 2)]
    await door.advance(completed("b", attempt=2))
    assert kinds(await door.repeat(redriven("a"))) == ["redriven"]


async def test_two_redrives_of_a_step_in_one_batch_resume_it_once(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(dead("a"))
    commands = await door.advance(redriven("a"), redriven("a"))
    assert kinds(commands) == ["dispatch", "redriven", "redriven"]
    assert (await door.workflow())["steps_open"] == 1


async def test_what_the_failure_cut_off_starts_again_under_its_next_attempt_with_all_its_retries(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", max_retries=1), step("c"), step("d", "b")]))
    await door.advance(failed("b"), deferred("c", door.moment + LEASE))
    await door.advance(dead("a"))
    assert dispatches(await door.advance(redriven("a"))) == [("a", 2), ("b", 3), ("c", 2)]
    assert one(await door.advance(failed("b", attempt=3)), "dispatch")["attempt"] == 4
    assert one(await door.advance(failed("b", attempt=4)), "finished")["status"] == "FAILED"


async def test_a_result_of_an_attempt_that_was_cut_off_counts(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "b")]))
    await door.advance(dead("a"))
    await door.advance(redriven("a"))
    assert dispatches(await door.advance(completed("b", attempt=1))) == [("c", 1)]
    assert dispatches(await door.repeat(completed("b", attempt=1))) == [("c", 1)]


async def test_a_child_is_redriven_and_its_parent_waits_for_it_again(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 2)))
    await door.advance(completed("a/1"))
    await door.advance(dead("a/0"))
    assert await door.statuses() == {"a": "CANCELLED", "a/0": "FAILED", "a/1": "SUCCESS", "b": "CANCELLED"}

    assert dispatches(await door.advance(redriven("a/0"))) == [("a/0", 2)]
    assert await door.statuses() == {"a": "WAITING", "a/0": "RUNNING", "a/1": "SUCCESS", "b": "PENDING"}
    commands = await door.advance(completed("a/0", attempt=2))
    assert one(commands, "dispatch")["upstream"] == {"a": [{"by": "a/0"}, {"by": "a/1"}]}
    assert (await door.workflow())["steps_open"] == 1


async def test_a_parent_whose_last_child_ended_with_the_failure_ends_when_its_workflow_is_resumed(door: Door) -> None:
    await door.advance(requested([step("a"), step("f"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 1)))
    await door.advance(skipped("a/0"), dead("f"))
    assert await door.statuses() == {"a": "CANCELLED", "a/0": "SKIPPED", "b": "CANCELLED", "f": "FAILED"}

    assert dispatches(await door.advance(redriven("f"))) == [("b", 1), ("f", 2)]
    assert await door.statuses() == {"a": "SUCCESS", "a/0": "SKIPPED", "b": "RUNNING", "f": "RUNNING"}
    assert (await door.workflow())["steps_open"] == 2


async def test_a_resumed_workflow_waits_for_a_slot_and_whoever_frees_it_starts_it(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a"), step("b", "a")], "wf_1"))
    await door.advance(completed("a"))
    await door.advance(requested([step("a")], "wf_2"))
    door.wait(1)
    assert dispatches(await door.advance(dead("b"))) == [("a", 1)]
    door.wait(1)
    assert kinds(await door.advance(redriven("b"))) == ["redriven"]
    assert (await door.workflow())["status"] == "QUEUED"
    assert kinds(await door.repeat(redriven("b"))) == ["redriven"]

    door.wait(1)
    event = cancelled("wf_2")
    assert dispatches(await door.advance(event)) == [("b", 2)]
    assert dispatches(await door.repeat(event)) == [("b", 2)]
    assert dispatches(await door.repeat(redriven("b"))) == [("b", 2)]


async def test_a_step_that_is_dead_again_can_be_redriven_again(door: Door) -> None:
    await door.advance(requested([step("a")]))
    for attempt in (1, 2, 3):
        await door.advance(dead("a", attempt=attempt))
        assert dispatches(await door.advance(redriven("a", attempt=attempt))) == [("a", attempt + 1)]
    assert await door.connection.fetchval("select resumed from workflows") == 3
    assert kinds(await door.repeat(dead("a", attempt=3))) == ["dispatch"]


async def test_a_lease_that_runs_out_after_a_redrive_is_told_as_ever(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(dead("a"))
    await door.advance(redriven("a"))
    door.wait(LEASE)
    assert dispatches(await door.advance(tick())) == [("a", 3)]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([cancelled()], "its workflow is CANCELLED"),
        ([], "its workflow is RUNNING"),
        ([failed("a", permanent=True)], "failed for another reason (ModelUnavailable in step a)"),
        ([failed("b", permanent=True)], "failed for another reason (ModelUnavailable in step b)"),
        ([failed("a"), dead("a", attempt=2)], "attempt 2 of its step came after it"),
        ([completed("a"), completed("b"), rendered()], "its workflow is SUCCESS"),
    ],
)
async def test_a_workflow_that_does_not_wait_for_the_letter_is_left_alone(door: Door, events: list[Event], reason: str) -> None:
    await door.advance(requested([step("a"), step("b")]))
    for event in events:
        await door.advance(event)
    commands = await door.repeat(redriven("a"))
    assert reason in refusal(commands)
    assert kinds(commands) == ["refused"]


async def test_a_step_that_its_workflow_could_do_without_is_not_resumed(door: Door) -> None:
    await door.advance(requested([step("a", on_failure="continue"), step("b")]))
    await door.advance(dead("a"))
    assert "its workflow is RUNNING" in refusal(await door.repeat(redriven("a")))


@pytest.mark.parametrize("event", [redriven("z"), redriven("a", workflow="wf_0")])
async def test_a_step_that_is_not_there_is_refused(door: Door, event: Event) -> None:
    await door.advance(requested([step("a")]))
    assert "not there any more" in refusal(await door.repeat(event))


async def test_a_snapshot_shows_the_failure_and_what_came_after_it(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "b")]))
    await door.advance(dead("a"))
    await door.advance(redriven("a"))
    await door.advance(completed("a", attempt=2))

    async def snapshot(kind: str, nth: int = 0) -> tuple[str, dict[str, str]]:
        seq = [entry["seq"] for entry in await door.history() if entry["type"] == kind][nth]
        shown = orjson.loads(await door.connection.fetchval("select workflow_snapshot('wf_1', $1)", seq))
        return shown["status"], {step["id"]: step["status"] for step in shown["steps"]}

    assert await snapshot("workflow.failed") == ("FAILED", {"a": "FAILED", "b": "CANCELLED", "c": "CANCELLED"})
    assert await snapshot("workflow.resumed") == ("QUEUED", {"a": "PENDING", "b": "PENDING", "c": "PENDING"})
    assert await snapshot("step.dispatched", -1) == ("RUNNING", {"a": "RUNNING", "b": "RUNNING", "c": "PENDING"})
    assert await snapshot("step.completed") == ("RUNNING", {"a": "SUCCESS", "b": "RUNNING", "c": "PENDING"})


async def test_a_redrive_without_its_attempt_is_refused(door: Door) -> None:
    await door.advance(requested([step("a")]))
    with pytest.raises(asyncpg.PostgresError):
        await door.advance({"type": "step.redriven", "workflow": "wf_1", "step": "a", "attempt": "one"})
