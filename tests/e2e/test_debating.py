"""Debates through every function, with real SQL: rounds, both orders of the judge, a crash, and the switch."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shared.ai import Reply, Request
from shared.ai.catalog import Limit
from shared.ai.offline import OfflineModel
from shared.local import Platform
from shared.local.servers import redis_binary
from shared.local.simulator import Fault, Kind, SimulatorSettings, open_simulator, served_models
from shared.messages import WorkflowRequested
from tests.support.live import until
from tests.support.reports import brief, database_home, outputs, platform
from tests.support.servers import missing
from tests.support.serving import serving

PROPOSAL = (Path(__file__).parents[2] / "examples" / "pricing-proposal.txt").read_text(encoding="utf-8")
PRO = "gemini-2.5-pro"
PLENTY = {model: Limit(qps=1000, burst=1000) for model in served_models()}
OFF = "debate mode is off (ENABLE_DEBATE_MODE)"


class Undecided:
    """The offline model, but nobody concedes and scores never settle. In round `hangs_in` no critic ever gets its answer."""

    def __init__(self, *, hangs_in: int = 0) -> None:
        self.requests: list[Request] = []
        self.hanging = asyncio.Event()
        self._hangs_in = hangs_in

    async def generate(self, request: Request) -> Reply:
        self.requests.append(request)
        if "side" in request.material and request.material["round"] == self._hangs_in:
            self.hanging.set()
            await asyncio.Event().wait()
        reply = await OfflineModel().generate(request)
        if "scores" not in reply.output:
            return replace(reply, output={**reply.output, "concedes_to": ""})
        number = max(one["round"] for one in request.material["arguments"])
        scores = {side: 0.2 + 0.3 * ((place + number) % 2) for place, side in enumerate(sorted(reply.output["scores"]))}
        return replace(reply, output={**reply.output, "scores": scores})


async def submitted(on: Platform, workflow: str = "debate", **input: Any) -> str:
    return await on.submit(WorkflowRequested(workflow=workflow, input=input))


async def ended(on: Platform, workflow: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        async for _ in on.follow(workflow):
            pass
    return await on.runtime.store.get(workflow)


@pytest.mark.parametrize(("text", "ended_by"), [(PROPOSAL, "agreement"), (brief(1), "settled")], ids=["proposal", "brief"])
async def test_a_debate_runs_alone_and_ends_early(text: str, ended_by: str, database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path) as opened:
        workflow = await ended(opened, await submitted(opened, text=text, rounds=10))
    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    verdict = workflow["output"]
    assert (verdict["rounds"], verdict["ended_by"], verdict["disagreement"]["agrees"]) == (2, ended_by, True)
    assert verdict["winner"] in ("for", "against", "tie")
    assert [(one["round"], one["side"]) for one in verdict["transcript"]] == [
        (1, "for"),
        (1, "against"),
        (2, "for"),
        (2, "against"),
    ]
    assert len({one["argument"] for one in verdict["transcript"]}) == 4
    usage = workflow["usage"]
    assert (usage["model_calls"], verdict["tokens"]) == (8, usage["input_tokens"] + usage["output_tokens"])


async def test_a_crash_in_round_three_repeats_no_turn(database: str, tmp_path: Path) -> None:
    first, second = Undecided(hangs_in=3), Undecided()
    async with platform(database, tmp_path, model=first) as opened:
        id = await submitted(opened, text=PROPOSAL, rounds=4)
        async with asyncio.timeout(60):
            await first.hanging.wait()
    async with platform(database, tmp_path, model=second) as opened:
        workflow = await ended(opened, id)
    assert (workflow["status"], workflow["output"]["rounds"], workflow["output"]["ended_by"]) == ("SUCCESS", 4, "rounds")
    asked = Counter(request.prompt for request in (*first.requests, *second.requests))
    lost = {request.prompt for request in first.requests if request.material.get("side") and request.material["round"] == 3}
    assert {prompt for prompt, times in asked.items() if times > 1} == lost, "only what was under way is asked again"
    assert len(lost) >= 1
    assert len(asked) == 16
    assert {step["attempt"] for step in workflow["steps"]} == {1}


async def test_the_judge_sees_the_sides_in_both_orders(database: str, tmp_path: Path) -> None:
    model = Undecided()
    sides = ["sales", {"name": "finance", "position": "Revenue comes first."}, "support"]
    async with platform(database, tmp_path, model=model) as opened:
        workflow = await ended(opened, await submitted(opened, text=PROPOSAL, sides=sides, rounds=1))
    judged = [request.material for request in model.requests if "rubric" in request.material]
    orders = [[one["side"] for one in material["arguments"]] for material in judged]
    assert sorted(orders) == sorted([["sales", "finance", "support"], ["support", "finance", "sales"]])
    assert [[one["name"] for one in material["sides"]] for material in judged] == orders
    assert workflow["output"]["scores"].keys() == {"sales", "finance", "support"}


async def test_a_debate_that_has_no_tokens_left_for_another_round_ends(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path, model=Undecided()) as opened:
        workflow = await ended(opened, await submitted(opened, text=PROPOSAL, rounds=10, max_tokens=1))
    assert (workflow["output"]["rounds"], workflow["output"]["ended_by"]) == (1, "tokens")


async def test_with_debate_mode_off_a_report_is_written_without_one_and_says_so(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path, ENABLE_DEBATE_MODE="false") as opened:
        report = await ended(opened, await submitted(opened, "report", brief=brief(0)))
        debate = await ended(opened, await submitted(opened, text=PROPOSAL))
        history = await opened.runtime.store.history(report["id"])
    assert (report["status"], debate["status"], debate["output"]) == ("SUCCESS", "SUCCESS", None)
    assert report["output"] == outputs(report)["draft"]
    assert {step["agent"] for step in report["steps"]}.isdisjoint({"critic", "judge"})
    assert [step["status"] for step in report["steps"] if step["id"] == "debate"] == ["SKIPPED"]
    assert [entry["data"] for entry in history if entry["type"] == "step.skipped"] == [{"reason": OFF}]


async def test_the_simulated_gemini_debates_with_any_sides(database: str, tmp_path: Path) -> None:
    async with open_simulator(SimulatorSettings(models=PLENTY)) as simulator:
        async with platform(
            database, tmp_path, GEMINI_API_KEY="AIza-some-key", GEMINI_BASE_URL=simulator.url, AI_RATE_QPS="1000"
        ) as opened:
            sides = ["customers", "stores", "contracts"]
            workflow = await ended(opened, await submitted(opened, text=PROPOSAL, sides=sides, question="Who gains?"))
        entry = simulator.ledger[PRO]
    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    verdict = workflow["output"]
    assert verdict["scores"].keys() == {"customers", "stores", "contracts"}
    assert len({one["argument"] for one in verdict["transcript"] if one["round"] == 1}) == 3
    assert (entry.answered, entry.violations) == (workflow["usage"]["model_calls"], 0)
    assert workflow["usage"]["model_calls"] == verdict["rounds"] * 5


@pytest.mark.timeout(300)
async def test_over_redis_a_debate_whose_platform_is_killed_asks_again_only_for_what_was_under_way() -> None:
    if redis_binary() is None:
        missing("redis-server")
    async with open_simulator(SimulatorSettings(models=PLENTY)) as simulator:
        # Slow enough for the second round's critics to be seen at work.
        simulator.fail(Fault(kind=Kind.SLOW, probability=1.0, seconds=2.0), model=PRO)
        entry = simulator.ledger[PRO]
        variables = {"GEMINI_API_KEY": "AIza-some-key", "GEMINI_BASE_URL": simulator.url, "AI_RATE_QPS": "1000"}
        with database_home() as home:
            async with serving(home, "--bus", "redis", **variables) as first:
                body = {"workflow": "debate", "input": {"text": PROPOSAL}}
                id = (await first.client.post("/v1/workflows", json=body)).json()["id"]
                await until(lambda: entry.calls == 6, within_seconds=60)
                first.process.kill()
                await first.process.wait()
            async with serving(home, "--bus", "redis", **variables) as second:
                [workflow] = await second.ended([id], within_seconds=200)
                assert await second.end() == 0
    assert (workflow["status"], workflow["output"]["rounds"]) == ("SUCCESS", 2)
    assert (workflow["usage"]["model_calls"], entry.calls) == (8, 10)
