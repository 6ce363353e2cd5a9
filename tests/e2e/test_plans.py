"""Plans through every function: the coordinator plans, its colleagues work, with the offline model and with a simulated Gemini."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.ai import Model
from shared.ai.catalog import Limit
from shared.ai.offline import OfflineModel
from shared.bus import Bus
from shared.bus.chaos import Chaos
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.config import load_settings
from shared.local import Platform, open_platform
from shared.local.simulator import SimulatorSettings, open_simulator, served_models
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from tests.support.doubles import CountingModel
from tests.support.reports import brief

PLANNED = """
name: planned
version: 1
description: A plan with a plan in it.
input: {goal: {type: string, required: true}, brief: {type: string, required: true}}
budget: {max_steps: 30, max_tokens: 100000}
steps:
  - id: work
    pattern: plan
    with:
      goal: "{{ input.goal }}"
      material: "{{ input.brief }}"
      agents: [researcher, coordinator, writer]
      max_steps: 8
      max_depth: 2
"""
GOAL = "Say what happened and {{ why }}"


@asynccontextmanager
async def platform(
    database: str, home: Path, *, model: Model | None = None, bus: Bus | None = None, **variables: str
) -> AsyncIterator[Platform]:
    """A platform whose only workflow is a plan."""
    definitions = home / "workflows"
    definitions.mkdir(parents=True)
    (definitions / "planned.yaml").write_text(PLANNED)
    settings = load_settings({"AGENT_TEAM_HOME": str(home), "DATABASE_URL": database, **variables})
    runtime = Runtime(settings, clock=SystemClock(), model=model, bus=bus, workflows=definitions)
    async with open_platform(settings, runtime=runtime) as opened:
        yield opened


async def planned(on: Platform) -> dict[str, Any]:
    """What came of it."""
    workflow = await on.submit(WorkflowRequested(workflow="planned", input={"goal": GOAL, "brief": brief(0)}))
    async for _ in on.follow(workflow):
        pass
    return await on.runtime.store.get(workflow)


def check(workflow: dict[str, Any]) -> None:
    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    agents = {one["id"]: one["agent"] for one in workflow["steps"] if ":" not in one["agent"]}
    deeper = "work/do/coordinator"
    assert agents == {
        "work/plan": "coordinator",
        "work/do/researcher": "researcher",
        f"{deeper}/plan": "coordinator",
        f"{deeper}/do/researcher": "researcher",
        f"{deeper}/do/writer": "writer",
        "work/do/writer": "writer",
    }
    assert workflow["output"]["title"] == GOAL


async def written(database: str, home: Path, chaos: Chaos | None) -> tuple[dict[str, Any], Counter[str]]:
    bus, model = MemoryBus(SystemClock(), chaos=chaos), CountingModel(OfflineModel())
    async with platform(database, home, model=model, bus=bus) as opened:
        workflow = await planned(opened)
        await bus.idle()
    return workflow, Counter(model.prompts)


async def test_copies_and_disorder_repeat_no_call_of_a_plan(database: str, tmp_path: Path) -> None:
    calm, calm_calls = await written(database, tmp_path / "calm", None)
    wild, wild_calls = await written(database, tmp_path / "wild", Chaos(1, duplicates=3, reorder=True, delay_seconds_max=0.01))
    check(calm)
    check(wild)
    assert wild["output"] == calm["output"]
    assert wild_calls == calm_calls
    assert wild_calls.total() == wild["usage"]["model_calls"] == 6


@pytest.mark.timeout(120)
async def test_a_simulated_gemini_plans_too(database: str, tmp_path: Path) -> None:
    plenty = {model: Limit(qps=1000, burst=1000) for model in served_models()}
    async with (
        open_simulator(SimulatorSettings(models=plenty)) as simulator,
        platform(database, tmp_path, GEMINI_API_KEY="AIza-some-key", GEMINI_BASE_URL=simulator.url, AI_RATE_QPS="1000") as opened,
    ):
        workflow = await planned(opened)
    check(workflow)
