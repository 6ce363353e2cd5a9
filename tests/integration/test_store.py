"""The store shares round trips between callers without letting one pay for another."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.clock import ManualClock
from shared.errors import ConfigurationError, NotFound, Permanent, StoreUnavailable
from shared.state import Command, Event, WorkflowStore
from shared.state.postgres import PostgresCaller

from .door import completed, rendered, requested, step


class Caller:
    """Answers each event with two commands of its own; `gate` holds calls back, `fail` decides what fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.errors: dict[str, Exception] = {}
        self.answer: Any = None
        self.closed = False

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        self.calls.append((function, dict(arguments)))
        await self.gate.wait()
        if function != "advance":
            return self.answer
        events = arguments["events"]
        for event in events:
            if event["type"] in self.errors:
                raise self.errors[event["type"]]
        return [{"cause": index, "for": event["type"], "number": n} for index, event in enumerate(events) for n in range(2)]

    async def close(self) -> None:
        self.closed = True

    @property
    def batches(self) -> list[list[str]]:
        return [[event["type"] for event in arguments["events"]] for _, arguments in self.calls]


def event(name: str) -> Event:
    return {"type": name}


def mine(commands: list[Command], *names: str) -> bool:
    return [command["for"] for command in commands] == [name for name in names for _ in range(2)]


async def started(*tasks: asyncio.Task[Any]) -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_lone_event_is_sent_at_once() -> None:
    caller = Caller()
    store = WorkflowStore(caller, max_running=7)
    assert mine(await store.advance([event("a"), event("b")]), "a", "b")
    assert caller.calls == [("advance", {"events": [event("a"), event("b")], "max_running": 7})]


async def test_no_events_are_no_call() -> None:
    caller = Caller()
    assert await WorkflowStore(caller, max_running=1).advance([]) == []
    assert caller.calls == []


async def test_concurrent_callers_share_calls_and_each_gets_its_own_commands() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1, lanes=2)
    tasks = [asyncio.create_task(store.advance([event(f"{n}a"), event(f"{n}b")])) for n in range(50)]
    await started(*tasks)
    caller.gate.set()
    for n, task in enumerate(tasks):
        assert mine(await task, f"{n}a", f"{n}b")
    assert len(caller.calls) <= 3


async def test_what_arrives_while_calls_are_in_flight_is_the_next_batch() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1, lanes=1)
    first = asyncio.create_task(store.advance([event("first")]))
    await started(first)
    later = [asyncio.create_task(store.advance([event(name)])) for name in ("b", "c")]
    await started(*later)
    caller.gate.set()
    await asyncio.gather(first, *later)
    assert caller.batches == [["first"], ["b", "c"]]


async def test_a_batch_is_bounded() -> None:
    caller = Caller()
    store = WorkflowStore(caller, max_running=1, lanes=1)
    await asyncio.gather(*(store.advance([event("e")]) for _ in range(600)))
    assert [len(batch) for batch in caller.batches] == [100] * 6


async def test_no_more_calls_than_lanes_are_in_flight() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1, lanes=3)
    tasks = []
    for _ in range(6):
        tasks.append(asyncio.create_task(store.advance([event("e")])))
        await started(*tasks)
    assert len(caller.calls) == 3
    caller.gate.set()
    await asyncio.gather(*tasks)
    assert len(caller.calls) == 4


async def test_a_bad_event_fails_only_its_own_caller() -> None:
    caller = Caller()
    caller.errors["bad"] = Permanent("the database refuses the call")
    store = WorkflowStore(caller, max_running=1, lanes=1)
    good, bad, other = await asyncio.gather(
        store.advance([event("good")]), store.advance([event("bad")]), store.advance([event("other")]), return_exceptions=True
    )
    assert isinstance(bad, Permanent)
    assert isinstance(good, list)
    assert isinstance(other, list)
    assert mine(good, "good")
    assert mine(other, "other")


NOBODYS_FAULT = [StoreUnavailable("gone"), ConfigurationError("wrong"), RuntimeError("odd")]


@pytest.mark.parametrize("error", NOBODYS_FAULT, ids=lambda error: type(error).__name__)
async def test_what_is_nobody_s_fault_fails_the_whole_batch_with_one_call(error: Exception) -> None:
    caller = Caller()
    caller.errors["b"] = error
    store = WorkflowStore(caller, max_running=1, lanes=1)
    answers = await asyncio.gather(*(store.advance([event(name)]) for name in "abc"), return_exceptions=True)
    assert answers == [error, error, error]
    assert len(caller.calls) == 1
    caller.errors.clear()
    assert mine(await store.advance([event("a")]), "a")


async def test_a_caller_that_is_cancelled_harms_nobody() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1, lanes=1)
    tasks = [asyncio.create_task(store.advance([event(name)])) for name in "abcd"]
    await started(*tasks)
    tasks[0].cancel()
    tasks[2].cancel()
    await started(*tasks)
    caller.gate.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False, True, False]
    assert mine(answers[1], "b")  # type: ignore[arg-type]
    assert mine(answers[3], "d")  # type: ignore[arg-type]
    assert mine(await store.advance([event("e")]), "e")


async def test_a_failure_after_its_caller_was_cancelled_is_nobody_s() -> None:
    caller = Caller()
    caller.gate.clear()
    caller.errors["a"] = StoreUnavailable("gone")
    store = WorkflowStore(caller, max_running=1)
    task = asyncio.create_task(store.advance([event("a")]))
    await started(task)
    task.cancel()
    caller.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()


async def test_a_clock_gives_the_moment_and_without_one_the_database_does() -> None:
    caller = Caller()
    clock = ManualClock(datetime(2026, 5, 1, tzinfo=UTC))
    store = WorkflowStore(caller, max_running=1, clock=clock)
    await store.advance([event("a")])
    await clock.advance(90)
    await store.advance([event("a")])
    assert [arguments["moment"].isoformat() for _, arguments in caller.calls] == [
        "2026-05-01T00:00:00+00:00",
        "2026-05-01T00:01:30+00:00",
    ]


async def test_closing_waits_for_calls_in_flight() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1)
    task = asyncio.create_task(store.advance([event("a")]))
    await started(task)
    closing = asyncio.create_task(store.close())
    await started(closing)
    assert not caller.closed
    caller.gate.set()
    await closing
    assert [caller.closed] == [True]
    assert mine(await task, "a")


async def test_a_lane_that_is_cancelled_cancels_who_waits_for_it() -> None:
    caller = Caller()
    caller.gate.clear()
    store = WorkflowStore(caller, max_running=1)
    before = asyncio.all_tasks()
    task = asyncio.create_task(store.advance([event("a")]))
    await started(task)
    (lane,) = asyncio.all_tasks() - before - {task}
    lane.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.close()


async def test_what_is_not_there_is_not_found() -> None:
    store = WorkflowStore(Caller(), max_running=1)
    with pytest.raises(NotFound, match="wf_0"):
        await store.get("wf_0")
    with pytest.raises(NotFound, match="wf_0"):
        await store.snapshot("wf_0", 3)


async def test_what_is_read_is_read_by_name() -> None:
    caller = Caller()
    caller.answer = []
    store = WorkflowStore(caller, max_running=1)
    await store.recent(status="FAILED", name="report", before="wf_9", limit=5)
    await store.history("wf_1", after=3, limit=9)
    await store.letters.record({"message_id": "m"})
    assert caller.calls == [
        ("list_workflows", {"status": "FAILED", "name": "report", "before": "wf_9", "max_rows": 5}),
        ("workflow_history", {"id": "wf_1", "after": 3, "max_rows": 9}),
        ("record_dead_letter", {"letter": {"message_id": "m"}}),
    ]


# The real thing


@pytest.fixture
def real_store(database: str) -> WorkflowStore:
    return WorkflowStore(PostgresCaller(database), max_running=5, lanes=4, clock=ManualClock(datetime(2026, 5, 1, tzinfo=UTC)))


async def test_what_the_store_shows_is_what_was_stored(real_store: WorkflowStore) -> None:
    await real_store.advance([requested([step("a")], "wf_1"), requested([step("a")], "wf_2")])
    assert (await real_store.get("wf_1"))["created_at"] == "2026-05-01T00:00:00+00:00"
    assert [workflow["id"] for workflow in await real_store.recent(limit=1)] == ["wf_2"]
    assert [entry["seq"] for entry in await real_store.history("wf_1", after=1)] == [2, 3]
    assert (await real_store.snapshot("wf_1", 3))["steps"][0]["status"] == "RUNNING"
    letter = {
        "message_id": "m",
        "subscription": "s",
        "topic": "t",
        "function": "f",
        "cause": "c",
        "reason": "r",
        "data": "",
        "attributes": {},
    }
    await real_store.letters.record(letter)
    await real_store.close()


async def test_many_workflows_at_once_end_each_with_its_own_result(real_store: WorkflowStore) -> None:
    """Four connections, five slots and forty workflows: those that wait are started by the end of others."""
    ended: dict[str, Any] = {}

    async def carry_out(commands: list[Command]) -> None:
        for command in commands:
            workflow = command["workflow"]
            match command["type"]:
                case "dispatch":
                    result = completed(command["step"], workflow=workflow, output=f"{workflow} {command['step']}")
                    await carry_out(await real_store.advance([result]))
                case "render":
                    await carry_out(await real_store.advance([rendered(workflow, command["upstream"])]))
                case "finished":
                    ended[workflow] = command["output"]

    async def run(workflow: str) -> None:
        steps = [step("a"), step("b", "a"), step("c", "a"), step("d", "b", "c")]
        await carry_out(await real_store.advance([requested(steps, workflow)]))

    async with asyncio.timeout(60):
        await asyncio.gather(*(run(f"wf_{n}") for n in range(40)))
    assert ended == {f"wf_{n}": {"d": f"wf_{n} d"} for n in range(40)}
    assert {workflow["status"] for workflow in await real_store.recent()} == {"SUCCESS"}
    await real_store.close()
