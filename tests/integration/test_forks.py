"""Forks and reruns over a real state: what is reused calls no model, what a change had a part in runs again, and all of it once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.ai.offline import OfflineModel
from shared.errors import Conflict, InputError, NotFound
from shared.local import Platform
from shared.messages import WorkflowRequested
from shared.runtime.travel import Fork, fork, rerun
from tests.support.doubles import WORKFLOW, CountingModel
from tests.support.live import Live, completed, definition, failed, live, start
from tests.support.reports import brief, outputs, platform, write_reports

UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
CHAIN = definition(
    """
    - {id: a, agent: planner, input: "{{ input.brief }}"}
    - {id: tone, agent: critic, input: "{{ input.tone }}"}
    - {id: b, agent: researcher, needs: [a], input: "{{ steps.a.output }}"}
    - {id: c, agent: writer, needs: [b, tone], input: "{{ steps.b.output }} {{ steps.tone.output }}"}
    """,
    input="{brief: {type: string, required: true}, tone: {type: string, default: dry}}",
    output="{{ steps.c.output }}",
)
LIST = definition(
    """
    - {id: list, agent: planner, input: {}}
    - {id: each, agent: researcher, needs: [list], for_each: "{{ steps.list.output }}", input: "{{ item }}"}
    """,
    output="{{ steps.each.output }}",
)


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        opened.runtime.definitions["small"] = CHAIN
        yield opened


async def tell(team: Live, *events: dict[str, Any]) -> None:
    for event in events:
        await team.runtime.dispatcher("orchestrator").apply([event])


async def finish(team: Live) -> None:
    results = [completed(id, output=f"{id} of it") for id in ("a", "tone", "b", "c")]
    await tell(team, start(CHAIN, input={"brief": "old"}), *results)
    assert (await team.store.get(WORKFLOW))["status"] == "SUCCESS"
    team.bus.published.clear()


async def forked(team: Live, at: int | None = None, **more: Any) -> str:
    answer = await fork(team.runtime, Fork(WORKFLOW, at, more.pop("params", {})), function="gateway", **more)
    return str(answer["workflow"])


def sent(team: Live) -> list[str]:
    return [step for step, _ in team.dispatched()]


async def entry(team: Live, kind: str, step: str) -> int:
    return next(int(one["seq"]) for one in await team.store.history(WORKFLOW) if (one["type"], one["step"]) == (kind, step))


# Where it starts


async def test_a_fork_at_the_end_starts_nothing_and_has_succeeded_with_the_answer(team: Live) -> None:
    await finish(team)
    answer = await fork(team.runtime, Fork(WORKFLOW), function="gateway")
    original, shown = await team.store.get(WORKFLOW), await team.store.get(answer["workflow"])
    assert sent(team) == []
    assert (shown["status"], shown["output"], outputs(shown)) == ("SUCCESS", original["output"], outputs(original))
    assert (shown["forked_from"], shown["forked_at"]) == (WORKFLOW, original["seq"])
    assert [one.workflow for one in team.finished()] == [answer["workflow"]]


async def test_what_is_reused_shows_no_usage_and_the_original_keeps_its_own(team: Live) -> None:
    await finish(team)
    before = await team.store.get(WORKFLOW)
    shown = await team.store.get(await forked(team))
    assert shown["usage"] == dict.fromkeys(shown["usage"], 0)
    assert {(one["reused"], one["usage"]["model_calls"]) for one in shown["steps"]} == {(True, 0)}
    assert await team.store.get(WORKFLOW) == before
    assert not any(step["reused"] for step in before["steps"])


async def test_a_fork_in_the_middle_runs_what_was_not_finished_by_then(team: Live) -> None:
    await finish(team)
    workflow = await forked(team, await entry(team, "step.completed", "a"))
    assert sorted(sent(team)) == ["b", "tone"]
    await tell(team, *(completed(id, output=f"{id} of it", workflow=workflow) for id in ("b", "tone", "c")))
    shown, original = await team.store.get(workflow), await team.store.get(WORKFLOW)
    assert (shown["status"], outputs(shown)) == ("SUCCESS", outputs(original))
    assert shown["usage"]["model_calls"] == 3
    snapshot = await team.store.snapshot(workflow, 2)
    statuses = {step["id"]: step["status"] for step in snapshot["steps"]}
    assert statuses == {"a": "SUCCESS", "tone": "PENDING", "b": "PENDING", "c": "PENDING"}


async def test_a_workflow_that_still_runs_can_be_forked(team: Live) -> None:
    await tell(team, start(CHAIN, input={"brief": "old"}), completed("a", output="x"))
    team.bus.published.clear()
    await forked(team)
    assert sorted(sent(team)) == ["b", "tone"]


async def test_a_fork_of_a_fork_reuses_what_that_one_reused_and_made(team: Live) -> None:
    await finish(team)
    first = await forked(team, await entry(team, "step.completed", "b"))
    await tell(team, completed("c", output="another", workflow=first))
    second = await fork(team.runtime, Fork(first), function="gateway")
    assert outputs(await team.store.get(second["workflow"])) == outputs(await team.store.get(first))
    assert sent(team) == ["c"]


async def test_of_many_children_those_that_had_ended_are_reused(team: Live) -> None:
    await tell(team, start(LIST), completed("list", output=["x", "y", "z"]), completed("each/1", output="Y"))
    at = (await team.store.get(WORKFLOW))["seq"]
    await tell(team, completed("each/0", output="X"), completed("each/2", output="Z"))
    team.bus.published.clear()
    workflow = await forked(team, at)
    assert sent(team) == ["each/0", "each/2"]
    await tell(team, *(completed(f"each/{n}", output=f"new {n}", workflow=workflow) for n in (2, 0)))
    assert (await team.store.get(workflow))["output"] == ["new 0", "Y", "new 2"]


async def test_a_fork_before_a_step_became_many_makes_them_anew(team: Live) -> None:
    await tell(team, start(LIST), completed("list", output=["x", "y"]), *(completed(f"each/{n}", output=n) for n in range(2)))
    team.bus.published.clear()
    workflow = await forked(team, 3)
    assert sent(team) == ["list"]
    await tell(team, completed("list", output=["one"], workflow=workflow), completed("each/0", output="1", workflow=workflow))
    shown = await team.store.get(workflow)
    assert (shown["output"], shown["steps_total"]) == (["1"], 3)


@pytest.mark.parametrize("at", [0, 1000])
async def test_an_entry_that_is_not_there_is_refused(team: Live, at: int) -> None:
    await finish(team)
    with pytest.raises(InputError, match=f"no history entry {at}; it has entries 1 to "):
        await forked(team, at)


async def test_a_workflow_that_is_not_there_cannot_be_forked_or_rerun(team: Live) -> None:
    with pytest.raises(NotFound):
        await fork(team.runtime, Fork(UNKNOWN), function="gateway")
    with pytest.raises(NotFound):
        await rerun(team.runtime, UNKNOWN, function="gateway")


# Changes


async def test_a_changed_field_runs_exactly_the_steps_that_it_had_a_part_in(team: Live) -> None:
    await finish(team)
    workflow = await forked(team, params={"tone": "warm"})
    assert sent(team) == ["tone"]
    await tell(team, completed("tone", output="warm", workflow=workflow))
    assert sent(team) == ["tone", "c"]
    assert next(one.input for one in team.opened() if getattr(one, "step", "") == "c") == "b of it warm"  # type: ignore[attr-defined]
    assert (await team.store.get(workflow))["input"] == {"brief": "old", "tone": "warm"}


async def test_a_field_that_stays_what_it_was_changes_nothing(team: Live) -> None:
    await finish(team)
    await forked(team, params={"tone": "dry", "brief": "old"})
    assert sent(team) == []


async def test_a_change_before_the_chosen_entry_and_steps_after_it_run_both(team: Live) -> None:
    await finish(team)
    await forked(team, await entry(team, "step.completed", "tone"), params={"brief": "new"})
    assert sent(team) == ["a"]


# Once


async def test_a_fork_that_is_asked_for_again_is_one_workflow_and_starts_the_same(team: Live) -> None:
    await finish(team)
    at = await entry(team, "step.completed", "b")
    ids = await asyncio.gather(*(forked(team, at, request_key="key") for _ in range(5)))
    assert len(set(ids)) == 1
    assert sent(team) == ["c"] * 5, "whoever started it may have died before it was sent"
    assert len(await team.store.recent()) == 2
    await tell(team, completed("c", output="new", workflow=ids[0]))
    assert await forked(team, at, request_key="key") == ids[0]
    assert (await team.store.get(ids[0]))["status"] == "SUCCESS"


async def test_the_key_of_another_request_is_a_conflict(team: Live) -> None:
    await finish(team)
    await forked(team, request_key="key")
    for other in ({"at": 3}, {"params": {"tone": "warm"}}):
        with pytest.raises(Conflict):
            await forked(team, request_key="key", **other)


async def test_what_is_held_waits_for_a_tick(team: Live) -> None:
    await finish(team)
    workflow = await forked(team, 1, held=True)
    assert ((await team.store.get(workflow))["status"], team.bus.published) == ("QUEUED", [])
    await tell(team, {"type": "tick"})
    assert sorted(sent(team)) == ["a", "tone"]


async def test_a_fork_waits_for_a_slot_like_every_other_workflow(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path, MAX_CONCURRENT_PIPELINES="1") as team:
        await finish(team)
        await tell(team, start(CHAIN, workflow=UNKNOWN, input={"brief": "other"}))
        workflow = await forked(team, await entry(team, "step.completed", "b"))
        assert (await team.store.get(workflow))["status"] == "QUEUED"
        ending = {"type": "workflow.cancelled", "workflow": UNKNOWN, "reason": ""}
        for _ in range(2):  # whoever had ended the other may have died before it sent what that started
            team.bus.published.clear()
            await tell(team, ending)
            assert sent(team) == ["c"]


# Going on from a failure


async def fail(team: Live) -> None:
    await tell(team, start(CHAIN, input={"brief": "old"}), completed("a", output="x"), completed("tone", output="t"))
    await tell(team, failed("b", permanent=True))
    assert (await team.store.get(WORKFLOW))["status"] == "FAILED"
    team.bus.published.clear()


async def test_a_workflow_that_failed_goes_on_from_its_failed_step(team: Live) -> None:
    await fail(team)
    answer = await rerun(team.runtime, WORKFLOW, function="gateway", step="b")
    assert (answer["type"], answer["status"], team.dispatched()) == ("rerun", "RUNNING", [("b", 2)])
    await tell(team, completed("b", attempt=2, output="y"), completed("c", output="z"))
    assert (await team.store.get(WORKFLOW))["output"] == "z"


async def test_a_rerun_that_is_asked_for_again_starts_the_same_attempt_again(team: Live) -> None:
    await fail(team)
    answers = [await rerun(team.runtime, WORKFLOW, function="gateway") for _ in range(3)]
    assert [answer["created"] for answer in answers] == [True, False, False]
    assert team.dispatched() == [("b", 2)] * 3, "whoever started it may have died before it was sent"
    assert [one["type"] for one in await team.store.history(WORKFLOW)].count("workflow.resumed") == 1


async def test_with_a_key_a_rerun_happens_once_however_it_ended(team: Live) -> None:
    await fail(team)
    await rerun(team.runtime, WORKFLOW, function="gateway", request_key="key")
    await tell(team, failed("b", attempt=2, permanent=True))
    again = await rerun(team.runtime, WORKFLOW, function="gateway", request_key="key")
    assert (again["created"], again["status"], team.dispatched()) == (False, "FAILED", [("b", 2)])
    other = await rerun(team.runtime, WORKFLOW, function="gateway", request_key="another key")
    assert (other["created"], team.dispatched()) == (True, [("b", 2), ("b", 3)])


async def test_what_did_not_fail_in_a_step_cannot_be_rerun(team: Live) -> None:
    await finish(team)
    answer = await rerun(team.runtime, WORKFLOW, function="gateway")
    assert (answer["type"], "it is SUCCESS" in answer["reason"]) == ("refused", True)
    await tell(team, start(CHAIN, workflow=UNKNOWN, input={"brief": "x"}))
    await tell(team, {"type": "workflow.cancelled", "workflow": UNKNOWN, "reason": ""})
    assert "it is CANCELLED" in (await rerun(team.runtime, UNKNOWN, function="gateway"))["reason"]


async def test_another_step_than_the_one_that_failed_is_refused(team: Live) -> None:
    await fail(team)
    answer = await rerun(team.runtime, WORKFLOW, function="gateway", step="a")
    assert (answer["type"], answer["reason"]) == ("refused", "the step that failed it is b")
    assert team.bus.published == []


# The whole platform, model calls counted


async def ended(on: Platform, workflow: str) -> dict[str, Any]:
    async for _ in on.follow(workflow):
        pass
    return await on.runtime.store.get(workflow)


async def test_a_report_is_forked_at_its_end_without_a_single_call_of_a_model(database: str, tmp_path: Path) -> None:
    model = CountingModel(OfflineModel())
    async with platform(database, tmp_path, model=model) as on:
        (original,) = await write_reports(on, [brief(0)])
        calls = len(model.prompts)
        assert calls == original["usage"]["model_calls"] > 0
        answer = await fork(on.runtime, Fork(original["id"]), function="gateway")
        shown = await ended(on, answer["workflow"])
        assert len(model.prompts) == calls
        assert (shown["status"], shown["output"]) == ("SUCCESS", original["output"])


async def test_a_report_with_another_brief_is_written_anew(database: str, tmp_path: Path) -> None:
    model = CountingModel(OfflineModel())
    async with platform(database, tmp_path, model=model) as on:
        original, other = await write_reports(on, [brief(0), brief(1)])
        calls = len(model.prompts)
        changed = Fork(original["id"], params={"brief": brief(1)})
        shown = await ended(on, (await fork(on.runtime, changed, function="gateway"))["workflow"])
        assert len(model.prompts) - calls == shown["usage"]["model_calls"] == other["usage"]["model_calls"]
        assert outputs(shown) == outputs(other)


async def test_a_report_forked_after_any_of_its_entries_ends_as_it_did(database: str, tmp_path: Path) -> None:
    model = CountingModel(OfflineModel())
    async with platform(database, tmp_path, model=model) as on:
        workflow = await on.submit(WorkflowRequested(workflow="report", input={"brief": brief(0)}))
        original = await ended(on, workflow)
        history = await on.runtime.store.history(workflow)
        for at in range(1, original["seq"] + 1, 5):
            done = {one["step"] for one in history[:at] if one["type"] in ("step.completed", "step.expanded")}
            expected = sum(one["usage"]["model_calls"] for one in original["steps"] if one["id"] not in done)
            before = len(model.prompts)
            shown = await ended(on, (await fork(on.runtime, Fork(workflow, at), function="gateway"))["workflow"])
            assert outputs(shown) == outputs(original)
            assert len(model.prompts) - before == expected, f"at entry {at}"
