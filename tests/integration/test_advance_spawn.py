"""What an agent may spawn: which agents, how many steps, how deep; kept by `advance`, and only shrinking on the way down."""

from typing import Any

import pytest

from .door import USAGE, Door, completed, dispatches, one, requested, step

pytestmark = pytest.mark.asyncio(loop_scope="module")


def limited(**limits: Any) -> dict[str, Any]:
    return step("a", spec={"input": None, "spawn": limits})


def spawn(parent: str, *names: str, agent: str = "worker", join: str | None = "*") -> dict[str, Any]:
    children = [{"id": f"{parent}/{name}", "agent": agent, "needs": [], "spec": {"input": None}} for name in names]
    return completed(parent, children=children, join=join)


async def refusal(door: Door, event: dict[str, Any]) -> str:
    """Why the spawn was refused: for good, with its usage kept, once and for every repetition."""
    finished = one(await door.advance(event), "finished")
    assert await door.repeat(event) == [finished]
    assert (finished["status"], finished["error"]["type"], finished["error"]["step"]) == ("FAILED", "InputError", event["step"])
    row = await door.step(event["step"])
    assert (row["status"], row["attempt"], row["children"]) == ("FAILED", 1, None)
    assert {key: row[key] for key in USAGE} == USAGE
    return str(finished["error"]["message"])


async def test_a_spawn_within_its_limits_is_carried_out(door: Door) -> None:
    await door.advance(requested([limited(agents=["worker"], max_steps=2, max_depth=1)]))
    event = spawn("a", "x", "y")
    first = await door.advance(event)
    assert dispatches(first) == [("a/x", 1), ("a/y", 1)]
    assert await door.repeat(event) == first


async def test_an_agent_that_may_not_be_spawned_fails_the_step_for_good(door: Door) -> None:
    await door.advance(requested([limited(agents=["writer", "critic"])]))
    message = await refusal(door, spawn("a", "x"))
    assert message == "it spawns a step for worker, which it may not use; it may use: writer, critic"


async def test_a_list_of_no_agents_allows_none(door: Door) -> None:
    await door.advance(requested([limited(agents=[])]))
    assert await refusal(door, spawn("a", "x")) == "it spawns a step for worker, which it may not use; it may use: no agent"


async def test_more_steps_than_may_be_spawned_fail_the_step_for_good(door: Door) -> None:
    await door.advance(requested([limited(max_steps=1)]))
    message = await refusal(door, spawn("a", "x", "y"))
    assert message == "it spawns 2 steps and may spawn 1; spawn fewer or raise max_steps of spawn"


async def test_steps_too_deep_may_spawn_none(door: Door) -> None:
    await door.advance(requested([limited(max_depth=1)]))
    await door.advance(spawn("a", "x"))
    message = await refusal(door, spawn("a/x", "y"))
    assert (
        message == "it spawns 1 steps, and steps so deep may spawn none; let them be spawned further up or raise max_depth of spawn"
    )


async def test_a_spawn_of_nothing_breaks_no_limit(door: Door) -> None:
    await door.advance(requested([limited(agents=[], max_steps=0, max_depth=0)]))
    assert one(await door.advance(spawn("a")), "render")["upstream"] == {"a": []}


async def test_without_a_word_in_the_definition_five_levels_may_be_spawned(door: Door) -> None:
    await door.advance(requested([step("a")]))
    parent = "a"
    for _ in range(5):
        assert dispatches(await door.advance(spawn(parent, "x"))) == [(f"{parent}/x", 1)]
        parent += "/x"
    assert "steps so deep may spawn none" in await refusal(door, spawn(parent, "x"))


async def test_spawned_steps_inherit_what_is_left_in_equal_shares(door: Door) -> None:
    await door.advance(requested([limited(agents=["worker"], max_steps=8, max_depth=3)]))
    commands = await door.advance(spawn("a", "x", "y"))
    inherited = {"agents": ["worker"], "max_steps": 3, "max_depth": 2}
    assert [command["spec"]["spawn"] for command in commands] == [inherited, inherited]
    assert [command["remaining"]["steps"] for command in commands] == [3, 3]
    # All that both may add, and they themselves, are eight steps.
    (below,) = await door.advance(spawn("a/x", "z"))
    assert below["spec"]["spawn"] == {"agents": ["worker"], "max_steps": 2, "max_depth": 1}
    assert (
        await refusal(door, spawn("a/y", *"0123")) == "it spawns 4 steps and may spawn 3; spawn fewer or raise max_steps of spawn"
    )


async def test_a_spawned_step_cannot_widen_its_limits(door: Door) -> None:
    await door.advance(requested([limited(agents=["worker"], max_steps=2, max_depth=2)]))
    event = spawn("a", "x")
    event["children"][0]["spec"]["spawn"] = {"max_steps": 1000, "max_depth": 5}
    (command,) = await door.advance(event)
    assert command["spec"]["spawn"] == {"agents": ["worker"], "max_steps": 1, "max_depth": 1}


async def test_what_a_definition_expands_to_is_no_spawn(door: Door) -> None:
    await door.advance(requested([limited(agents=[], max_steps=0, max_depth=0)]))
    event = {"type": "step.expanded", "workflow": "wf_1", "step": "a", "attempt": 1, "children": [step("a/0")], "join": "*"}
    (command,) = await door.advance(event)
    assert command["spec"] == {"of": "a/0"}


async def test_what_remains_says_how_many_steps_may_be_added(door: Door) -> None:
    commands = await door.advance(requested([limited(max_steps=3), step("b")], max_steps=7))
    assert [command["remaining"]["steps"] for command in commands if command["type"] == "dispatch"] == [3, 5]
    commands = await door.advance(spawn("b", *"wxyz"))
    assert {command["remaining"]["steps"] for command in commands} == {1}


async def test_the_workflow_s_own_limit_holds_for_a_spawn_within_its_limits(door: Door) -> None:
    await door.advance(requested([limited(max_steps=5)], max_steps=2))
    finished = one(await door.advance(spawn("a", "x", "y")), "finished")
    assert finished["error"] == {"type": "BudgetExceeded", "message": "2 more steps would pass max_steps", "step": "a"}


async def test_a_refused_spawn_that_may_fail_lets_the_workflow_go_on(door: Door) -> None:
    may_fail = {**limited(max_steps=0), "on_failure": "continue"}
    await door.advance(requested([may_fail, step("b", "a")]))
    event = spawn("a", "x")
    first = await door.advance(event)
    assert dispatches(first) == [("b", 1)]
    assert await door.repeat(event) == first
