"""The model gateway against a Gemini that fails as the real one does: over HTTP, with everything in between."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.ai import Model, Request, open_model
from shared.ai.catalog import Limit
from shared.ai.opening import Gateway
from shared.bus.memory import MemoryBus
from shared.clock import Clock, ManualClock, SystemClock
from shared.config import load_settings
from shared.errors import ModelRefused, ModelUnavailable
from shared.guards import open_guards
from shared.local import Platform, open_platform
from shared.local.simulator import Fault, Kind, Simulator, SimulatorSettings, open_simulator
from shared.messages import Budget, WorkflowRequested
from shared.runtime import Runtime
from shared.workflows import Definition
from tests.support.live import definition, until
from tests.support.reports import brief
from tests.support.servers import redis_server

MODEL, SPARE = "gemini-2.5-flash", "gemini-2.5-flash-lite"
KEY = "AIza-of-the-simulator"
PLENTY = {name: Limit(qps=10_000, burst=10_000) for name in (MODEL, SPARE)}
ASKED = Request(prompt="What is it?", max_tokens=100, timeout_seconds=120)


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with open_simulator(SimulatorSettings(models=PLENTY, keys=frozenset({KEY}))) as opened:
        yield opened


@pytest.fixture(params=["memory", "redis"])
def guards(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """Where the guards live."""
    with ExitStack() as stack:
        yield {} if request.param == "memory" else {"REDIS_URL": stack.enter_context(redis_server()).url}


def variables(simulator: Simulator) -> dict[str, str]:
    return {
        "GEMINI_API_KEY": KEY,
        "GEMINI_BASE_URL": simulator.url,
        "AI_MODEL_DEFAULT": MODEL,
        "AI_MODEL_FALLBACKS": SPARE,
        "AI_RATE_QPS": "1000",
        "AI_MAX_TOKENS": "1024",
        "MAX_CONCURRENT_PIPELINES": "100",
    }


@asynccontextmanager
async def asking(
    simulator: Simulator, clock: Clock | None = None, *, key: str = KEY, models: tuple[str, ...] = (MODEL, SPARE)
) -> AsyncIterator[Model]:
    """The gateway on its own."""
    clock = SystemClock() if clock is None else clock
    model = open_model(
        gemini_api_key=key,
        models=models,
        guards=open_guards("memory", clock),
        clock=clock,
        gemini_base_url=simulator.url,
        qps=1000,
        qps_given=True,
    )
    yield model
    assert isinstance(model, Gateway)
    await model.close()


@asynccontextmanager
async def platform_of(
    simulator: Simulator, database: str, home: Path, guards: dict[str, str] | None = None
) -> AsyncIterator[Platform]:
    """The platform, with its guards in memory or on Redis."""
    where = {"GUARDS_BACKEND": "memory"} if not guards else {"GUARDS_BACKEND": "redis", **guards}
    given = {**variables(simulator), **where, "AGENT_TEAM_HOME": str(home), "DATABASE_URL": database}
    settings = load_settings(given)
    async with open_platform(settings, runtime=Runtime(settings)) as opened:
        yield opened


def planners(count: int, *, step: str = "") -> Definition:
    """So many planners at once."""
    planner = f'- {{{{id: p{{}}, agent: planner, input: {{{{brief: "{{{{{{{{ input.brief }}}}}}}}"}}}}{step}}}}}'
    return definition("\n".join(planner.format(n) for n in range(count)), input="{brief: {type: string, required: true}}")


async def started(on: Platform, wanted: Definition, *, number: int = 0, budget: Budget | None = None) -> str:
    on.runtime.definitions[wanted.name] = wanted
    given = {"brief": brief(number)[:1500]}
    return await on.submit(WorkflowRequested(workflow=wanted.name, input=given, budget=Budget() if budget is None else budget))


async def ended(on: Platform, workflow: str) -> dict[str, Any]:
    async for _ in on.follow(workflow):
        pass
    return await on.runtime.store.get(workflow)


async def idle(on: Platform) -> None:
    """Return once nothing is on the bus any more."""
    assert isinstance(on.runtime.bus, MemoryBus)
    await on.runtime.bus.idle()


# What is asked, and how often


async def test_a_refused_key_is_shown_once(simulator: Simulator) -> None:
    async with asking(simulator, key="AIza-of-somebody-else") as model:
        with pytest.raises(ModelRefused, match="GEMINI_API_KEY"):
            await model.generate(ASKED)
    assert simulator.ledger.refused.total() == 1
    assert simulator.ledger.calls == 0


@pytest.mark.parametrize("kind", [Kind.DEADLINE, Kind.DROPPED, Kind.UNAVAILABLE])
async def test_what_fails_in_passing_is_asked_four_times_after_the_promised_delays(simulator: Simulator, kind: Kind) -> None:
    rounds = []
    for _ in range(2):
        simulator.reset()
        simulator.fail(Fault(kind=kind, next=4))
        async with asking(simulator, models=(MODEL,)) as model:
            with pytest.raises(ModelUnavailable):
                await model.generate(ASKED)
        rounds.append([later - earlier for earlier, later in itertools.pairwise(simulator.ledger[MODEL].arrivals)])
    assert [len(gaps) for gaps in rounds] == [3, 3]
    # A machine that is busy with something else makes a gap longer, never shorter.
    gaps = [min(pair) for pair in zip(*rounds, strict=True)]
    assert gaps == [pytest.approx(seconds, rel=0.2) for seconds in (0.2, 0.4, 0.8)]


async def test_the_servers_own_delay_counts_when_it_is_longer(simulator: Simulator) -> None:
    simulator.fail(Fault(kind=Kind.RATE_LIMITED, next=1, retry_after_seconds=0.6))
    simulator.fail(Fault(kind=Kind.RATE_LIMITED, next=1, retry_after_seconds=0.1))
    async with asking(simulator, models=(MODEL,)) as model:
        await model.generate(ASKED)
    gaps = [later - earlier for earlier, later in itertools.pairwise(simulator.ledger[MODEL].arrivals)]
    assert gaps == [pytest.approx(seconds, rel=0.2) for seconds in (0.6, 0.4)]


async def test_the_first_model_is_down_for_a_while(simulator: Simulator) -> None:
    clock = ManualClock()
    async with asking(simulator, clock) as model:
        first, spare = simulator.ledger[MODEL], simulator.ledger[SPARE]

        async def ask() -> str:
            """Which model answers."""
            answering = asyncio.create_task(model.generate(ASKED))
            async with asyncio.timeout(10):
                while not answering.done():
                    await asyncio.sleep(0.001)
                    # Only the pauses between calls are slept on this clock.
                    await clock.advance(0.8 if clock.sleepers else 0)
            return answering.result().model

        simulator.fail(Fault(kind=Kind.UNAVAILABLE, next=6), model=MODEL)
        assert [await ask() for _ in range(2)] == [SPARE] * 2
        assert first.calls == 5, "four calls, and one more opened the breaker"
        assert [await ask() for _ in range(10)] == [SPARE] * 10
        assert first.calls == 5, "while it is open the model is left alone"
        await clock.advance(30)
        assert [await ask() for _ in range(3)] == [SPARE] * 3
        assert first.calls == 6, "one probe"

        await clock.advance(30)
        assert [await ask() for _ in range(4)] == [MODEL] * 4
        assert first.calls == 10
        simulator.fail(Fault(kind=Kind.UNAVAILABLE, next=1), model=MODEL)
        assert await ask() == MODEL, "closed after two successes: one failure is none"
        assert spare.calls == 15


async def test_steps_finish_on_the_next_model(simulator: Simulator, database: str, tmp_path: Path) -> None:
    simulator.fail(Fault(kind=Kind.INTERNAL, probability=1), model=MODEL)
    async with platform_of(simulator, database, tmp_path) as opened:
        workflow = await ended(opened, await started(opened, planners(10)))
    assert (workflow["status"], set(workflow["models"])) == ("SUCCESS", {SPARE})
    assert {step["attempt"] for step in workflow["steps"]} == {1}
    assert simulator.ledger[MODEL].calls <= 5 + 9, "at most what was under way when the breaker opened"


# Money


LARGEST_CALL_TOKENS = 2_000


async def test_a_hundred_workflows_never_spend_more_than_they_may(
    simulator: Simulator, database: str, tmp_path: Path, guards: dict[str, str]
) -> None:
    chance = random.Random(7)
    caps = [round(chance.uniform(0.002, 0.03), 6) for _ in range(100)]
    for kind in (Kind.INTERNAL, Kind.DROPPED, Kind.BAD_OUTPUT, Kind.MAX_TOKENS):
        simulator.fail(Fault(kind=kind, probability=0.01))
    async with platform_of(simulator, database, tmp_path, guards) as on:
        wanted = planners(8)
        ids = [await started(on, wanted, number=number, budget=Budget(max_cost_usd=cap)) for number, cap in enumerate(caps)]
        for one in ids:
            await ended(on, one)
        await idle(on)
        workflows = [await on.runtime.store.get(one) for one in ids]

    for workflow, cap in zip(workflows, caps, strict=True):
        assert workflow["usage"]["cost_microdollars"] <= cap * 1_000_000
        assert workflow["status"] in ("SUCCESS", "FAILED")
    errors = Counter(workflow["error"]["type"] for workflow in workflows if workflow["status"] == "FAILED")
    # Of a thousand answers a few are of no use twice in a row.
    assert errors.keys() <= {"BudgetExceeded", "OutputInvalid", "OutputTruncated"}
    assert 10 <= errors["BudgetExceeded"] <= 90, "caps that all or none can keep prove nothing"
    cut_off = sum(step["status"] == "CANCELLED" and step["attempt"] > 0 for workflow in workflows for step in workflow["steps"])
    for field, counted in (("input_tokens", ("input_tokens",)), ("output_tokens", ("output_tokens", "thinking_tokens"))):
        recorded = sum(workflow["usage"][field] for workflow in workflows)
        spent = sum(getattr(simulator.ledger[model], name) for model in (MODEL, SPARE) for name in counted)
        # A call that the end of its workflow cut off is paid for, and nobody hears of its tokens.
        assert 0 <= spent - recorded <= cut_off * LARGEST_CALL_TOKENS


# Time


async def test_a_hanging_service_holds_no_step_beyond_its_time(simulator: Simulator, database: str, tmp_path: Path) -> None:
    simulator.fail(Fault(kind=Kind.HANGING, probability=1))
    async with platform_of(simulator, database, tmp_path) as on:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        workflow = await ended(on, await started(on, planners(3, step=", timeout_seconds: 1, max_retries: 0")))
        seconds = loop.time() - begun
    assert (workflow["status"], workflow["error"]["type"]) == ("FAILED", "Transient")
    assert 1 <= seconds < 2
    await until(lambda: simulator.ledger[MODEL].in_flight == 0)


async def test_cancelling_stops_calls_within_a_second_and_makes_no_other(
    simulator: Simulator, database: str, tmp_path: Path, guards: dict[str, str]
) -> None:
    simulator.fail(Fault(kind=Kind.HANGING, probability=1))
    seen = simulator.ledger[MODEL]
    async with platform_of(simulator, database, tmp_path, guards) as on:
        # Some are asked, the others wait for a place.
        workflow = await started(on, planners(30))
        await until(lambda: seen.in_flight >= 8)
        await on.runtime.dispatcher("gateway").apply([{"type": "workflow.cancelled", "workflow": workflow, "reason": ""}])
        calls = seen.calls
        await until(lambda: seen.in_flight == 0, within_seconds=1)
        await idle(on)
        document = await on.runtime.store.get(workflow)
    assert document["status"] == "CANCELLED"
    assert (seen.calls, simulator.ledger.calls) == (calls, calls)
