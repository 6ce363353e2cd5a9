"""Failures, deferrals, late results and the passing of time."""

from datetime import datetime, timedelta

import pytest

from .door import (
    LEASE,
    USAGE,
    Door,
    cancelled,
    completed,
    deferred,
    dispatches,
    failed,
    kinds,
    one,
    requested,
    step,
    tick,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN = [step("a"), step("b", "a"), step("c", "b")]


# Failures


async def test_a_failed_step_is_retried_after_1_2_and_4_seconds_and_then_fails_its_workflow(door: Door) -> None:
    await door.advance(requested(CHAIN))
    for attempt, seconds in ((1, 1), (2, 2), (3, 4)):
        event = failed("a", attempt=attempt, usage=USAGE)
        dispatch = one(await door.advance(event), "dispatch")
        assert dispatch["attempt"] == attempt + 1
        assert datetime.fromisoformat(dispatch["not_before"]) == door.moment + timedelta(seconds=seconds)
        assert datetime.fromisoformat(dispatch["deadline"]) == door.moment + timedelta(seconds=seconds) + LEASE
        assert await door.repeat(event) == [dispatch]
        door.wait(seconds)

    last = failed("a", attempt=4, usage=USAGE)
    finished = one(await door.advance(last), "finished")
    assert finished["status"] == "FAILED"
    assert finished["error"] == {"type": "ModelUnavailable", "message": "no answer", "step": "a"}
    assert finished["usage"] == {key: 4 * value for key, value in USAGE.items()}
    assert await door.statuses() == {"a": "FAILED", "b": "CANCELLED", "c": "CANCELLED"}
    assert await door.repeat(last) == [finished]


async def test_a_retry_that_is_due_when_its_event_is_repeated_starts_at_once(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(failed("a"))
    door.wait(1)
    assert one(await door.advance(failed("a")), "dispatch")["not_before"] is None


async def test_a_result_after_a_failure_clears_the_error(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(failed("a"))
    await door.advance(completed("a", attempt=2))
    row = await door.step("a")
    assert (row["status"], row["attempt"], row["error"]) == ("SUCCESS", 2, None)


async def test_a_permanent_failure_is_not_retried(door: Door) -> None:
    await door.advance(requested(CHAIN))
    assert one(await door.advance(failed("a", permanent=True)), "finished")["status"] == "FAILED"
    assert (await door.step("a"))["attempt"] == 1


async def test_a_step_without_retries_fails_at_its_first_failure(door: Door) -> None:
    await door.advance(requested([step("a", max_retries=0)]))
    assert kinds(await door.advance(failed("a"))) == ["finished"]


async def test_the_backoff_stays_bounded_however_often_a_step_failed(door: Door) -> None:
    await door.advance(requested([step("a", max_retries=5000)]))
    await door.connection.execute("update steps set attempt = 4000")
    assert await door.advance(failed("a", attempt=4000)) == []
    assert (await door.step("a"))["due_at"] == door.moment + timedelta(seconds=300)


async def test_a_wait_longer_than_ten_seconds_belongs_to_the_tick(door: Door) -> None:
    await door.advance(requested(CHAIN))
    event = failed("a", retry_after_seconds=30)
    assert await door.advance(event) == []
    assert (await door.statuses())["a"] == "WAITING"
    assert await door.repeat(event) == []

    door.wait(29)
    assert await door.repeat(tick()) == []
    door.wait(1)
    dispatch = one(await door.advance(tick()), "dispatch")
    assert (dispatch["attempt"], dispatch["not_before"]) == (2, None)
    assert datetime.fromisoformat(dispatch["deadline"]) == door.moment + LEASE
    assert await door.repeat(tick()) == []


async def test_a_wait_of_ten_seconds_is_left_to_the_publisher(door: Door) -> None:
    await door.advance(requested(CHAIN))
    dispatch = one(await door.advance(failed("a", retry_after_seconds=10)), "dispatch")
    assert datetime.fromisoformat(dispatch["not_before"]) == door.moment + timedelta(seconds=10)


async def test_a_result_of_an_earlier_attempt_counts_while_the_next_one_waits(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(failed("a", retry_after_seconds=30))
    assert dispatches(await door.advance(completed("a", attempt=1))) == [("b", 1)]
    door.wait(30)
    assert await door.advance(tick()) == []


async def test_a_failure_of_an_earlier_attempt_changes_nothing(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(failed("a"))
    await door.advance(failed("a", attempt=2))
    assert dispatches(await door.repeat(failed("a", attempt=1, permanent=True))) == [("a", 3)]


async def test_on_failure_continue_goes_on_with_null(door: Door) -> None:
    await door.advance(requested([step("a", on_failure="continue"), step("b", "a")]))
    event = failed("a", permanent=True)
    dispatch = one(await door.advance(event), "dispatch")
    assert (dispatch["step"], dispatch["upstream"]) == ("b", {"a": None})
    assert await door.repeat(event) == [dispatch]
    assert kinds(await door.advance(completed("b"))) == ["render"]
    assert await door.statuses() == {"a": "FAILED", "b": "SUCCESS"}


async def test_a_failure_stops_the_branches_that_still_run(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c", "a", "b")]))
    await door.advance(failed("a", permanent=True))
    assert await door.statuses() == {"a": "FAILED", "b": "CANCELLED", "c": "CANCELLED"}
    assert (await door.workflow())["steps_open"] == 0


# Deferrals


async def test_a_deferral_burns_no_attempt_and_waits_for_the_tick(door: Door) -> None:
    await door.advance(requested(CHAIN))
    event = deferred("a", door.moment + timedelta(minutes=5))
    assert await door.advance(event) == []
    row = await door.step("a")
    assert (row["status"], row["attempt"], row["deferrals"]) == ("WAITING", 1, 1)
    assert await door.repeat(event) == []

    door.wait(timedelta(minutes=5))
    dispatch = one(await door.advance(tick()), "dispatch")
    assert (dispatch["attempt"], dispatch["deferrals"]) == (1, 1)
    assert dispatches(await door.repeat(event)) == [("a", 1)]
    assert await door.advance(deferred("a", door.moment + timedelta(minutes=1), deferrals=1)) == []
    assert (await door.step("a"))["deferrals"] == 2


async def test_a_short_deferral_is_left_to_the_publisher(door: Door) -> None:
    await door.advance(requested(CHAIN))
    event = deferred("a", door.moment + timedelta(seconds=3))
    dispatch = one(await door.advance(event), "dispatch")
    assert (dispatch["attempt"], dispatch["deferrals"]) == (1, 1)
    assert datetime.fromisoformat(dispatch["not_before"]) == door.moment + timedelta(seconds=3)
    assert await door.repeat(event) == [dispatch]


async def test_a_deferral_to_the_past_starts_again_at_once(door: Door) -> None:
    await door.advance(requested(CHAIN))
    dispatch = one(await door.advance(deferred("a", door.moment - timedelta(hours=1))), "dispatch")
    assert (dispatch["deferrals"], dispatch["not_before"]) == (1, None)


async def test_a_failure_of_a_dispatch_that_was_deferred_changes_nothing(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(deferred("a", door.moment + timedelta(minutes=5)))
    assert await door.repeat(failed("a", permanent=True)) == []
    door.wait(timedelta(minutes=5))
    await door.advance(tick())
    assert dispatches(await door.repeat(failed("a", permanent=True, deferrals=0))) == [("a", 1)]


async def test_a_retry_starts_counting_deferrals_anew(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(deferred("a", door.moment))
    dispatch = one(await door.advance(failed("a")), "dispatch")
    assert (dispatch["attempt"], dispatch["deferrals"]) == (2, 0)


# Late results


async def test_a_second_result_of_another_attempt_is_noted_once(door: Door) -> None:
    await door.advance(requested(CHAIN))
    door.wait(LEASE)
    await door.advance(tick())
    await door.advance(completed("a", attempt=2, output="counts"))
    first = await door.advance(completed("a", attempt=1, output="late"))
    assert dispatches(first) == [("b", 1)]
    assert await door.repeat(completed("a", attempt=1)) == first
    assert [(entry["step"], entry["attempt"]) for entry in await door.history() if entry["type"] == "step.late"] == [("a", 1)]
    assert (await door.workflow())["usage"] == {key: 2 * value for key, value in USAGE.items()}
    assert (await door.step("a"))["input_tokens"] == 2 * USAGE["input_tokens"]


async def test_a_result_after_the_end_of_its_workflow_is_noted_with_what_it_cost(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(cancelled())
    assert kinds(await door.advance(completed("a"))) == ["finished"]
    assert (await door.history())[-1]["type"] == "step.late"
    assert (await door.workflow())["usage"] == USAGE
    assert await door.statuses() == {"a": "CANCELLED", "b": "CANCELLED", "c": "CANCELLED"}
    await door.repeat(completed("a"))


async def test_a_result_for_a_step_that_never_started_changes_nothing(door: Door) -> None:
    await door.advance(requested(CHAIN))
    assert await door.repeat(completed("b")) == []


# Time


async def test_a_lease_that_ran_out_starts_the_next_attempt(door: Door) -> None:
    await door.advance(requested([step("a", timeout_seconds=60.0)]))
    door.wait(659)
    assert await door.repeat(tick()) == []
    door.wait(1)
    dispatch = one(await door.advance(tick()), "dispatch")
    assert (dispatch["attempt"], dispatch["not_before"]) == (2, None)
    assert [entry["type"] for entry in await door.history()][-2:] == ["step.lease_expired", "step.dispatched"]
    assert await door.repeat(tick()) == []


async def test_a_lease_that_ran_out_on_the_last_attempt_fails_the_step(door: Door) -> None:
    await door.advance(requested([step("a", max_retries=1)]))
    door.wait(LEASE)
    await door.advance(tick())
    door.wait(LEASE)
    finished = one(await door.advance(tick()), "finished")
    assert finished["error"] == {"type": "LeaseExpired", "message": "no result after 2 attempts", "step": "a"}
    await door.advance(completed("a", attempt=2))
    assert (await door.history())[-1]["type"] == "step.late"
    await door.repeat(completed("a", attempt=2))


async def test_a_step_that_may_fail_lets_the_next_start_when_its_last_lease_ran_out(door: Door) -> None:
    await door.advance(requested([step("a", max_retries=0, on_failure="continue"), step("b", "a")]))
    door.wait(LEASE)
    assert dispatches(await door.advance(tick())) == [("b", 1)]
    door.wait(LEASE)
    assert dispatches(await door.advance(tick())) == [("b", 2)]


async def test_a_tick_looks_at_no_more_workflows_than_it_may(door: Door) -> None:
    await door.advance(requested([step("a")], "wf_1"), requested([step("a")], "wf_2"))
    door.wait(LEASE)
    assert one(await door.advance(tick(limit=1)), "dispatch")["workflow"] == "wf_1"
    assert one(await door.advance(tick(limit=1)), "dispatch")["workflow"] == "wf_2"


async def test_a_tick_tells_how_many_leases_ran_out_and_nothing_where_none_did(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", max_retries=0)], "wf_1"))
    assert await door.advance(tick()) == []
    door.wait(LEASE)
    assert one(await door.advance(tick()), "expired") == {"type": "expired", "cause": 0, "attempts": 2}
    await door.advance(requested([step("a")], "wf_2"))
    assert "expired" not in kinds(await door.advance(tick(recover=True)))


async def test_a_passed_deadline_fails_the_workflow(door: Door) -> None:
    dispatch = one(await door.advance(requested(CHAIN, deadline_seconds=60)), "dispatch")
    assert datetime.fromisoformat(dispatch["deadline"]) == door.moment + timedelta(seconds=60)
    door.wait(59)
    assert await door.repeat(tick()) == []
    door.wait(1)
    finished = one(await door.advance(tick()), "finished")
    assert finished["error"] == {"type": "BudgetExceeded", "message": "the workflow passed its deadline_seconds"}
    assert await door.statuses() == {"a": "CANCELLED", "b": "CANCELLED", "c": "CANCELLED"}


async def test_the_deadline_counts_from_the_start_and_not_from_the_request(door: Door) -> None:
    door.max_running = 1
    await door.advance(requested([step("a")], "wf_1"), requested([step("a")], "wf_2", deadline_seconds=60))
    door.wait(600)
    await door.advance(tick())
    dispatch = one(await door.advance(cancelled("wf_1")), "dispatch")
    assert datetime.fromisoformat(dispatch["deadline"]) == door.moment + timedelta(seconds=60)


async def test_a_recovering_tick_dispatches_the_same_attempts_again(door: Door) -> None:
    await door.advance(requested([step("a"), step("b"), step("c"), step("d")]))
    await door.advance(failed("a"), failed("b", retry_after_seconds=3600), completed("d"))
    for delay in (5, LEASE):  # a lease that ran out while nothing was there to work is nobody's failure
        door.wait(delay)
        commands = await door.advance(tick(recover=True))
        assert dispatches(commands) == [("a", 2), ("c", 1)]
        assert {command["not_before"] for command in commands} == {None}
    assert (await door.step("c"))["due_at"] == door.moment + LEASE
    assert (await door.statuses())["b"] == "WAITING"


@pytest.mark.parametrize("recover", [False, True])
async def test_a_tick_returns_the_render_command_of_workflows_without_open_steps(door: Door, recover: bool) -> None:
    await door.advance(requested([step("a")]))
    first = await door.advance(completed("a"))
    # Whoever got the command first may just be about it; with recover there is nobody else.
    assert await door.advance(tick(recover=recover)) == (first if recover else [])
    door.wait(10)
    assert await door.advance(tick(recover=recover)) == first
    assert await door.repeat(tick(recover=recover)) == first


async def test_an_ended_workflow_is_no_longer_looked_at(door: Door) -> None:
    await door.advance(requested([step("a")], deadline_seconds=5))
    await door.advance(cancelled())
    door.wait(LEASE)
    assert await door.repeat(tick(recover=True)) == []
