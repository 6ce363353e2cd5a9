"""A platform with one agent that does nothing, on a real database: what is left is the platform's own cost."""

import asyncio
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from shared.ai.offline import OfflineModel
from shared.config import Settings
from shared.ids import workflow_id
from shared.messages import WorkflowRequested
from shared.runtime import Result, Runtime, Task, Team
from shared.runtime.joining import join, tune_collector
from shared.runtime.pipeline import Pipeline
from shared.runtime.requests import request_event
from shared.runtime.spec import FunctionSpec, Trigger
from shared.runtime.team import AgentWork, ModelSettings
from shared.state import migrations
from shared.telemetry import configure_logging
from shared.workflows import Definition, parse_definition

KILOBYTE = "All work and no play makes the platform a dull machine. " * 18


def chain(name: str, length: int) -> Definition:
    """A workflow of `length` steps, each of which hands its input on."""
    steps = ['  - {id: s0, agent: noop, input: {text: "{{ input.text }}"}}']
    for index in range(1, length):
        steps.append(
            f'  - {{id: s{index}, agent: noop, needs: [s{index - 1}], input: {{text: "{{{{ steps.s{index - 1}.output.text }}}}"}}}}'
        )
    return _parsed(name, steps)


def fan(name: str, width: int) -> Definition:
    """1 → `width` → 1."""
    wide = [f'  - {{id: w{index}, agent: noop, needs: [first], input: {{text: "."}}}}' for index in range(width)]
    needs = ", ".join(f"w{index}" for index in range(width))
    return _parsed(
        name,
        [
            '  - {id: first, agent: noop, input: {text: "{{ input.text }}"}}',
            *wide,
            f'  - {{id: last, agent: noop, needs: [{needs}], input: {{text: "."}}}}',
        ],
    )


def _parsed(name: str, steps: list[str]) -> Definition:
    text = "\n".join([f"name: {name}", "version: 1", "input: {text: {type: string, required: true}}", "steps:", *steps])
    return parse_definition(text, file=f"{name}.yaml", agents={"noop"})


@dataclass
class World:
    """The platform, and when each attempt of the agent began."""

    runtime: Runtime
    starts: list[float] = field(default_factory=list)

    async def run(self, definition: Definition, *, count: int = 1) -> float:
        """Run `count` workflows at once to their end; seconds from the first submit to the last end."""
        self.starts.clear()
        self.runtime.definitions[definition.name] = definition
        dispatcher = self.runtime.dispatcher("bench")
        wanted = WorkflowRequested(workflow=definition.name, input={"text": KILOBYTE})
        ids = [workflow_id(self.runtime.clock.now()) for _ in range(count)]
        events = [request_event(self.runtime, wanted, workflow=one) for one in ids]
        started = perf_counter()
        await asyncio.gather(*(dispatcher.apply([event]) for event in events))
        await self.runtime.bus.idle()  # type: ignore[attr-defined]  # the memory bus can tell
        seconds = perf_counter() - started
        statuses = [one["status"] for one in await self.runtime.store.recent(name=definition.name, limit=count)]
        assert statuses == ["SUCCESS"] * count, statuses
        return seconds


@asynccontextmanager
async def open_world() -> AsyncIterator[World]:
    """Everything on, as `serve` has it: signatures, claims, durable commits, JSON logs at info into a file."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        with (home / "log").open("w", encoding="utf-8") as log:
            handler = configure_logging("info", stream=log)
            runtime = Runtime(Settings(agent_team_home=home, max_concurrent_pipelines=100_000), model=OfflineModel())
            await migrations.migrate(runtime.database_url)
            world = World(runtime)
            runtime.definitions.clear()
            await join_noop(runtime, starts=world.starts)
            await join(runtime, ["orchestrator"])
            tune_collector()
            try:
                yield world
            finally:
                await runtime.close()
                logging.getLogger().removeHandler(handler)


async def join_noop(runtime: Runtime, *, starts: list[float]) -> None:
    """Join an agent to the runtime's bus that only notes in `starts` when each attempt began."""

    async def noop(task: Task, team: Team) -> Result:
        starts.append(perf_counter())
        return Result(output=task.input)

    spec = FunctionSpec(name="noop", description="Does nothing.", triggers=(Trigger(topic="agent-noop"),))
    work = AgentWork(
        "noop",
        noop,
        prompt=None,
        model=runtime.model,
        settings=ModelSettings(temperature=0, max_tokens=1),
        sender=runtime.sender("noop"),
        clock=runtime.clock,
        limiter=runtime.guards.limiter,
        cancellations=runtime.cancellations,
        progress=runtime.progress,
        longest_seconds=spec.timeout_seconds,
    )
    agent = Pipeline(runtime.link, "noop", work, longest_seconds=spec.ack_deadline_seconds, keeps_reply=True)
    await runtime.bus.subscribe(spec.subscriptions()[0], agent)


__all__ = ["KILOBYTE", "World", "chain", "fan", "join_noop", "open_world"]
