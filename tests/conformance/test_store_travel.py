"""What the state promises of forks, reruns and retention, of every way to reach it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from shared.clock import ManualClock
from shared.errors import NotFound
from shared.state import WorkflowStore
from tests.integration.door import completed, dispatches, failed, kinds, one, rendered, requested, step

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = [step("a"), step("b", "a")]


def fork(**changes: Any) -> dict[str, Any]:
    given = {"from": "wf_1", "at": 4, "workflow": "wf_fork", "input": {"brief": "new"}, "finished": ["a"], "expanded": []}
    return {**given, "request_key": "key", "request_hash": "hash", "traceparent": None, **changes}


async def finish(store: WorkflowStore) -> None:
    await store.advance([requested(STEPS)])
    for event in (completed("a"), completed("b"), rendered()):
        await store.advance([event])


async def test_a_plan_tells_each_step_s_last_entry_by_then(store: WorkflowStore) -> None:
    await finish(store)
    plan = await store.fork_plan("wf_1", 4)
    assert [(one["id"], one["needs"], one["last"]) for one in plan["steps"]] == [("a", [], "step.completed"), ("b", ["a"], None)]
    assert plan["steps"][0]["spec"] == {"of": "a"}
    whole = await store.fork_plan("wf_1", None)
    assert [one["last"] for one in whole["steps"]] == ["step.completed"] * 2
    with pytest.raises(NotFound):
        await store.fork_plan("wf_2", None)


async def test_a_fork_takes_over_and_is_made_once(store: WorkflowStore) -> None:
    await finish(store)
    answers = await asyncio.gather(*(store.fork(fork(workflow=f"wf_{n}"), held=False) for n in range(2, 6)))
    (made,) = {one(commands, "accepted")["workflow"] for commands in answers}
    assert [dispatches(commands) for commands in answers] == [[("b", 1)]] * 4
    assert sorted(one(commands, "accepted")["created"] for commands in answers) == [False, False, False, True]
    shown = await store.get(made)
    steps = [(each["id"], each["status"], each["reused"]) for each in shown["steps"]]
    assert steps == [("a", "SUCCESS", True), ("b", "RUNNING", False)]
    assert (shown["input"], shown["forked_from"], shown["forked_at"]) == ({"brief": "new"}, "wf_1", 4)
    assert kinds(await store.fork(fork(request_hash="other"), held=False)) == ["conflict"]
    with pytest.raises(NotFound):
        await store.fork(fork(**{"from": "wf_0"}), held=False)


async def test_a_failed_workflow_goes_on(store: WorkflowStore) -> None:
    await store.advance([requested(STEPS)])
    await store.advance([failed("a", permanent=True)])
    asked: dict[str, Any] = {"step": "a", "request_key": "key", "held": False}
    for created in (True, False):
        commands = await store.rerun("wf_1", **asked)
        assert (dispatches(commands), one(commands, "rerun")["created"]) == ([("a", 2)], created)
    assert kinds(await store.rerun("wf_1", step=None, request_key="other", held=False)) == ["refused"]
    with pytest.raises(NotFound):
        await store.rerun("wf_2", **asked)


async def test_what_is_old_is_counted_and_deleted(store: WorkflowStore, clock: ManualClock) -> None:
    await finish(store)
    await clock.advance(3600)
    assert await store.purgeable(timedelta(hours=1)) == {"workflows": 0, "dead_letters": 0}
    await clock.advance(1)
    assert await store.purgeable(timedelta(hours=1)) == {"workflows": 1, "dead_letters": 0}
    assert await store.purge(timedelta(hours=1)) == {"workflows": 1, "dead_letters": 0}
    with pytest.raises(NotFound):
        await store.get("wf_1")
