"""Requests, plain results and what does not fit: what goes into `advance`, what comes out, what is kept."""

from typing import Any

import asyncpg
import pytest

from shared.state import Event

from .door import (
    LEASE,
    START,
    USAGE,
    Door,
    cancelled,
    completed,
    deferred,
    dispatches,
    expanded,
    failed,
    kinds,
    one,
    rendered,
    requested,
    skipped,
    step,
    tick,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN = [step("a"), step("b", "a"), step("c", "b")]
DIAMOND = [step("top"), step("left", "top"), step("right", "top"), step("bottom", "left", "right")]


# Requests


async def test_a_request_is_accepted_and_its_first_steps_are_dispatched(door: Door) -> None:
    commands = await door.advance(requested(DIAMOND, request_key="key", traceparent="trace"))
    accepted = {"type": "accepted", "cause": 0, "workflow": "wf_1", "name": "report", "created": True, "status": "RUNNING"}
    assert one(commands, "accepted") == accepted
    dispatch = one(commands, "dispatch")
    assert dispatch == {
        "type": "dispatch",
        "cause": 0,
        "workflow": "wf_1",
        "name": "report",
        "step": "top",
        "attempt": 1,
        "deferrals": 0,
        "resumed": 0,
        "agent": "worker",
        "spec": {"of": "top"},
        "timeout_seconds": 300,
        "deadline": (START + LEASE).isoformat(),
        "woken": None,
        "not_before": None,
        "traceparent": "trace",
        "remaining": dict.fromkeys(("tokens", "cost_microdollars", "max_tokens", "max_cost_microdollars", "steps")),
        "input": None,
        "upstream": {},
    }
    assert [entry["type"] for entry in await door.history()] == ["workflow.requested", "workflow.started", "step.dispatched"]


async def test_the_input_reaches_only_steps_that_use_it(door: Door) -> None:
    commands = await door.advance(requested([step("a", uses_input=True), step("b")]))
    assert {command["step"]: command["input"] for command in commands if command["type"] == "dispatch"} == {
        "a": {"brief": "text"},
        "b": None,
    }


async def test_a_repeated_request_is_the_same_workflow_and_returns_its_commands_again(door: Door) -> None:
    first = await door.advance(requested([step("a"), step("b")], request_key="key"))
    copy = requested([step("a"), step("b")], "wf_2", request_key="key")
    again = await door.repeat(copy)
    assert one(again, "accepted") == {**one(first, "accepted"), "created": False}
    assert [c for c in again if c["type"] == "dispatch"] == [c for c in first if c["type"] == "dispatch"]


async def test_a_repeated_request_returns_only_what_still_runs(door: Door) -> None:
    request = requested([step("a"), step("b"), step("c", "a")])
    await door.advance(request)
    await door.advance(completed("a"))
    assert dispatches(await door.repeat(request)) == [("b", 1)]


async def test_a_repeated_request_for_an_ended_workflow_tells_of_its_end(door: Door) -> None:
    request = requested([step("a")])
    await door.advance(request)
    await door.advance(cancelled())
    again = await door.repeat(request)
    assert kinds(again) == ["accepted", "finished"]
    assert one(again, "accepted")["status"] == "CANCELLED"


@pytest.mark.parametrize("workflow", ["wf_1", "wf_2"])
async def test_the_same_key_for_something_else_is_a_conflict(door: Door, workflow: str) -> None:
    await door.advance(requested([step("a")], request_key="key"))
    other = requested([step("b")], workflow, request_key="key", request_hash="other")
    commands = await door.repeat(other)
    assert commands == [{"type": "conflict", "cause": 0, "workflow": "wf_1", "status": "RUNNING"}]


async def test_two_requests_with_one_key_in_one_batch_are_one_workflow(door: Door) -> None:
    commands = await door.advance(requested(CHAIN, "wf_1", request_key="key"), requested(CHAIN, "wf_2", request_key="key"))
    assert [(c["workflow"], c["created"]) for c in commands if c["type"] == "accepted"] == [("wf_1", True), ("wf_1", False)]
    assert dispatches(commands) == [("a", 1)]


# Plain results


async def test_a_chain_runs_step_by_step_and_ends_with_its_rendered_output(door: Door) -> None:
    await door.advance(requested(CHAIN, callback_url="https://example.org/hook"))
    assert one(await door.advance(completed("a")), "dispatch")["upstream"] == {"a": {"by": "a"}}
    assert one(await door.advance(completed("b")), "dispatch")["upstream"] == {"b": {"by": "b"}}
    render = one(await door.advance(completed("c")), "render")
    assert render == {
        "type": "render",
        "cause": 0,
        "workflow": "wf_1",
        "output": "{{ the output }}",
        "input": None,
        "upstream": {"c": {"by": "c"}},
    }
    door.wait(2)
    finished = one(await door.advance(rendered()), "finished")
    assert finished == {
        "type": "finished",
        "cause": 0,
        "workflow": "wf_1",
        "name": "report",
        "status": "SUCCESS",
        "output": "the output",
        "error": None,
        "resumed": 0,
        "callback_url": "https://example.org/hook",
        "traceparent": None,
        "milliseconds": 2000,
        "usage": {key: 3 * value for key, value in USAGE.items()},
    }
    shown = await door.workflow()
    assert (shown["status"], shown["output"], shown["steps_open"]) == ("SUCCESS", "the output", 0)
    assert shown["usage"] == finished["usage"]


async def test_a_join_waits_for_all_that_it_needs(door: Door) -> None:
    await door.advance(requested(DIAMOND))
    assert dispatches(await door.advance(completed("top"))) == [("left", 1), ("right", 1)]
    assert await door.advance(completed("right")) == []
    bottom = one(await door.advance(completed("left")), "dispatch")
    assert bottom["upstream"] == {"left": {"by": "left"}, "right": {"by": "right"}}


async def test_a_join_whose_needs_end_in_one_batch_is_dispatched_once(door: Door) -> None:
    await door.advance(requested(DIAMOND))
    await door.advance(completed("top"))
    assert dispatches(await door.advance(completed("right"), completed("left"))) == [("bottom", 1)]


async def test_a_repeated_result_returns_the_dispatches_it_caused_until_they_end(door: Door) -> None:
    await door.advance(requested(DIAMOND))
    first = await door.advance(completed("top"))
    assert await door.repeat(completed("top")) == first
    await door.advance(completed("left"))
    assert dispatches(await door.repeat(completed("top"))) == [("right", 1)]
    await door.advance(completed("right"))
    assert dispatches(await door.repeat(completed("top"))) == []


async def test_a_repeated_last_result_returns_the_render_command_and_then_the_end(door: Door) -> None:
    await door.advance(requested([step("a")]))
    first = await door.advance(completed("a"))
    assert kinds(first) == ["render"]
    assert await door.repeat(completed("a")) == first
    end = await door.advance(rendered())
    assert await door.repeat(completed("a")) == end
    assert await door.repeat(rendered(output="another")) == end


async def test_of_two_results_in_one_batch_the_first_counts(door: Door) -> None:
    await door.advance(requested(CHAIN))
    commands = await door.advance(completed("a", output="first"), completed("a", output="second"))
    assert one(commands, "dispatch")["upstream"] == {"a": "first"}
    assert [entry["type"] for entry in await door.history()][3:] == ["step.completed", "step.dispatched"]


async def test_commands_name_the_event_that_caused_them(door: Door) -> None:
    await door.advance(requested(CHAIN, "wf_1"), requested(CHAIN, "wf_2"), requested([step("a")], "wf_3"))
    commands = await door.advance(
        completed("a", workflow="wf_2"), completed("a", workflow="wf_3"), tick(), completed("a", workflow="wf_1")
    )
    assert [(c["cause"], c["workflow"], c["type"]) for c in commands] == [
        (0, "wf_2", "dispatch"),
        (1, "wf_3", "render"),
        (3, "wf_1", "dispatch"),
    ]


async def test_an_output_that_cannot_be_rendered_fails_the_workflow(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(completed("a"))
    error = {"type": "InputError", "message": "there is no output.text"}
    event = {"type": "workflow.failed", "workflow": "wf_1", "error": error}
    finished = one(await door.advance(event), "finished")
    assert (finished["status"], finished["error"], finished["output"]) == ("FAILED", error, None)
    assert one(await door.repeat(event), "finished") == finished


async def test_an_output_is_not_taken_while_steps_are_open(door: Door) -> None:
    await door.advance(requested(CHAIN))
    assert await door.repeat(rendered()) == []


# What does not fit


@pytest.mark.parametrize(
    "event",
    [
        completed("a", workflow="wf_0"),
        completed("x"),
        completed("x", children=[], join=None),
        failed("x"),
        deferred("x", START),
        skipped("x"),
        expanded("x", []),
    ],
    ids=lambda event: f"{event['type']} {event['workflow']}",
)
async def test_an_event_about_an_unknown_step_is_ignored(door: Door, event: Event) -> None:
    await door.advance(requested(CHAIN))
    about: dict[str, Any] = {"type": "ignored", "cause": 0, "workflow": event["workflow"], "step": event["step"]}
    if event["workflow"] == "wf_1":
        about["status"] = "RUNNING"
    assert await door.repeat(event) == [about]


@pytest.mark.parametrize("event", [cancelled("wf_0"), rendered("wf_0")], ids=["cancelled", "rendered"])
async def test_an_event_about_an_unknown_workflow_is_ignored(door: Door, event: Event) -> None:
    ignored = {"type": "ignored", "cause": 0, "workflow": "wf_0", "step": None}
    assert await door.repeat(event) == [ignored]


@pytest.mark.parametrize("event", [{"type": "step.exploded", "workflow": "wf_1"}, {"workflow": "wf_1"}, {}, "text"])
async def test_an_event_of_an_unknown_type_is_refused_with_its_whole_batch(door: Door, event: Event) -> None:
    await door.advance(requested(CHAIN))
    before = await door.dump()
    with pytest.raises(asyncpg.InvalidParameterValueError, match="advance knows no event of type"):
        await door.advance(completed("a"), event)
    assert await door.dump() == before


async def test_no_events_are_no_commands(door: Door) -> None:
    assert await door.advance() == []
