"""Steps that are skipped, and steps that become many."""

import pytest

from .door import (
    USAGE,
    Door,
    children,
    completed,
    dispatches,
    expanded,
    failed,
    kinds,
    one,
    requested,
    skipped,
    step,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAIN = [step("a"), step("b", "a"), step("c", "b")]


async def test_a_skipped_step_ends_without_output_and_lets_the_next_start(door: Door) -> None:
    await door.advance(requested(CHAIN))
    first = await door.advance(skipped("a"))
    assert one(first, "dispatch")["upstream"] == {"a": None}
    assert await door.repeat(skipped("a")) == first
    assert (await door.statuses())["a"] == "SKIPPED"
    assert (await door.workflow())["steps_open"] == 2


async def test_a_repeated_event_looks_through_steps_that_were_skipped(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a"), step("c", "b"), step("d", "c")]))
    await door.advance(completed("a"))
    await door.advance(skipped("b"))
    first = await door.advance(skipped("c"))
    assert dispatches(first) == [("d", 1)]
    assert await door.repeat(completed("a")) == first


async def test_a_repeated_request_looks_through_steps_that_were_skipped(door: Door) -> None:
    request = requested(CHAIN)
    await door.advance(request)
    await door.advance(skipped("a"))
    assert dispatches(await door.repeat(request)) == [("b", 1)]


async def test_a_repeated_event_looks_through_steps_that_were_expanded(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(completed("a"))
    first = await door.advance(expanded("b", children("b", 2)))
    assert dispatches(first) == [("b/0", 1), ("b/1", 1)]
    assert dispatches(await door.repeat(completed("a"))) == dispatches(first)
    assert dispatches(await door.repeat(expanded("b", children("b", 2)))) == dispatches(first)


async def test_a_repeated_event_looks_through_steps_that_became_nothing(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(completed("a"))
    first = await door.advance(expanded("b", []))
    assert one(first, "dispatch")["upstream"] == {"b": []}
    assert await door.repeat(completed("a")) == first


async def test_a_repeated_event_looks_through_steps_whose_template_failed(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a", on_failure="continue"), step("c", "b")]))
    await door.advance(completed("a"))
    first = await door.advance(failed("b", permanent=True))
    assert dispatches(first) == [("c", 1)]
    assert await door.repeat(completed("a")) == first


async def test_a_repeated_result_of_a_child_does_not_return_its_siblings(door: Door) -> None:
    await door.advance(requested(CHAIN))
    await door.advance(expanded("a", children("a", 3)))
    await door.advance(completed("a/0"))
    assert await door.repeat(completed("a/0")) == []


async def test_children_are_joined_into_the_list_of_their_outputs(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    dispatched = await door.advance(expanded("a", children("a", 3)))
    assert [command["spec"] for command in dispatched] == [{"item": 0}, {"item": 1}, {"item": 2}]
    assert (await door.workflow())["steps_total"] == 5
    assert await door.advance(completed("a/2", output=2), completed("a/0", output=0)) == []
    last = completed("a/1", output=1)
    first = await door.advance(last)
    assert one(first, "dispatch")["upstream"] == {"a": [0, 1, 2]}
    assert await door.repeat(last) == first


async def test_children_are_joined_into_the_output_of_one(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 2), join="a/1"))
    commands = await door.advance(completed("a/0", output="no"), completed("a/1", output="yes"))
    assert one(commands, "dispatch")["upstream"] == {"a": "yes"}


async def test_children_that_were_skipped_or_failed_are_null_in_the_list(door: Door) -> None:
    await door.advance(requested([step("a", on_failure="continue"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 3)))
    await door.advance(skipped("a/0"), failed("a/1", permanent=True))
    assert one(await door.advance(completed("a/2", output=2)), "dispatch")["upstream"] == {"a": [None, None, 2]}


async def test_a_step_that_becomes_no_steps_ends_at_once(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    assert one(await door.advance(expanded("a", [])), "dispatch")["upstream"] == {"a": []}
    assert await door.statuses() == {"a": "SUCCESS", "b": "RUNNING"}


async def test_children_run_in_the_order_of_their_needs_and_may_need_what_has_ended(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(completed("a", output="from a"))
    family = [step("b/first", "a"), step("b/second", "b/first", "a")]
    first = one(await door.advance(expanded("b", family, join="b/second")), "dispatch")
    assert (first["step"], first["upstream"]) == ("b/first", {"a": "from a"})
    second = one(await door.advance(completed("b/first", output=1)), "dispatch")
    assert (second["step"], second["upstream"]) == ("b/second", {"b/first": 1, "a": "from a"})
    assert kinds(await door.advance(completed("b/second"))) == ["render"]


async def test_children_inherit_limits_from_their_parent(door: Door) -> None:
    await door.advance(requested([step("a", max_retries=1, timeout_seconds=7.0, on_failure="continue")]))
    own = {"max_retries": 0, "timeout_seconds": 9.0, "on_failure": "fail"}
    await door.advance(expanded("a", [*children("a", 1), step("a/own", **own)]))
    inherited, given = await door.step("a/0"), await door.step("a/own")
    assert {key: inherited[key] for key in own} == {"max_retries": 1, "timeout_seconds": 7, "on_failure": "continue"}
    assert {key: given[key] for key in own} == own


async def test_a_spawning_result_keeps_its_own_output_and_waits_for_its_children(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    spawn = completed("a", output="mine", children=children("a", 2), join=None)
    first = await door.advance(spawn)
    assert dispatches(first) == [("a/0", 1), ("a/1", 1)]
    assert await door.repeat(spawn) == first
    assert (await door.statuses())["a"] == "WAITING"
    commands = await door.advance(completed("a/0"), completed("a/1"))
    assert one(commands, "dispatch")["upstream"] == {"a": "mine"}
    assert (await door.workflow())["usage"] == {key: 3 * value for key, value in USAGE.items()}


async def test_a_spawning_result_after_a_failure_clears_the_error(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(failed("a"))
    await door.advance(completed("a", attempt=2, children=[], join=None))
    row = await door.step("a")
    assert (row["status"], row["error"]) == ("SUCCESS", None)


async def test_groups_within_groups_end_from_the_inside_out(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 2)))
    await door.advance(expanded("a/0", children("a/0", 2)))
    await door.advance(completed("a/0/0", output=1, children=children("a/0/0", 1), join="*"))
    assert await door.advance(completed("a/1", output=4), completed("a/0/1", output=3)) == []
    last = completed("a/0/0/0", output=2)
    first = await door.advance(last)
    assert one(first, "dispatch")["upstream"] == {"a": [[[2], 3], 4]}
    assert await door.repeat(last) == first


async def test_a_failed_child_fails_the_workflow(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 2)))
    assert one(await door.advance(failed("a/0", permanent=True)), "finished")["error"]["step"] == "a/0"
    assert await door.statuses() == {"a": "CANCELLED", "b": "CANCELLED", "a/0": "FAILED", "a/1": "CANCELLED"}
