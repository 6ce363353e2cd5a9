"""The same reports over every bus: in one process, and with a process for each function on Redis and on Pub/Sub's emulator."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from shared.ai.offline import NOTICE
from shared.local.servers import redis_binary
from tests.support import pubsub
from tests.support.live import until
from tests.support.receivers import answer, receiver
from tests.support.reports import brief, database_home, outputs
from tests.support.servers import missing
from tests.support.serving import ROOT, Served, serving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]
AT_ONCE = 100


def needs(bus: str) -> None:
    """Skip the test where the bus cannot be had; fail it in CI, where it must."""
    if bus == "pubsub":
        pubsub.require()
    if bus != "memory" and redis_binary() is None:
        missing("redis-server")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", "redis", "pubsub"])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Served]]:
    bus: str = request.param
    needs(bus)
    with database_home() as home:
        async with serving(home, "--bus", bus, MAX_CONCURRENT_PIPELINES="25") as opened:
            yield bus, opened
            children = psutil.Process(opened.process.pid).children(recursive=True)
            assert await opened.end() == 0
            _, left = psutil.wait_procs(children, timeout=10)
            assert not left, "processes are left behind"


@pytest.mark.parametrize("bus", ["memory", "redis", "pubsub"])
async def test_what_was_unfinished_goes_on_with_the_next_start(bus: str) -> None:
    needs(bus)
    with database_home() as home:
        async with serving(home, "--bus", bus, MAX_CONCURRENT_PIPELINES="25") as first:
            ids = await asyncio.gather(*(first.submit(brief(number), key=f"report-{number}") for number in range(20)))
            assert await first.end() == 0
        async with serving(home, "--bus", bus, MAX_CONCURRENT_PIPELINES="25") as second:
            reports = await second.ended(ids, within_seconds=90)
            assert await second.end() == 0
    assert {report["status"] for report in reports} == {"SUCCESS"}
    assert {step["attempt"] for report in reports for step in report["steps"]} == {1}


async def test_whoever_asked_is_told_of_the_end(served: tuple[str, Served]) -> None:
    _, platform = served
    async with receiver(answer(503), answer(200)) as hook:
        id = await platform.submit(brief(0), key="told", callback_url=hook.url)
        [report] = await platform.ended([id], within_seconds=60)
        await until(lambda: len(hook.calls) == 2, within_seconds=60)
    first, second = (call.verified((platform.home / "webhook-secret").read_text()) for call in hook.calls)
    assert first == second
    data = second["data"]
    assert (data["id"], data["status"], data["output"], data["usage"]) == (id, "SUCCESS", report["output"], report["usage"])


async def test_a_report_is_written(served: tuple[str, Served]) -> None:
    bus, platform = served
    [report] = await platform.ended([await platform.submit(brief(0), key="one")], within_seconds=60)

    assert (report["status"], report["error"]) == ("SUCCESS", None)
    assert {step["status"] for step in report["steps"]} == {"SUCCESS"}
    assert {step["attempt"] for step in report["steps"]} == {1}
    assert NOTICE in report["output"]["text"]
    processes = psutil.Process(platform.process.pid).children()
    assert len(processes) == 0 if bus == "memory" else len(processes) >= len(list((ROOT / "functions").glob("*/function.yaml")))


async def test_a_request_on_the_bus_is_enough(served: tuple[str, Served]) -> None:
    bus, platform = served
    if bus == "memory":
        with pytest.raises(AssertionError, match="AGENT_BUS_PROVIDER is memory"):
            await platform.publish(brief(1))
        return
    [report] = await platform.ended([await platform.publish(brief(1))], within_seconds=60)

    assert report["status"] == "SUCCESS"


async def test_a_hundred_reports_are_written_at_once(served: tuple[str, Served]) -> None:
    _, platform = served
    ids = await asyncio.gather(*(platform.submit(brief(number), key=f"report-{number}") for number in range(AT_ONCE)))
    reports = await platform.ended(ids, within_seconds=200)

    assert {report["status"] for report in reports} == {"SUCCESS"}
    assert {step["attempt"] for report in reports for step in report["steps"]} == {1}
    first: dict[str, Any] = {}
    for number, report in enumerate(reports):
        assert outputs(report) == first.setdefault(brief(number), outputs(report))
    letters = await platform.client.get("/v1/dead-letters")
    assert letters.json()["items"] == []
