"""What the state promises, of every way to reach it: a connection, a transaction pooler, and Supabase's HTTP API."""

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from shared.clock import ManualClock
from shared.errors import ConfigurationError, NotFound, Permanent
from shared.state import Caller, Command, WorkflowStore
from shared.state.postgres import connected
from tests.integration.door import (
    LEASE,
    USAGE,
    cancelled,
    completed,
    dead,
    deferred,
    dispatches,
    failed,
    kinds,
    one,
    redriven,
    rendered,
    requested,
    step,
    tick,
)

from .conftest import START

pytestmark = pytest.mark.asyncio(loop_scope="module")

LETTER = {
    "message_id": "m",
    "subscription": "s",
    "topic": "t",
    "function": "f",
    "cause": "store",
    "attempts": 1,
    "reason": "r",
    "data": "AAE=",
    "attributes": {"a": "b"},
}


async def test_a_workflow_runs_from_its_request_to_its_end(store: WorkflowStore) -> None:
    commands = await store.advance([requested([step("a"), step("b", "a")])])
    assert kinds(commands) == ["accepted", "dispatch"]
    assert dispatches(commands) == [("a", 1)]
    assert dispatches(await store.advance([completed("a", output={"text": "of a"})])) == [("b", 1)]
    render = one(await store.advance([completed("b", output={"text": "of b"})]), "render")
    assert render["upstream"] == {"b": {"text": "of b"}}
    finished = one(await store.advance([rendered(output={"the": "end"})]), "finished")
    assert (finished["status"], finished["output"]) == ("SUCCESS", {"the": "end"})
    shown = await store.get("wf_1")
    assert (shown["status"], shown["output"], shown["input"]) == ("SUCCESS", {"the": "end"}, {"brief": "text"})
    assert shown["usage"] == {name: 2 * count for name, count in USAGE.items()}
    assert [(one["id"], one["status"], one["output"]) for one in shown["steps"]] == [
        ("a", "SUCCESS", {"text": "of a"}),
        ("b", "SUCCESS", {"text": "of b"}),
    ]


async def test_an_event_that_comes_again_changes_nothing_and_gives_its_commands_again(store: WorkflowStore) -> None:
    first = await store.advance([requested([step("a")])])
    before = await store.get("wf_1")
    again = await store.advance([requested([step("a")])])
    assert [first.pop(0)["created"], again.pop(0)["created"]] == [True, False]
    assert again == first != []
    assert await store.get("wf_1") == before


async def test_a_failed_step_is_tried_again_and_at_last_given_up(store: WorkflowStore) -> None:
    await store.advance([requested([step("a", max_retries=1)])])
    again = one(await store.advance([failed("a")]), "dispatch")
    assert again["attempt"] == 2
    assert datetime.fromisoformat(again["not_before"]) > START
    finished = one(await store.advance([failed("a", attempt=2)]), "finished")
    assert (finished["status"], finished["error"]["type"]) == ("FAILED", "ModelUnavailable")


async def test_time_is_the_clock_s(store: WorkflowStore, clock: ManualClock) -> None:
    await store.advance([requested([step("a")])])
    assert datetime.fromisoformat((await store.get("wf_1"))["created_at"]) == START
    later = START + timedelta(seconds=30)
    await store.advance([deferred("a", later)])
    assert dispatches(await store.advance([tick()])) == []
    await clock.advance(31)
    assert dispatches(await store.advance([tick()])) == [("a", 1)]
    await clock.advance(LEASE.total_seconds() + 1)
    assert dispatches(await store.advance([tick()])) == [("a", 2)]


async def test_a_workflow_is_cancelled(store: WorkflowStore) -> None:
    await store.advance([requested([step("a")])])
    assert one(await store.advance([cancelled()]), "finished")["status"] == "CANCELLED"
    assert (await store.get("wf_1"))["steps"][0]["status"] == "CANCELLED"


async def test_history_is_read_in_pages(store: WorkflowStore) -> None:
    await store.advance([requested([step("a")])])
    entries = await store.history("wf_1")
    assert [entry["type"] for entry in entries] == ["workflow.requested", "workflow.started", "step.dispatched"]
    assert await store.history("wf_1", after=1, limit=1) == entries[1:2]
    assert await store.history("wf_1", after=3) == []
    assert await store.history("wf_0") == []


async def test_a_snapshot_shows_the_state_as_it_was(store: WorkflowStore) -> None:
    await store.advance([requested([step("a")])])
    await store.advance([completed("a", output=1)])
    assert (await store.snapshot("wf_1", 3))["steps"][0]["status"] == "RUNNING"
    assert (await store.snapshot("wf_1", 4))["steps"][0] == {
        "id": "a",
        "parent": None,
        "agent": "worker",
        "status": "SUCCESS",
        "output": 1,
    }


async def test_what_is_not_there_is_not_found(store: WorkflowStore) -> None:
    with pytest.raises(NotFound, match="wf_0"):
        await store.get("wf_0")
    with pytest.raises(NotFound, match="wf_0"):
        await store.snapshot("wf_0", 1)


async def test_workflows_are_listed_in_pages_newest_first(store: WorkflowStore) -> None:
    await store.advance([requested([step("a")], f"wf_{n}", name="odd" if n % 2 else "even") for n in range(6)])
    await store.advance([cancelled("wf_3")])

    async def ids(**filters: Any) -> list[str]:
        return [workflow["id"] for workflow in await store.recent(**filters)]

    assert await ids() == ["wf_5", "wf_4", "wf_3", "wf_2", "wf_1", "wf_0"]
    assert await ids(limit=2) == ["wf_5", "wf_4"]
    assert await ids(limit=2, before="wf_4") == ["wf_3", "wf_2"]
    assert await ids(name="odd", status="RUNNING") == ["wf_5", "wf_1"]
    assert await ids(status="FAILED") == []


async def test_a_dead_letter_is_kept_once(store: WorkflowStore, caller: Caller) -> None:
    await store.letters.record(LETTER)
    await store.letters.record({**LETTER, "attempts": 5})
    assert await caller.call("record_dead_letter", {"letter": LETTER}) == 1
    (letter,) = await store.letters.read([1])
    assert (letter["data"], letter["attributes"], letter["reason"], letter["attempts"]) == ("AAE=", {"a": "b"}, "r", 1)
    assert (letter["state"], letter["last_error"], letter["blocked"]) == ("waiting", None, None)
    assert datetime.fromisoformat(letter["recorded_at"]) == START


async def test_dead_letters_are_listed_newest_first_in_pages_and_filtered(store: WorkflowStore, clock: ManualClock) -> None:
    for number in range(1, 6):
        cause = ("store", "rejected:key", "rejected:signature", "rejectedly", "store")[number - 1]
        workflow = {"workflow": "wf_1"} if number == 5 else {}
        await store.letters.record({**LETTER, "message_id": str(number), "cause": cause, "function": f"f{number % 2}", **workflow})
        await clock.advance(60)

    async def ids(*, before: int | None = None, limit: int = 50, **wanted: Any) -> list[int]:
        found = [letter["id"] for letter in await store.letters.listed(wanted, before=before, limit=limit)]
        assert await store.letters.count(wanted) == len(found) or before is not None or limit != 50
        return found

    assert await ids() == [5, 4, 3, 2, 1]
    assert await ids(limit=2) == [5, 4]
    assert await ids(before=4, limit=2) == [3, 2]
    assert await ids(cause="store") == [5, 1]
    assert await ids(cause="rejected") == [3, 2]
    assert await ids(cause="rejected:key") == [2]
    assert await ids(function="f0") == [4, 2]
    assert await ids(workflow="wf_1") == [5]
    assert await ids(ids=[1, 3, 99]) == [3, 1]
    assert await ids(since=START + timedelta(minutes=1), until=START + timedelta(minutes=3)) == [3, 2]
    assert await ids(states=["again", "redriven"]) == []
    # What is no filter is data and nothing else.
    assert await ids(cause="store' or true --") == []


async def test_letters_are_taken_once_and_can_be_put_back(store: WorkflowStore, clock: ManualClock) -> None:
    for number in range(3):
        await store.letters.record({**LETTER, "message_id": str(number)})
    (taken,) = await store.letters.take([2], states=["waiting"])
    assert (taken["id"], taken["data"], taken["redrive_count"], taken["state"]) == (2, "AAE=", 1, "redriven")
    assert datetime.fromisoformat(taken["redriven_at"]) == START
    assert [one["id"] for one in await store.letters.take([1, 2, 3, 4], states=["waiting"])] == [3, 1]
    assert await store.letters.take([1, 2, 3], states=["waiting", "again"]) == []
    await store.letters.put_back([1, 2])
    assert [one["state"] for one in await store.letters.listed({})] == ["redriven", "waiting", "waiting"]
    assert [one["redriven_at"] is None for one in await store.letters.listed({})] == [False, True, True]


async def test_of_many_that_take_at_once_each_letter_goes_to_one(store: WorkflowStore) -> None:
    await asyncio.gather(*(store.letters.record({**LETTER, "message_id": str(number)}) for number in range(20)))
    ids = [letter["id"] for letter in await store.letters.listed({})]
    parts = await asyncio.gather(*(store.letters.take(ids, states=["waiting"]) for _ in range(8)))
    assert sorted(letter["id"] for part in parts for letter in part) == sorted(ids)


async def test_a_letter_that_is_dead_again_is_the_same_one_and_is_marked(store: WorkflowStore) -> None:
    await store.letters.record(LETTER)
    await store.letters.take([1], states=["waiting"])
    await store.letters.record({**LETTER, "attempts": 9})
    (letter,) = await store.letters.listed({})
    assert (letter["state"], letter["attempts"]) == ("redriven", 1), "a copy from before the redrive says nothing of it"
    error = {"type": "StoreUnavailable", "message": "away", "at": "2026-05-01T12:00:00Z"}
    for _ in range(2):
        await store.letters.record({**LETTER, "attempts": 3, "redrive": 1, "last_error": error})
    (letter,) = await store.letters.listed({})
    assert (letter["state"], letter["attempts"], letter["last_error"], letter["redrive_count"]) == ("again", 3, error, 1)
    await store.letters.take([1], states=["again"])
    assert (await store.letters.listed({}))[0]["state"] == "redriven"
    await store.letters.put_back([1])
    assert (await store.letters.listed({}))[0]["state"] == "again"


async def test_the_next_attempt_of_a_redriven_step_is_the_same_letter(store: WorkflowStore) -> None:
    step_letter = {**LETTER, "workflow": "wf_1", "step": "a"}
    await store.letters.record({**step_letter, "message_id": "wf_1/a/1", "attempt": 1})
    await store.letters.take([1], states=["waiting"])
    for _ in range(2):
        await store.letters.record({**step_letter, "message_id": "wf_1/a/2", "attempt": 2, "data": "AAI="})
    await store.letters.record({**step_letter, "message_id": "wf_1/a/1", "attempt": 1})
    (letter,) = await store.letters.read([1])
    assert (letter["message_id"], letter["attempt"], letter["state"], letter["data"]) == ("wf_1/a/2", 2, "again", "AAI=")
    assert letter["blocked"] == "its workflow is not there any more"
    await store.letters.record({**step_letter, "step": "b", "message_id": "wf_1/b/1", "attempt": 1})
    assert [one["state"] for one in await store.letters.listed({})] == ["waiting", "again"]


async def test_usage_is_told_by_step_by_model_and_by_workflow(store: WorkflowStore) -> None:
    await store.advance([requested([step("a"), step("b")], max_tokens=1000)])
    await store.advance([completed("a", models={"gemini-2.5-pro": USAGE}), completed("b", models={"gemini-2.5-pro": USAGE})])
    shown = await store.get("wf_1")
    assert shown["models"] == {"gemini-2.5-pro": {name: 2 * count for name, count in USAGE.items()}}
    assert [one["models"] for one in shown["steps"]] == [{"gemini-2.5-pro": USAGE}] * 2


async def test_a_dispatch_says_what_is_left_of_what_and_how_often_its_workflow_went_on(store: WorkflowStore) -> None:
    first = one(await store.advance([requested([step("a")], max_tokens=100, max_cost_microdollars=7, max_steps=3)]), "dispatch")
    limits = {"max_tokens": 100, "max_cost_microdollars": 7, "steps": 2}
    assert (first["remaining"], first["resumed"]) == ({"tokens": 100, "cost_microdollars": 7, **limits}, 0)
    await store.advance([{**dead("a"), "usage": USAGE}])
    again = one(await store.advance([redriven("a")]), "dispatch")
    assert (again["remaining"], again["resumed"]) == ({"tokens": 70, "cost_microdollars": 2, **limits}, 1)


@pytest.mark.parametrize(
    "value",
    ['æøå 🚀 \u2028 "quoted" back\\slash\n', 2**53 + 1, -1.5e-7, [], {}, None, True, ["a", {"b": [None]}], "x" * 1_000_000],
    ids=["text", "large", "small", "list", "object", "null", "true", "nested", "megabyte"],
)
async def test_json_comes_back_as_it_went(store: WorkflowStore, value: Any) -> None:
    await store.advance([requested([step("a")], input={"value": value})])
    await store.advance([completed("a", output={"value": value})])
    shown = await store.get("wf_1")
    assert shown["input"] == {"value": value}
    assert shown["steps"][0]["output"] == {"value": value}


def _deep() -> Any:
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    return deep


BAD: dict[str, Any] = {
    "unknown type": {"type": "?"},
    "no number": {"type": "tick", "limit": "many"},
    "zero byte": {"type": "\0"},
    "lone surrogate": {"type": "\ud800"},
    "too deep": {"type": "tick", "deep": _deep()},
    "not JSON": {"type": {1}},
}


@pytest.mark.parametrize("event", BAD.values(), ids=BAD)
async def test_a_bad_event_is_refused_and_fails_nobody_else(store: WorkflowStore, event: Any) -> None:
    steps = [step("a")]
    answers = await asyncio.gather(
        *(store.advance([requested(steps, f"wf_{n}")] if n != 7 else [event]) for n in range(15)), return_exceptions=True
    )
    assert type(answers.pop(7)) is Permanent
    assert [kinds(answer)[0] for answer in answers if isinstance(answer, list)] == ["accepted"] * 14


@pytest.mark.parametrize("name", ["no_such_function", "advance"])
async def test_a_function_that_the_schema_lacks_says_to_migrate(caller: Caller, name: str) -> None:
    with pytest.raises(ConfigurationError, match="run `agent-team migrate`"):
        await caller.call(name, {"no_such_argument": 1})


async def test_many_at_once_end_each_with_its_own_result(store: WorkflowStore) -> None:
    """Few connections, five slots and fifty workflows: those that wait are started by the end of others."""
    ended: dict[str, Any] = {}

    async def carry_out(commands: list[Command]) -> None:
        for command in commands:
            workflow = command["workflow"]
            match command["type"]:
                case "dispatch":
                    result = completed(command["step"], workflow=workflow, output=f"{workflow} {command['step']}")
                    await carry_out(await store.advance([result]))
                case "render":
                    await carry_out(await store.advance([rendered(workflow, command["upstream"])]))
                case "finished":
                    ended[workflow] = command["output"]

    async def run(workflow: str) -> None:
        steps = [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]
        await carry_out(await store.advance([requested(steps, workflow)]))
        await store.history(workflow)

    async with asyncio.timeout(60):
        await asyncio.gather(*(run(f"wf_{n}") for n in range(50)))
    assert ended == {f"wf_{n}": {"d": f"wf_{n} d"} for n in range(50)}


async def test_a_call_that_is_cancelled_does_no_harm(caller: Caller, direct: str) -> None:
    async with connected(direct) as connection:
        async with connection.transaction():
            await connection.execute("lock table workflows")
            call = asyncio.create_task(caller.call("list_workflows", {}))
            waiting = "select exists (select from pg_locks where not granted and relation = 'workflows'::regclass)"
            async with asyncio.timeout(10):
                while not await connection.fetchval(waiting):
                    pass
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert await asyncio.gather(*(caller.call("list_workflows", {}) for _ in range(20))) == [[]] * 20


async def test_what_was_closed_opens_again(caller: Caller) -> None:
    await caller.close()
    assert await caller.call("list_workflows", {}) == []
    await caller.close()
    await caller.close()
    assert await caller.call("list_workflows", {}) == []
