"""What is old goes, what is not stays, and a workflow takes as much room for each step however many it has."""

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from functions.sweeper.main import _app
from shared.runtime.retention import purge, purge_old, purge_outputs
from shared.state.postgres import connected
from shared.telemetry import metrics
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, live, start

from .door import Door, rendered, requested, step
from .door import completed as completed_there

MONTH = timedelta(days=30)
PAIR = definition("- {id: a, agent: writer, input: {}}\n- {id: b, agent: critic, needs: [a], input: {}}")


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


async def finish(team: Live, *workflows: str) -> None:
    for workflow in workflows:
        dispatcher = team.runtime.dispatcher("orchestrator")
        await dispatcher.apply([start(PAIR, workflow=workflow)])
        await dispatcher.apply([completed("a", workflow=workflow)])
        await dispatcher.apply([completed("b", workflow=workflow)])


def ids_of(count: int) -> list[str]:
    return [f"{WORKFLOW[:-2]}{n:02d}" for n in range(count)]


async def letter(team: Live, id: str, **about: Any) -> None:
    names = ("message_id", "subscription", "topic", "function", "cause", "reason")
    await team.store.letters.record(
        {**dict.fromkeys(names, id), "data": base64.b64encode(b"data").decode(), "attributes": {}, **about}
    )


async def known(team: Live) -> set[str]:
    return {one["id"] for one in await team.store.recent(limit=1000)}


async def test_after_thirty_days_a_workflow_goes_and_nothing_of_it_stays(team: Live) -> None:
    await finish(team, WORKFLOW)
    await team.clock.advance(MONTH.total_seconds())
    await purge_old(team.runtime, max_batches=1)
    assert await known(team) == {WORKFLOW}, "it is kept for thirty days"
    purged = metrics.value("retention.purged", kind="workflows")
    await team.clock.advance(1)
    await purge_old(team.runtime, max_batches=1)
    assert await known(team) == set()
    assert await team.store.history(WORKFLOW) == []
    assert metrics.value("retention.purged", kind="workflows") == purged + 1
    assert await rows(team) == 0


async def rows(team: Live) -> int:
    """Everything in the tables of workflows and letters, to the last row."""
    async with connected(team.dsn) as connection:
        query = "select (select count(*) from workflows) + (select count(*) from steps) + (select count(*) from edges)"
        return int(await connection.fetchval(f"{query} + (select count(*) from history) + (select count(*) from dead_letters)"))


async def test_what_has_not_ended_stays_however_old_it_is(team: Live) -> None:
    dispatcher = team.runtime.dispatcher("orchestrator")
    await dispatcher.apply([start(PAIR)])
    await letter(team, "of it", workflow=WORKFLOW, step="a")
    await team.clock.advance(365 * 86_400)
    assert await purge(team.runtime, timedelta()) == {"workflows": 0, "dead_letters": 0}
    assert await team.store.purgeable(timedelta()) == {"workflows": 0, "dead_letters": 0}
    assert await known(team) == {WORKFLOW}
    assert len(await team.store.letters.listed({})) == 1


async def test_a_letter_is_old_when_it_was_recorded_and_redriven_long_ago(team: Live) -> None:
    for id in ("old", "redriven"):
        await letter(team, id)
    await team.clock.advance(MONTH.total_seconds())
    (taken,) = await team.store.letters.take([2], states=["waiting"])
    await letter(team, "new")
    await team.clock.advance(1)
    assert await team.store.purgeable(MONTH) == {"workflows": 0, "dead_letters": 1}
    assert await purge(team.runtime, MONTH) == {"workflows": 0, "dead_letters": 1}
    assert {one["message_id"] for one in await team.store.letters.listed({})} == {taken["message_id"], "new"}


async def test_the_oldest_go_first_and_a_call_stops_after_its_batches(team: Live) -> None:
    ids = ids_of(6)
    for id in ids:
        await finish(team, id)
        await team.clock.advance(60)
    await team.clock.advance(2 * MONTH.total_seconds())
    gone = await team.store.purge(MONTH, max_rows=25)  # each has two steps and some eight entries
    assert gone["workflows"] == 2
    assert await known(team) == set(ids[2:])
    gone = await team.store.purge(MONTH, max_rows=1)
    assert gone["workflows"] == 1, "one that is larger than a batch must go, too"
    assert await purge(team.runtime, MONTH) == {"workflows": 3, "dead_letters": 0}


async def test_nothing_is_deleted_where_everything_is_to_be_kept(database: str, tmp_path: Path) -> None:
    async with live(database, tmp_path, RETENTION_DAYS="0") as team:
        await finish(team, WORKFLOW)
        await team.clock.advance(1000 * 86_400)
        await purge_old(team.runtime, max_batches=20)
        assert await known(team) == {WORKFLOW}


async def test_the_sweeper_purges_after_its_tick(team: Live) -> None:
    await finish(team, WORKFLOW)
    await team.clock.advance(MONTH.total_seconds() + 1)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=_app(team.runtime)), base_url="http://sweeper") as client:
        assert (await client.post("/")).status_code == 204
    assert await known(team) == set()


async def test_two_sweepers_at_once_delete_everything_once(team: Live) -> None:
    await finish(team, *ids_of(20))
    await team.clock.advance(MONTH.total_seconds() + 1)
    gone = await asyncio.gather(*(purge(team.runtime, MONTH) for _ in range(4)))
    assert sum(one["workflows"] for one in gone) == 20


# Outputs that are stored apart


async def stored(team: Live, text: str, *, days_ago: float = 40) -> Any:
    """A reference to an output that was put so long ago."""
    kept = await team.runtime.outputs.keep(text * 100_000)
    (file,) = [path for path in _files(team) if path.name == kept["$output"]["sha256"]]
    put_at = time.time() - days_ago * 86_400
    os.utime(file, (put_at, put_at))
    return kept


def _files(team: Live) -> list[Path]:
    return list(team.runtime.settings.agent_team_home.glob("outputs/??/*"))


async def test_outputs_go_when_they_are_old_and_no_row_refers_to_them(team: Live) -> None:
    await stored(team, "a")
    await stored(team, "b", days_ago=29)
    used = [await stored(team, text) for text in "cde"]
    dispatcher = team.runtime.dispatcher("orchestrator")
    await dispatcher.apply([start(PAIR)])
    await dispatcher.apply([completed("a", output=used[0])])
    await dispatcher.apply([completed("b", output=[used[1]])])
    await letter(team, "dead", data=base64.b64encode(orjson.dumps({"input": used[2]})).decode())
    assert await purge_outputs(team.runtime, MONTH) == 1
    assert len(_files(team)) == 4
    await team.clock.advance(MONTH.total_seconds() + 1)
    await purge_old(team.runtime, max_batches=5)
    assert [path.stat().st_mtime > time.time() - 30 * 86_400 for path in _files(team)] == [True], "the one that is not old yet"


async def test_what_was_put_in_the_last_days_stays_whatever_is_asked_for(team: Live) -> None:
    await stored(team, "a", days_ago=1.9)
    assert await purge_outputs(team.runtime, timedelta()) == 0
    await stored(team, "b", days_ago=2.1)
    assert await purge_outputs(team.runtime, timedelta()) == 1


# Storage


@pytest.mark.asyncio(loop_scope="module")
async def test_a_step_takes_the_same_room_in_a_workflow_of_ten_and_of_a_thousand(door: Door) -> None:
    sizes = {count: await _bytes_per_step(door, f"wf_{count}", count) for count in (10, 100, 1000)}
    smallest, largest = min(sizes.values()), max(sizes.values())
    assert largest <= 1.2 * smallest, sizes


async def _bytes_per_step(door: Door, workflow: str, count: int) -> float:
    chain = [step(f"s{n}", *([f"s{n - 1}"] if n else [])) for n in range(count)]
    await door.advance(requested(chain, workflow))
    for n in range(count):
        await door.advance(completed_there(f"s{n}", workflow=workflow, output={"text": f"{n:08d}" * 100}))
    await door.advance(rendered(workflow))
    total = 0
    for table, column in (("workflows", "id"), ("steps", "workflow_id"), ("edges", "workflow_id"), ("history", "workflow_id")):
        query = f"select coalesce(sum(pg_column_size(t.*)), 0) from {table} as t where {column} = $1"
        total += await door.connection.fetchval(query, workflow)
    return total / count
