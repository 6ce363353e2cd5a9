"""Reports over HTTP from a simulated Gemini: in one process, behind `serve --simulate`, and with a process for each function."""

from pathlib import Path

import httpx
import pytest

from shared.ai.catalog import Limit
from shared.local.servers import redis_binary
from shared.local.simulator import Fault, Kind, SimulatorSettings, open_simulator, served_models
from shared.local.simulator.answers import NOTICE
from tests.support.reports import brief, database_home, outputs, platform, write_reports
from tests.support.servers import missing
from tests.support.serving import serving

PRO = "gemini-2.5-pro"
PLENTY = {model: Limit(qps=1000, burst=1000) for model in served_models()}
FAST = "1000"


async def test_a_report_is_asked_of_the_service_as_it_is_counted_here(database: str, tmp_path: Path) -> None:
    async with open_simulator(SimulatorSettings(models=PLENTY)) as simulator:
        async with platform(
            database, tmp_path, GEMINI_API_KEY="AIza-some-key", GEMINI_BASE_URL=simulator.url, AI_RATE_QPS=FAST
        ) as opened:
            (workflow,) = await write_reports(opened, [brief(1)])
        entry = simulator.ledger[PRO]

    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    said = outputs(workflow)
    assert len(said["research"]) == len(said["plan"]["questions"]) >= 3
    critics = [one["output"] for one in workflow["steps"] if one["agent"] == "critic"]
    # Each side makes its own case: what a prompt is about was understood.
    assert len({one["argument"] for one in critics}) == 4
    assert said["debate"]["winner"] in ("for", "against", "tie")
    # What the platform counted is what the service counted.
    usage = workflow["usage"]
    assert (entry.calls, entry.answered, entry.violations) == (usage["model_calls"], usage["model_calls"], 0)
    assert (entry.input_tokens, entry.output_tokens) == (usage["input_tokens"], usage["output_tokens"])


async def test_a_report_gets_over_failures_of_the_service(database: str, tmp_path: Path) -> None:
    async with open_simulator(SimulatorSettings(models=PLENTY)) as simulator:
        for kind in (Kind.UNAVAILABLE, Kind.DROPPED, Kind.NOT_JSON):
            simulator.fail(Fault(kind=kind, next=1), model=PRO)
        async with platform(
            database, tmp_path, GEMINI_API_KEY="AIza-some-key", GEMINI_BASE_URL=simulator.url, AI_RATE_QPS=FAST
        ) as opened:
            (workflow,) = await write_reports(opened, [brief(0)])
        entry = simulator.ledger[PRO]

    assert workflow["status"] == "SUCCESS"
    assert entry.faults == {"unavailable": 1, "dropped": 1, "not-json": 1}
    assert entry.calls == entry.answered + 3


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bus", ["memory", "redis"])
async def test_serve_simulate_says_so_and_writes_a_report(bus: str) -> None:
    if bus == "redis" and redis_binary() is None:
        missing("redis-server")
    with database_home() as home:
        async with serving(home, "--bus", bus, "--simulate", AI_RATE_QPS=FAST, GEMINI_API_KEY="AIza-a-real-key") as served:
            assert served.process.stdout is not None
            told = ""
            while "  model " not in told:
                told = (await served.process.stdout.readline()).decode()
            url = told.split(" at ")[1].split(": ")[0]
            [report] = await served.ended([await served.submit(brief(0), key="one")], within_seconds=120)
            async with httpx.AsyncClient(trust_env=False) as http:
                ledger = (await http.get(f"{url}/_simulator/ledger")).json()
            # Where each function is a process, another command can join them, and asks the same one.
            written = (home / "environment").read_text() if bus == "redis" else f"GEMINI_BASE_URL={url}"
            assert await served.end() == 0

    assert f"GEMINI_BASE_URL={url}" in written
    assert "AIza-a-real-key" not in written
    assert "simulated Gemini" in told
    assert report["status"] == "SUCCESS"
    assert NOTICE in report["output"]["text"]
    assert ledger["models"][PRO]["answered"] == report["usage"]["model_calls"] > 5
    assert ledger["models"][PRO]["violations"] == 0
