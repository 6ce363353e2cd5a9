"""The state that earlier releases left behind goes on with today's code: shown, looked back into, forked, rerun, ended.

Each file of tests/fixtures was written by a release's own code (see tests/support/released.py), on the schema of the migration that
its name says.
"""

import shutil
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.messages import StepDispatched, WorkflowSignalled
from shared.runtime.signals import send_signal
from shared.runtime.travel import Fork, fork, rerun
from shared.state import migrations
from shared.state.postgres import connected
from tests.support.doubles import Stage
from tests.support.live import Live, completed, live
from tests.support.released import FIXTURES, QUESTIONS, workflow

FILES = sorted(FIXTURES.glob("state-*.sql"))
DONE, BROKEN, STOPPED, ASKING, WAITING, HALFWAY, RETRIED, QUEUED = map(workflow, range(1, 9))
STATUSES = {
    **{DONE: "SUCCESS", BROKEN: "FAILED", STOPPED: "CANCELLED", ASKING: "WAITING"},
    **{WAITING: "WAITING", HALFWAY: "RUNNING", RETRIED: "RUNNING", QUEUED: "QUEUED"},
}


def _left_behind(file: Path, folder: Path) -> tuple[Path, str]:
    """The migrations that there were, and the state."""
    folder.mkdir()
    for path in migrations.FOLDER.glob("*.sql"):
        if path.stem[:14] <= file.stem.removeprefix("state-"):
            shutil.copy(path, folder)
    return folder, file.read_text(encoding="utf-8")


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
async def team(request: pytest.FixtureRequest, empty_database: str, tmp_path: Path) -> AsyncIterator[Live]:
    """Today's code on a database that was migrated on from a release's, a minute after the last thing that happened there."""
    folder, data = _left_behind(request.param, tmp_path / "migrations")
    await migrations.migrate(empty_database, folder=folder)
    async with connected(empty_database) as connection:
        await connection.execute(data)
    await migrations.migrate(empty_database)
    async with live(empty_database, tmp_path / "home", MAX_CONCURRENT_PIPELINES="2") as opened:
        await opened.clock.advance(60)
        yield opened


async def statuses(team: Live) -> dict[str, str]:
    return {head["id"]: head["status"] for head in await team.store.recent(limit=100)}


async def tick(team: Live, **more: Any) -> None:
    await team.runtime.dispatcher("sweeper").apply([{"type": "tick", **more}])


async def work(team: Live) -> None:
    """Play the agents until none has anything to do."""
    while team.bus.published:
        published, team.bus.published = team.bus.published, []
        orders = [Stage(clock=team.clock).opened(message).data for message in published]
        for order in orders:
            if isinstance(order, StepDispatched):
                output = QUESTIONS if order.agent == "planner" else {"text": f"{order.step} of {order.workflow[-3:]}"}
                event = completed(order.step, attempt=order.attempt, output=output, workflow=order.workflow)
                await team.runtime.dispatcher("orchestrator").apply([event])


def test_there_is_the_state_of_a_release() -> None:
    assert FILES


async def test_every_workflow_is_shown_as_it_was_left(team: Live) -> None:
    assert await statuses(team) == STATUSES
    shown = {id: await team.store.get(id) for id in STATUSES}
    assert shown[DONE]["output"] == {"text": "Ferries run late."}
    assert shown[BROKEN]["error"]["step"] == "research/0"
    assert [step["status"] for step in shown[ASKING]["steps"]] == ["SUCCESS", "WAITING", "PENDING"]
    (retried,) = shown[RETRIED]["steps"]
    assert (retried["status"], retried["attempt"]) == ("WAITING", 2)


async def test_every_snapshot_is_there_and_the_last_one_is_the_present(team: Live) -> None:
    for id, status in STATUSES.items():
        entries = await team.store.history(id)
        assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
        snapshots = [await team.store.snapshot(id, entry["seq"]) for entry in entries]
        assert (snapshots[0]["status"], snapshots[-1]["status"]) == ("QUEUED", status)
        present = {step["id"]: (step["status"], step["output"]) for step in (await team.store.get(id))["steps"]}
        assert {step["id"]: (step["status"], step["output"]) for step in snapshots[-1]["steps"]} == present


async def test_what_had_not_ended_goes_on_to_its_end(team: Live) -> None:
    await tick(team, recover=True)
    await work(team)
    await send_signal(
        team.runtime, WorkflowSignalled(workflow=ASKING, name="approve", decision="approve"), source="gateway", signal="yes"
    )
    await team.clock.advance(3600)
    for _ in range(3):
        await tick(team)
        await work(team)
    ended = await statuses(team)
    assert Counter(ended.values()) == {"SUCCESS": 6, "FAILED": 1, "CANCELLED": 1}
    news = {step["id"]: step["output"] for step in (await team.store.get(WAITING))["steps"]}["news"]
    assert news["data"] == "Calm seas"


async def test_what_failed_goes_on_from_the_step_that_failed_it(team: Live) -> None:
    await tick(team, recover=True)
    await work(team)
    assert (await rerun(team.runtime, BROKEN, function="gateway"))["type"] == "rerun"
    await work(team)
    shown = await team.store.get(BROKEN)
    outputs = {step["id"]: step["output"] for step in shown["steps"]}
    assert shown["status"] == "SUCCESS"
    assert (outputs["research/1"], outputs["research/0"]) == ("Tides.", {"text": "research/0 of 002"})


async def test_every_workflow_can_be_forked_from_any_entry_and_the_forks_end(team: Live) -> None:
    forks: list[str] = []
    for id in STATUSES:
        for entry in await team.store.history(id):
            answer = await fork(team.runtime, Fork(id, at=entry["seq"]), function="gateway")
            forks.append(answer["workflow"])
    answers = 0
    for _ in range(20):
        await tick(team)
        await work(team)
        for id in forks:
            for step in (await team.store.get(id))["steps"]:
                if step["status"] == "WAITING" and step["waiting"] is not None and step["waiting"]["for"] != "time":
                    said = {"decision": "approve"} if step["waiting"]["for"] == "approval" else {"data": "Calm seas"}
                    told = WorkflowSignalled.model_validate({"workflow": id, "name": step["waiting"]["name"], **said})
                    answers += 1
                    await send_signal(team.runtime, told, source="gateway", signal=f"answer-{answers}")
        await team.clock.advance(3600)
    ended = await statuses(team)
    # A fork that took over the end of what failed is one that failed.
    assert {ended[id] for id in forks} == {"SUCCESS"}
