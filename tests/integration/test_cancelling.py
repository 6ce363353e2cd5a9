"""Cancelling a workflow whose model hangs, over the whole platform: the call is cut off within a second, and no other is made."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from shared.ai import Reply, Request
from shared.ai.offline import OfflineModel
from shared.bus.memory import MemoryBus
from shared.local import Platform
from shared.messages import WorkflowRequested
from tests.support.live import until
from tests.support.reports import brief, platform
from tests.support.servers import redis_server

REPORT = WorkflowRequested(workflow="report", input={"brief": brief(0)})


class HangingModel:
    """Answers the planner; whoever asks after that hangs."""

    def __init__(self) -> None:
        self.asked = 0
        self.hanging = 0
        self.cut_off: list[int] = []
        self.ticks = 0

    async def generate(self, request: Request) -> Reply:
        self.asked += 1
        if self.asked == 1:
            return await OfflineModel().generate(request)
        self.hanging += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.hanging -= 1
            self.cut_off.append(self.ticks)
        raise AssertionError

    async def tick(self) -> None:
        """Count hundredths of a second, but none while the machine lets this process stand still."""
        while True:
            await asyncio.sleep(0.01)
            self.ticks += 1


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with redis_server() as server:
        yield server.url


@pytest.fixture(params=["memory", "redis"])
async def running(
    request: pytest.FixtureRequest, database: str, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Platform, HangingModel]]:
    variables: dict[str, Any] = {"GUARDS_BACKEND": "redis", "REDIS_URL": redis_url} if request.param == "redis" else {}
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"shared.redis.connections.{name}", 60.0)
    model = HangingModel()
    ticking = asyncio.create_task(model.tick())
    async with platform(database, tmp_path, model=model, **variables) as opened:
        yield opened, model
    ticking.cancel()


async def test_calls_in_progress_are_cut_off_within_a_second_and_no_other_is_made(
    running: tuple[Platform, HangingModel],
) -> None:
    opened, model = running
    other = await opened.submit(REPORT)
    await until(lambda: model.hanging >= 1)  # the first researcher of the first report
    steps = (await opened.runtime.store.get(other))["steps"]
    first_hanging = sum(step["parent"] == "research" for step in steps)
    assert first_hanging >= 2
    await until(lambda: model.hanging == first_hanging)
    workflow = await opened.submit(REPORT)  # its planner hangs
    await until(lambda: model.hanging == first_hanging + 1)
    asked = model.asked

    transport = httpx.ASGITransport(app=create_app(opened.runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.post(f"/v1/workflows/{other}/cancel", json={"reason": "asked for twice"})
    cancelled_at = model.ticks
    assert answer.json()["status"] == "CANCELLED"
    await until(lambda: model.hanging == 1)
    assert max(model.cut_off) - cancelled_at < 100
    assert len(model.cut_off) == first_hanging

    # What was stopped answers, and the answers start nothing; the other workflow goes on.
    await until(lambda: _published(opened, "workflow-events") >= 1 + first_hanging)
    assert model.asked == asked
    assert (await opened.runtime.store.get(workflow))["status"] == "RUNNING"


def _published(opened: Platform, topic: str) -> int:
    bus = opened.runtime.bus
    assert isinstance(bus, MemoryBus)
    return bus.published[topic]
