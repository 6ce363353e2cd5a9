"""The dispatcher over the real state: it decides until nothing is left to decide, and publishes what came of it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.bus import Handler, Message, Subscription
from shared.errors import Cancelled, StoreUnavailable
from shared.messages import StepDispatched
from shared.runtime.cancellation import Cancellations
from shared.runtime.dispatcher import Dispatcher
from shared.state import Event
from shared.telemetry import metrics
from tests.support.doubles import WORKFLOW, Stage
from tests.support.live import Live, completed, definition, failed, live, start, until


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


def dispatcher(team: Live, *, max_bytes: int = 524_288) -> Dispatcher:
    sender = Stage(clock=team.clock).sender("orchestrator", max_bytes=max_bytes)
    return Dispatcher(team.store, team.bus, sender, team.clock, team.runtime.cancellations)


ONE = definition("- {id: draft, agent: writer, input: {}}", output="{{ steps.draft.output }}")
PAIR = definition("- {id: a, agent: writer, input: {}}\n- {id: b, agent: critic, input: {}}")


async def test_a_request_is_answered_and_its_first_steps_are_sent(team: Live) -> None:
    (answer,) = await dispatcher(team).apply(
        [start(PAIR)], cause="request-1", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    )
    assert (answer["type"], answer["workflow"], answer["created"]) == ("accepted", WORKFLOW, True)
    assert [(message.topic) for message in team.bus.published] == ["agent-writer", "agent-critic"]
    opened = [Stage(clock=team.clock).opened(message) for message in team.bus.published]
    assert [one.id for one in opened] == [f"{WORKFLOW}/a/1", f"{WORKFLOW}/b/1"]
    assert {(one.causationid, one.subject.partition("/")[0], one.correlationid) for one in opened} == {
        ("request-1", WORKFLOW, WORKFLOW)
    }
    assert opened[0].traceparent is not None
    assert team.bus.batches == [2]


async def test_an_event_about_nothing_is_answered_and_publishes_nothing(team: Live) -> None:
    (answer,) = await dispatcher(team).apply([completed("draft")])
    assert answer["type"] == "ignored"
    assert team.bus.published == []


async def test_a_skipped_step_is_passed_over_at_once(team: Live) -> None:
    small = definition(
        """
        - {id: maybe, agent: writer, when: "{{ input.wanted }}", input: {}}
        - {id: always, agent: critic, needs: [maybe], input: {was: "{{ steps.maybe.output }}"}}
        """,
        input="{wanted: {type: boolean, required: true}}",
    )
    await dispatcher(team).apply([start(small, input={"wanted": False})])
    (sent,) = team.opened()
    assert isinstance(sent, StepDispatched)
    assert (sent.step, sent.input) == ("always", {"was": None})


async def test_a_step_for_each_item_becomes_its_children(team: Live) -> None:
    small = definition(
        """
        - {id: each, agent: researcher, for_each: "{{ input.items }}", input: {item: "{{ item }}"}}
        """,
        input="{items: {type: array, required: true}}",
        output="{{ steps.each.output }}",
    )
    await dispatcher(team).apply([start(small, input={"items": ["x", "y"]})])
    assert team.dispatched() == [("each/0", 1), ("each/1", 1)]
    await dispatcher(team).apply([completed("each/1", output=2), completed("each/0", output=1)])
    (ended,) = team.finished()
    assert (ended.status, ended.output) == ("SUCCESS", [1, 2])


async def test_a_workflow_that_nobody_need_work_on_ends_in_one_go(team: Live) -> None:
    small = definition(
        """
        - {id: each, agent: researcher, for_each: "{{ input.items }}", input: {item: "{{ item }}"}}
        - {id: never, agent: writer, needs: [each], when: "{{ input.wanted }}", input: {}}
        """,
        input="{items: {type: array, required: true}, wanted: {type: boolean, required: true}}",
        output="{{ steps.each.output }}",
    )
    await dispatcher(team).apply([start(small, input={"items": [], "wanted": False})])
    (ended,) = team.finished()
    assert (ended.status, ended.output) == ("SUCCESS", [])
    assert team.dispatched() == []


async def test_a_template_without_value_fails_its_step_and_the_workflow(team: Live) -> None:
    small = definition(
        """
        - {id: plan, agent: planner, input: {}}
        - {id: draft, agent: writer, needs: [plan], input: {title: "{{ steps.plan.output.title }}"}}
        """
    )
    await dispatcher(team).apply([start(small)])
    await dispatcher(team).apply([completed("plan", output={"no": "title"})])
    (ended,) = team.finished()
    assert ended.status == "FAILED"
    assert ended.error is not None
    assert ended.error.type == "InputError"
    assert "title" in ended.error.message
    assert team.dispatched() == [("plan", 1)]


async def test_a_dispatch_too_large_to_send_fails_its_step_for_good(team: Live) -> None:
    small = definition(
        """
        - {id: plan, agent: planner, input: {}}
        - {id: draft, agent: writer, needs: [plan], input: {plan: "{{ steps.plan.output }}"}}
        """
    )
    door = dispatcher(team, max_bytes=5_000)
    await door.apply([start(small)])
    await door.apply([completed("plan", output="x" * 6_000)])
    (ended,) = team.finished()
    assert ended.error is not None
    assert (ended.status, ended.error.type) == ("FAILED", "InputError")
    assert "MAX_PAYLOAD_BYTES" in ended.error.message
    assert "xxx" not in ended.error.message


@pytest.mark.parametrize("output", [None, 7, {"text": "the report"}])
async def test_an_end_is_told_once_with_the_result(team: Live, output: Any) -> None:
    door = dispatcher(team)
    succeeded = metrics.value("workflow.succeeded", workflow="small")
    await door.apply([start(ONE)])
    await team.clock.advance(2.5)
    await door.apply([completed("draft", output=output)])
    (ended,) = team.finished()
    assert (ended.workflow, ended.name, ended.status, ended.output, ended.error) == (WORKFLOW, "small", "SUCCESS", output, None)
    assert ended.usage.model_dump() == {"model_calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_microdollars": 7}
    assert metrics.value("workflow.succeeded", workflow="small") == succeeded + 1
    assert metrics.value("workflow.execution_ms", workflow="small") == 2500


async def test_an_end_that_is_told_again_bears_the_same_id(team: Live) -> None:
    door = dispatcher(team)
    await door.apply([start(ONE)])
    for _ in range(2):
        await door.apply([completed("draft", output=1)])
    results = [message for message in team.bus.published if message.topic == "workflow-results"]
    assert {Stage(clock=team.clock).opened(message).id for message in results} == {f"{WORKFLOW}/finished"}
    assert {one.output for one in team.finished()} == {1}


async def test_an_output_too_large_to_send_still_ends_the_workflow(team: Live) -> None:
    door = dispatcher(team, max_bytes=2_000)
    await door.apply([start(ONE)])
    await door.apply([completed("draft", output="x" * 3_000)])
    (ended,) = team.finished()
    assert (ended.status, ended.output) == ("SUCCESS", None)
    assert (await team.store.get(WORKFLOW))["output"] == "x" * 3_000


async def test_an_overlong_reason_still_ends_the_workflow(team: Live) -> None:
    door = dispatcher(team)
    await door.apply([start(ONE)])
    await door.apply([{"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": "x" * 3_000}])
    (ended,) = team.finished()
    assert ended.error is not None
    assert (ended.status, len(ended.error.message)) == ("CANCELLED", 2_000)


async def test_a_retry_waits_and_holds_up_nothing_else(team: Live) -> None:
    door = dispatcher(team)
    other = "wf_01K00000000000000000000001"
    await door.apply([start(PAIR)])
    team.bus.published.clear()
    task = asyncio.create_task(door.apply([failed("a"), start(ONE, workflow=other)]))
    await until(lambda: team.clock.sleepers == 1)
    assert team.dispatched() == [("draft", 1)]
    await team.clock.advance(0.9)
    assert team.dispatched() == [("draft", 1)]
    await team.clock.advance(0.1)
    await task
    assert team.dispatched() == [("draft", 1), ("a", 2)]


async def test_several_retries_go_out_each_at_its_moment(team: Live) -> None:
    door = dispatcher(team)
    retried = metrics.value("step.retried")
    await door.apply([start(PAIR)])
    team.bus.published.clear()
    task = asyncio.create_task(door.apply([failed("a", retry_after_seconds=8), failed("b", retry_after_seconds=3)]))
    await until(lambda: team.clock.sleepers == 1)
    await team.clock.advance(3)
    assert team.dispatched() == [("b", 2)]
    await team.clock.advance(5)
    await task
    assert team.dispatched() == [("b", 2), ("a", 2)]
    assert metrics.value("step.retried") == retried + 2


async def test_a_retry_that_is_far_off_is_left_to_the_sweeper(team: Live) -> None:
    door = dispatcher(team)
    await door.apply([start(ONE)])
    team.bus.published.clear()
    await door.apply([failed("draft", retry_after_seconds=60)])
    assert team.bus.published == []
    await team.clock.advance(59)
    await door.apply([{"type": "tick"}])
    assert team.bus.published == []
    await team.clock.advance(1)
    await door.apply([{"type": "tick"}])
    assert team.dispatched() == [("draft", 2)]


async def test_an_event_applied_before_gives_its_messages_again(team: Live) -> None:
    door = dispatcher(team)
    for _ in range(2):
        await door.apply([start(PAIR)])
    first, second = team.bus.published[:2], team.bus.published[2:]
    stage = Stage(clock=team.clock)
    assert [stage.opened(message).id for message in first] == [stage.opened(message).id for message in second]


async def test_what_is_decided_can_be_published_by_the_caller(team: Live) -> None:
    answers, messages = await dispatcher(team).decide([start(PAIR)])
    assert [answer["type"] for answer in answers] == ["accepted"]
    assert [message.topic for message in messages] == ["agent-writer", "agent-critic"]
    assert team.bus.published == []


class Witness:
    """A bus that looks, whenever something is published, whether the workflow's end is marked by then."""

    def __init__(self, team: Live) -> None:
        self._team = team
        self.marked: list[bool] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        try:
            await self._team.runtime.cancellations.check(WORKFLOW, resumed=0)
        except Cancelled:
            self.marked.append(True)
        else:
            self.marked.append(False)

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("end", "marked"),
    [
        (completed("draft"), False),
        (failed("draft", permanent=True), True),
        ({"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}, True),
    ],
)
async def test_an_end_that_leaves_work_undone_is_marked_before_it_is_told(team: Live, end: Event, marked: bool) -> None:
    witness = Witness(team)
    sender = Stage(clock=team.clock).sender("orchestrator")
    door = Dispatcher(team.store, witness, sender, team.clock, team.runtime.cancellations)
    await door.apply([start(ONE)])
    await door.apply([end])
    assert witness.marked == [False, marked]


async def test_attempts_that_a_resumed_workflow_dispatches_go_on_until_it_ends_again(team: Live) -> None:
    door, cancellations = dispatcher(team), team.runtime.cancellations
    await door.apply([start(ONE)])
    await door.apply([failed("draft", permanent=True, error={"type": "DeadLettered", "message": "no delivery succeeded"})])
    await door.apply([{"type": "step.redriven", "workflow": WORKFLOW, "step": "draft", "attempt": 1}])
    with pytest.raises(Cancelled):
        await cancellations.check(WORKFLOW, resumed=0)
    await cancellations.check(WORKFLOW, resumed=1)
    await door.apply([failed("draft", attempt=2, permanent=True)])
    with pytest.raises(Cancelled):
        await cancellations.check(WORKFLOW, resumed=1)


async def test_a_mark_that_cannot_be_made_does_not_keep_an_end_from_being_told(team: Live) -> None:
    class BrokenCache:
        async def get(self, key: str) -> bytes | None:
            raise StoreUnavailable("gone")

        async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
            raise StoreUnavailable("gone")

    cancellations = Cancellations(BrokenCache(), team.clock, ttl_seconds=60)
    door = Dispatcher(team.store, team.bus, Stage(clock=team.clock).sender("orchestrator"), team.clock, cancellations)
    await door.apply([start(ONE)])
    await door.apply([failed("draft", permanent=True)])
    assert [one.status for one in team.finished()] == ["FAILED"]
