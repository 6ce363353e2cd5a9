"""A step for each result of a step that was itself one for each item, through the functions that move them and a real database."""

from pathlib import Path
from typing import Any

import pytest

from shared.messages import StepDispatched
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, failed, live, start

STEPS = """
- {id: plan, agent: planner}
- {id: research, agent: researcher, needs: [plan], for_each: "{{ steps.plan.output.questions }}", input: {question: "{{ item }}"}
   MORE}
- {id: check, agent: critic, needs: [research], for_each: "{{ steps.research.output }}", input: {found: "{{ item }}"}}
- {id: last, agent: writer, needs: [check, research], input: {each: "{{ steps.check.output }}", of: "{{ steps.research.output }}"}}
"""


def inputs(team: Live, parent: str) -> dict[str, Any]:
    """What each dispatched step of `parent` was given."""
    return {one.step: one.input for one in team.opened() if isinstance(one, StepDispatched) and one.step.startswith(parent)}


async def move(team: Live, *events: Any) -> None:
    await team.runtime.dispatcher("orchestrator").apply(list(events))


async def begun(team: Live, questions: list[Any], more: str = "") -> None:
    await team.runtime.dispatcher("intake").apply([start(definition(STEPS.replace("\n   MORE", more)))])
    await move(team, completed("plan", output={"questions": questions}))


@pytest.mark.parametrize("backwards", [False, True])
async def test_each_result_of_a_mapped_step_gets_a_step_of_its_own_in_the_order_of_the_items(
    database: str, tmp_path: Path, backwards: bool
) -> None:
    async with live(database, tmp_path) as team:
        await begun(team, ["why", "when", "who"])
        assert inputs(team, "research") == {
            f"research/{number}": {"question": one} for number, one in enumerate(("why", "when", "who"))
        }
        order = [2, 0, 1] if backwards else [0, 1, 2]
        for number in order:
            assert inputs(team, "check") == {}, "it must not start before all results are there"
            await move(team, completed(f"research/{number}", output={"answer": number}))
        assert inputs(team, "check") == {f"check/{number}": {"found": {"answer": number}} for number in range(3)}
        await move(team, *(completed(f"check/{number}", output=f"checked {number}") for number in order))
        expected = {"each": ["checked 0", "checked 1", "checked 2"], "of": [{"answer": 0}, {"answer": 1}, {"answer": 2}]}
        assert inputs(team, "last") == {"last": expected}
        await move(team, completed("last", output="done"))
        assert (await team.store.get(WORKFLOW))["status"] == "SUCCESS"
        assert [one.output for one in team.finished()] == ["done"]


async def test_over_no_results_there_are_no_steps_and_the_workflow_goes_on(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path) as team:
        await begun(team, [])
        assert inputs(team, "last") == {"last": {"each": [], "of": []}}


async def test_a_result_that_failed_is_null_where_the_mapped_step_goes_on(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path) as team:
        await begun(team, ["why", "when"], ", on_failure: continue")
        await move(team, completed("research/1", output="yesterday"), failed("research/0", permanent=True))
        assert inputs(team, "check") == {"check/0": {"found": None}, "check/1": {"found": "yesterday"}}


async def test_results_that_come_twice_make_no_step_twice(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path) as team:
        await begun(team, ["why", "when"])
        results = [completed(f"research/{number}", output=number) for number in range(2)]
        await move(team, *results)
        before = (await team.store.get(WORKFLOW))["steps"]
        await move(team, *results, completed("plan", output={"questions": ["other", "ones", "late"]}))
        assert (await team.store.get(WORKFLOW))["steps"] == before
