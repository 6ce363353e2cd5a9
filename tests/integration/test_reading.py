"""What the state shows: lists, histories, snapshots."""

import orjson
import pytest

from .door import (
    Door,
    cancelled,
    children,
    completed,
    expanded,
    failed,
    requested,
    step,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_workflows_are_listed_newest_first_in_pages(door: Door) -> None:
    for n in range(4):
        await door.advance(requested([step("a")], f"wf_{n}", name="report" if n % 2 else "debate"))
    await door.advance(cancelled("wf_3"))

    async def listed(arguments: str) -> list[str]:
        return [
            row["id"]
            for row in await door.connection.fetch(
                f"select w ->> 'id' as id from json_array_elements(list_workflows({arguments})) as w"
            )
        ]

    assert await listed("") == ["wf_3", "wf_2", "wf_1", "wf_0"]
    assert await listed("max_rows => 2") == ["wf_3", "wf_2"]
    assert await listed("before => 'wf_2', max_rows => 2") == ["wf_1", "wf_0"]
    assert await listed("name => 'report'") == ["wf_3", "wf_1"]
    assert await listed("status => 'RUNNING', name => 'report'") == ["wf_1"]


async def test_history_is_read_from_where_a_reader_left_off(door: Door) -> None:
    await door.advance(requested([step("a")]))
    await door.advance(completed("a"))
    entries = await door.history()
    assert [entry["seq"] for entry in entries] == [1, 2, 3, 4]
    assert entries[3] == {
        "seq": 4,
        "at": door.moment.isoformat(),
        "type": "step.completed",
        "step": "a",
        "attempt": 1,
        "data": None,
    }
    count = "select json_array_length(workflow_history('wf_1', $1, $2))"
    assert [await door.connection.fetchval(count, after, 2) for after in (0, 3, 4)] == [2, 1, 0]


async def test_a_snapshot_shows_the_state_as_it_was(door: Door) -> None:
    await door.advance(requested([step("a"), step("b", "a")]))
    await door.advance(expanded("a", children("a", 1)))
    await door.advance(completed("a/0"))
    await door.advance(failed("b", permanent=True))
    types = [entry["type"] for entry in await door.history()]
    shown = {}
    for seq, kind in enumerate(types, start=1):
        snapshot = orjson.loads(await door.connection.fetchval("select workflow_snapshot('wf_1', $1)", seq))
        shown[seq, kind] = (snapshot["status"], *(each["status"] for each in snapshot["steps"]))
    assert shown == {
        (1, "workflow.requested"): ("QUEUED", "PENDING", "PENDING"),
        (2, "workflow.started"): ("RUNNING", "PENDING", "PENDING"),
        (3, "step.dispatched"): ("RUNNING", "RUNNING", "PENDING"),
        (4, "step.expanded"): ("RUNNING", "WAITING", "PENDING", "PENDING"),
        (5, "step.dispatched"): ("RUNNING", "WAITING", "PENDING", "RUNNING"),
        (6, "step.completed"): ("RUNNING", "WAITING", "PENDING", "SUCCESS"),
        (7, "step.completed"): ("RUNNING", "SUCCESS", "PENDING", "SUCCESS"),
        (8, "step.dispatched"): ("RUNNING", "SUCCESS", "RUNNING", "SUCCESS"),
        (9, "step.failed"): ("RUNNING", "SUCCESS", "FAILED", "SUCCESS"),
        (10, "workflow.failed"): ("FAILED", "SUCCESS", "FAILED", "SUCCESS"),
    }


async def test_there_is_no_snapshot_of_what_never_was(door: Door) -> None:
    await door.advance(requested([step("a")]))
    assert await door.connection.fetchval("select workflow_snapshot('wf_1', 0)") is None
    assert await door.connection.fetchval("select workflow_snapshot('wf_0', 1)") is None
    assert await door.connection.fetchval("select get_workflow('wf_0')") is None
