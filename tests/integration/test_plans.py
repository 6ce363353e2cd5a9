"""A plan on the real state: asked for, judged, returned once, carried out; and no stage is done twice."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DefinitionError
from shared.messages import Budget, StepDispatched
from shared.runtime.dispatcher import Dispatcher
from shared.runtime.travel import Fork, fork, rerun
from shared.state import Event
from tests.support.doubles import WORKFLOW, Stage
from tests.support.live import Live, completed, definition, failed, live, start

INJECTION = "{{ input.goal }}"
PLAN = definition(
    """
    - id: work
      pattern: plan
      with: {goal: "{{ input.goal }}", agents: [researcher, writer, coordinator], max_steps: 4, max_depth: 2}
    """,
    input="{goal: {type: string, required: true}}",
    output="{{ steps.work.output }}",
)


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


def dispatcher(team: Live) -> Dispatcher:
    return Dispatcher(team.store, team.bus, Stage(clock=team.clock).sender("orchestrator"), team.clock, team.runtime.cancellations)


async def tell(team: Live, *events: Event) -> None:
    """Each event comes three times: what it led to was lost once, and published twice. Nobody is asked for anything new by that."""
    await team.store.advance(events)
    for _ in range(2):
        await dispatcher(team).apply(events)


def asked(team: Live) -> dict[str, StepDispatched]:
    """Each piece of work that was sent, by its step; all copies of it are one message."""
    sent = [one for one in team.opened() if isinstance(one, StepDispatched)]
    assert {(one.attempt, one.deferrals) for one in sent} <= {(1, 0)}
    assert all(one == next(other for other in sent if other.step == one.step) for one in sent)
    return {one.step: one for one in sent}


def step(name: str, *needs: str, agent: str = "researcher", **input: Any) -> dict[str, Any]:
    return {"id": name, "agent": agent, "input": input, "needs": list(needs)}


def plan(*steps: dict[str, Any], result: str | None = None) -> dict[str, Any]:
    return {"steps": list(steps), "result": result}


async def begin(team: Live, **options: Any) -> None:
    await tell(team, start(PLAN, input={"goal": INJECTION}, **options))


async def error(team: Live) -> str:
    """Why the workflow failed."""
    shown = await team.store.get(team.finished()[0].workflow)
    assert shown["status"] == "FAILED"
    return str(shown["error"]["message"])


async def test_a_plan_is_asked_for_and_carried_out(team: Live) -> None:
    await begin(team)
    order = asked(team)["work/plan"]
    assert (order.agent, order.input["goal"], order.input["max_steps"]) == ("coordinator", INJECTION, 4)
    await tell(
        team, completed("work/plan", output=plan(step("a", question=INJECTION), step("b"), step("c", "a", "b", agent="writer")))
    )
    assert set(asked(team)) == {"work/plan", "work/do/a", "work/do/b"}
    assert asked(team)["work/do/a"].input == {"question": INJECTION}
    await tell(team, completed("work/do/a", output=1))
    await tell(team, completed("work/do/b", output=2))
    last = asked(team)["work/do/c"]
    assert (last.agent, last.upstream) == ("writer", {"a": 1, "b": 2})
    await tell(team, completed("work/do/c", output="the outcome"))
    assert {(ended.status, ended.output) for ended in team.finished()} == {("SUCCESS", "the outcome")}
    assert len(asked(team)) == 4


async def test_the_outputs_of_several_last_steps_are_the_outcome_by_their_ids(team: Live) -> None:
    await begin(team)
    await tell(team, completed("work/plan", output=plan(step("a"), step("b"))))
    await tell(team, completed("work/do/b", output=2))
    await tell(team, completed("work/do/a", output=1))
    assert {ended.status for ended in team.finished()} == {"SUCCESS"}
    assert team.finished()[0].output == {"a": 1, "b": 2}


async def test_an_invalid_plan_is_returned_once_with_its_errors_and_mended(team: Live) -> None:
    await begin(team)
    invalid = plan(step("a", agent="resercher"), step("b", agent="judge"))
    await tell(team, completed("work/plan", output=invalid))
    order = asked(team)["work/do/plan"]
    assert (order.agent, order.input["plan"]) == ("coordinator", invalid)
    assert order.input["errors"] == [
        "step 1 is for 'resercher', which is no agent that this plan may use, did you mean 'researcher'?",
        "step 2 is for 'judge', which is no agent that this plan may use, agents here: coordinator, researcher, writer",
    ]
    await tell(team, completed("work/do/plan", output=plan(step("a"))))
    await tell(team, completed("work/do/do/a", output="mended"))
    assert {(ended.status, ended.output) for ended in team.finished()} == {("SUCCESS", "mended")}
    assert set(asked(team)) == {"work/plan", "work/do/plan", "work/do/do/a"}


async def test_a_plan_that_is_invalid_twice_fails_the_step_with_the_errors(team: Live) -> None:
    await begin(team)
    await tell(team, completed("work/plan", output="no plan"))
    await tell(team, completed("work/do/plan", output=plan(*(step(f"s{n}") for n in range(5)))))
    assert set(asked(team)) == {"work/plan", "work/do/plan"}
    expected = "the plan is still invalid after it was returned: the plan has 5 steps, and at most 4 are allowed; plan fewer"
    assert await error(team) == expected
    shown = await team.store.get(team.finished()[0].workflow)
    assert shown["usage"]["model_calls"] == 2
    assert {one["id"]: one["status"] for one in shown["steps"]}["work/do/do"] == "FAILED"


async def test_a_deeper_plan_has_what_is_left_and_knows_what_came_before(team: Live) -> None:
    await begin(team)
    await tell(
        team, completed("work/plan", output=plan(step("a"), step("deep", "a", agent="coordinator", goal=INJECTION), result="deep"))
    )
    await tell(team, completed("work/do/a", output="found"))
    order = asked(team)["work/do/deep/plan"]
    assert order.input == {
        "goal": INJECTION,
        "material": {"material": None, "results": {"a": "found"}},
        "agents": ["researcher", "writer"],
        "max_steps": 2,
    }
    # Two steps are left, and no level: one too many, and one too deep.
    await tell(team, completed("work/do/deep/plan", output=plan(step("x"), step("y"), step("z"))))
    assert asked(team)["work/do/deep/do/plan"].input["errors"] == ["the plan has 3 steps, and at most 2 are allowed; plan fewer"]
    await tell(team, completed("work/do/deep/do/plan", output=plan(step("x", agent="coordinator", goal="G"))))
    assert "no deeper plan is allowed here" in await error(team)


async def test_a_plan_that_the_budget_has_no_steps_for_is_returned_and_not_the_end(team: Live) -> None:
    # The step, its plan and the judgement leave four; the two to return the plan leave two.
    await begin(team, budget=Budget(max_steps=7))
    too_many = plan(*(step(name, "x") if name == "y" else step(name) for name in "xy"), step("deep", agent="coordinator", goal="G"))
    await tell(team, completed("work/plan", output=too_many))
    (wrong,) = asked(team)["work/do/plan"].input["errors"]
    assert wrong == "the plan adds 7 steps, and the workflow has room for 4; plan fewer"
    assert asked(team)["work/do/plan"].input["max_steps"] == 2
    await tell(team, completed("work/do/plan", output=plan(step("x"), step("y", "x"))))
    await tell(team, completed("work/do/do/x"))
    await tell(team, completed("work/do/do/y", output="done"))
    assert {ended.status for ended in team.finished()} == {"SUCCESS"}


async def test_a_plan_that_the_budget_has_no_tokens_for_is_returned(team: Live) -> None:
    await begin(team, budget=Budget(max_tokens=2000))
    await tell(team, completed("work/plan", output=plan(step("x"), step("y"))))
    (wrong,) = asked(team)["work/do/plan"].input["errors"]
    assert wrong == "2 steps need 2000 tokens at least, and the workflow has 1985 left; plan fewer"


async def test_a_workflow_without_room_for_a_plan_fails_before_anybody_is_asked(team: Live) -> None:
    await begin(team, budget=Budget(max_steps=3))
    assert await error(team) == "a plan takes 3 steps at least, and the workflow has room for 2; raise max_steps of its budget"
    assert asked(team) == {}


async def test_what_the_agents_of_a_plan_spawn_is_held_to_its_limits(team: Live) -> None:
    await begin(team)
    await tell(team, completed("work/plan", output=plan(step("a"), step("b", "a"))))
    stray = {"id": "work/do/a/x", "agent": "judge", "needs": [], "spec": {"input": None}, "uses_input": False}
    await tell(team, {**completed("work/do/a"), "children": [stray], "join": None})
    assert await error(team) == "it spawns a step for judge, which it may not use; it may use: researcher, writer, coordinator"


async def test_each_item_has_a_plan_of_its_own(team: Live) -> None:
    many = definition(
        """
        - id: each
          pattern: plan
          for_each: "{{ input.goals }}"
          with: {goal: "{{ item }}", agents: [writer]}
        """,
        input="{goals: {type: array, required: true}}",
        output="{{ steps.each.output }}",
    )
    await tell(team, start(many, input={"goals": ["one", INJECTION]}))
    assert [asked(team)[f"each/{n}/plan"].input["goal"] for n in (0, 1)] == ["one", INJECTION]
    for number in (0, 1):
        await tell(team, completed(f"each/{number}/plan", output=plan(step("a", agent="writer"))))
        await tell(team, completed(f"each/{number}/do/a", output=number))
    assert team.finished()[0].output == [0, 1]


async def test_a_plan_that_may_fail_lets_the_workflow_go_on(team: Live) -> None:
    small = definition(
        """
        - {id: work, pattern: plan, with: {goal: G, agents: [writer]}, on_failure: continue}
        - {id: after, agent: writer, needs: [work], input: {was: "{{ steps.work.output }}"}}
        """
    )
    await tell(team, start(small))
    # Nobody answered: that is no plan, and is asked for once more.
    await tell(team, failed("work/plan", permanent=True))
    assert asked(team)["work/do/plan"].input["errors"] == ["the plan is not an object; give one with steps and result"]
    await tell(team, completed("work/do/plan", output={}))
    assert asked(team)["after"].input == {"was": None}


@pytest.mark.parametrize(("params", "asks"), [({}, "work/do/b"), ({"goal": "Another."}, "work/plan")])
async def test_a_fork_reuses_a_plan_unless_its_goal_changed(team: Live, params: dict[str, str], asks: str) -> None:
    team.runtime.definitions["small"] = PLAN
    await begin(team)
    await tell(team, completed("work/plan", output=plan(step("a"), step("b", "a"))))
    await tell(team, completed("work/do/a", output="found"))
    team.bus.published.clear()
    await fork(team.runtime, Fork(WORKFLOW, params=params), function="gateway")
    assert list(asked(team)) == [asks]


async def test_a_rerun_judges_the_same_plan_again(team: Live) -> None:
    await begin(team)
    await tell(team, completed("work/plan", output=None))
    await tell(team, completed("work/do/plan", output=None))
    before = await error(team)
    team.bus.published.clear()
    await rerun(team.runtime, WORKFLOW, function="gateway")
    assert asked(team) == {}
    assert await error(team) == before


def test_definitions_of_plans_are_checked() -> None:
    with pytest.raises(DefinitionError) as refused:
        definition(
            """
            - {id: a, pattern: plan, with: {goal: G, agents: [writter, "{{ input.agent }}"], max_steps: 0}}
            - {id: b, pattern: plan, with: {goal: G, agents: "{{ input.agents }}"}}
            - {id: c, agent: writer, spawn: {agents: [judgge], max_steps: -1}}
            - {id: d, pattern: plan, with: {goal: G, agents: [writer]}, spawn: {}}
            - {id: e, agent: writer, spawn: {agent: [judge]}}
            """
        )
    said = str(refused.value)
    for reason in (
        "unknown agent 'writter', did you mean 'writer'?",
        "'agents' of pattern plan must be a list of 1 to 20 different agents, written out; a limit is not looked up",
        "'max_steps' of pattern plan must be a whole number from 1 to 100",
        "spawn limits what an agent adds, and this step has no agent; remove it",
        "unknown key 'agent', did you mean 'agents'?",
    ):
        assert reason in said, reason
