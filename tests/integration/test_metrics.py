"""Metrics that come from the state: what waits for its turn, and what was given up."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from shared.errors import StoreUnavailable
from shared.runtime import load
from shared.telemetry import metrics
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, definition, live, start

STEPS = "- {id: draft, agent: writer, input: {}}\n- {id: check, agent: critic, input: {}, max_retries: 0}"


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    """A team that works on one workflow at a time."""
    async with live(database, tmp_path, MAX_CONCURRENT_PIPELINES="1") as opened:
        yield opened


async def begin(team: Live, *workflows: str) -> None:
    for workflow in workflows:
        await team.runtime.dispatcher("gateway").apply([start(definition(STEPS), workflow=workflow)])


async def shown(team: Live) -> str:
    transport = httpx.ASGITransport(app=create_app(team.runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    return answer.text


async def sweep(team: Live) -> None:
    app = load("sweeper").app
    assert app is not None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app(team.runtime)), base_url="http://sweeper") as client:
        assert (await client.post("/")).status_code == 204


async def test_who_reads_the_metrics_sees_how_many_workflows_wait(team: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    await begin(team, WORKFLOW, WORKFLOW[:-1] + "1", WORKFLOW[:-1] + "2")
    assert "\nworkflow_queued 2.0\n" in await shown(team)

    async def away() -> Any:
        raise StoreUnavailable("the database cannot be reached")

    metrics.gauge("workflow.queued", 7)
    monkeypatch.setattr(team.store, "queued", away)
    assert "\nworkflow_queued 7.0\n" in await shown(team)


async def test_the_sweeper_tells_how_many_workflows_wait_and_how_many_attempts_were_given_up(team: Live) -> None:
    await begin(team, WORKFLOW, WORKFLOW[:-1] + "1")
    given_up = metrics.value("step.lease_expired")
    await sweep(team)
    assert (metrics.value("workflow.queued"), metrics.value("step.lease_expired") - given_up) == (1, 0)
    await team.clock.advance(2000)
    await sweep(team)
    # The second one failed its workflow, which made room for the one that waited.
    assert (metrics.value("workflow.queued"), metrics.value("step.lease_expired") - given_up) == (0, 2)
