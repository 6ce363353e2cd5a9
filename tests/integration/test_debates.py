"""Debates over the real state: events that come twice, sides that are lost, judges that fail, and forks."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.messages import StepDispatched
from shared.state import Event
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, failed, live, start

STEPS = """
- {id: talk, pattern: debate, with: {subject: "{{ input.text }}", rounds: 4}}
- {id: final, agent: writer, needs: [talk], input: {verdict: "{{ steps.talk.output }}"}}
"""
Answer = Callable[[StepDispatched], Event]


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


def answered(order: StepDispatched) -> Event:
    """Sides that repeat themselves, and a judge whose scores never settle."""
    given = order.input
    if order.agent == "writer":
        return completed(order.step, output=given["verdict"])
    if order.agent == "critic":
        argument = {"side": given["side"], "round": given["round"], "argument": "So it is.", "points": [], "tokens": 15}
        return completed(order.step, output=argument)
    scores = {"for": 0.2 * given["round"], "against": 0.5}
    return completed(order.step, output={"scores": scores, "reasons": ["So."], "dissent": "", "changes": [], "tokens": 15})


async def played(team: Live, answer: Answer = answered, *, times: int = 1, steps: str = STEPS) -> dict[str, Any]:
    """The workflow once nobody is asked any more; each event is applied so many times."""
    door = team.runtime.dispatcher("orchestrator")
    wanted = definition(steps, input="{text: {type: string}}", output="{{ steps.final.output }}")
    asked: set[str] = set()
    events = [start(wanted, input={"text": "t {{ input.text }}"})]
    while events:
        for event in events:
            for _ in range(times):
                await door.apply([event])
        orders = {one.step: one for one in team.opened() if isinstance(one, StepDispatched) and one.step not in asked}
        asked |= orders.keys()
        events = [answer(one) for one in orders.values()]
    return await team.store.get(WORKFLOW)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
async def test_each_turn_is_taken_once_however_often_its_events_come(team: Live, times: int) -> None:
    workflow = await played(team, times=times)
    assert (workflow["status"], workflow["output"]["rounds"], workflow["output"]["ended_by"]) == ("SUCCESS", 4, "rounds")
    assert (workflow["output"]["winner"], workflow["output"]["tokens"]) == ("for", 4 * 4 * 15)
    assert {attempt for _, attempt in team.dispatched()} == {1}
    assert len({step for step, _ in team.dispatched()}) == 4 * 4 + 1
    ended = Counter(entry["step"] for entry in await team.store.history(WORKFLOW) if entry["type"] == "step.completed")
    assert set(ended.values()) == {1}
    assert workflow["usage"]["model_calls"] == 17, "a turn that is told of twice is counted once"


async def test_a_debate_goes_on_without_a_side_that_was_lost_and_one_of_the_judges(team: Live) -> None:
    def answer(order: StepDispatched) -> Event:
        lost = order.step in ("talk/r2-for", "talk/r3/judge-reversed")
        return failed(order.step, permanent=True) if lost else answered(order)

    workflow = await played(team, answer)
    assert workflow["status"] == "SUCCESS"
    assert [one["round"] for one in workflow["output"]["transcript"] if one["side"] == "for"] == [1, 3, 4]


@pytest.mark.parametrize("on_failure", ["fail", "continue"])
async def test_a_round_without_a_judge_fails_the_debate_and_its_step_says_what_then(team: Live, on_failure: str) -> None:
    def answer(order: StepDispatched) -> Event:
        return failed(order.step, permanent=True) if order.step.startswith("talk/r2/judge") else answered(order)

    workflow = await played(team, answer, steps=STEPS.replace("rounds: 4}}", f"rounds: 4}}, on_failure: {on_failure}}}"))
    outcome = next(step for step in workflow["steps"] if step["id"] == "talk/r2/outcome")
    assert outcome["status"] == "FAILED"
    assert outcome["error"]["message"].startswith("neither judge answered in round 2; see why their steps failed")
    assert (workflow["status"], workflow["output"]) == ("FAILED" if on_failure == "fail" else "SUCCESS", None)
    assert not any(step["id"].startswith("talk/r3") for step in workflow["steps"])


async def test_switched_off_the_step_is_skipped_and_what_needs_it_goes_on_with_null(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path, ENABLE_DEBATE_MODE="false") as team:
        workflow = await played(team)
        assert team.dispatched() == [("final", 1)]
    assert [(step["id"], step["status"]) for step in workflow["steps"]] == [("talk", "SKIPPED"), ("final", "SUCCESS")]
    assert workflow["output"] is None
