"""A runtime over a real database, with a clock that tests move and a bus that remembers; and small workflows to run on it."""

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.ai import Model
from shared.bus import Bus
from shared.clock import ManualClock
from shared.config import load_settings
from shared.guards import open_guards
from shared.messages import Payload, StepDispatched, WorkflowFinished
from shared.runtime import Runtime
from shared.state import Event, WorkflowStore
from shared.state.postgres import PostgresCaller
from shared.workflows import Definition, parse_definition, requested
from tests.support.doubles import SECRET, WORKFLOW, RememberingBus, Stage

Nests = Mapping[str, Definition]
AGENTS = ("planner", "researcher", "writer", "critic", "judge", "coordinator")


@dataclass
class Live:
    """A runtime and what it stands on."""

    runtime: Runtime
    clock: ManualClock
    bus: RememberingBus
    store: WorkflowStore
    dsn: str

    def opened(self, *, topic: str | None = None) -> list[Payload]:
        """What was published (to `topic`), oldest first."""
        stage = Stage(clock=self.clock)
        return [stage.opened(message).data for message in self.bus.published if topic in (None, message.topic)]

    def dispatched(self) -> list[tuple[str, int]]:
        """Step and attempt of each dispatch, oldest first."""
        return [(one.step, one.attempt) for one in self.opened() if isinstance(one, StepDispatched)]

    def finished(self) -> list[WorkflowFinished]:
        """What was told of workflows' ends."""
        return [one for one in self.opened(topic="workflow-results") if isinstance(one, WorkflowFinished)]


@asynccontextmanager
async def live(
    database: str, home: Path, *, model: Model | None = None, bus: Bus | None = None, **variables: str
) -> AsyncIterator[Live]:
    """Everything opened; `variables` are settings by their environment names. The database's time is the clock's."""
    clock, remembering = ManualClock(), RememberingBus()
    settings = load_settings({"AGENT_TEAM_HOME": str(home), "COMM_HMAC_DEFAULT_SECRET": SECRET, **variables})
    store = WorkflowStore(PostgresCaller(database), max_running=settings.max_concurrent_pipelines, clock=clock)
    runtime = Runtime(
        settings,
        clock=clock,
        bus=remembering if bus is None else bus,
        guards=open_guards("memory", clock),
        store=store,
        model=model,
    )
    try:
        yield Live(runtime, clock, remembering, store, database)
    finally:
        await runtime.close()


def definition(
    steps: str, *, output: str | None = None, name: str = "small", nests: Nests | None = None, **fields: Any
) -> Definition:
    """A definition with `steps` as in YAML, indented at will; `nests` are those that it may nest."""
    head = f"name: {name}\nversion: 1\ndescription: A small one.\ninput: {fields.get('input', '{}')}\n"
    tail = "" if output is None else f'output: "{output}"\n'
    text = f"{head}steps:\n{textwrap.indent(textwrap.dedent(steps).strip(), '  ')}\n{tail}"
    return parse_definition(text, file=f"{name}.yaml", agents=AGENTS, others=lambda: nests or {})


def start(wanted: Definition, *, workflow: str = WORKFLOW, input: dict[str, Any] | None = None, **options: Any) -> Event:
    """The event that starts a run of it."""
    return requested(wanted, workflow=workflow, input={} if input is None else input, default_max_retries=3, **options)


def completed(step: str, *, attempt: int = 1, output: Any = None, workflow: str = WORKFLOW) -> Event:
    """The event that tells of an attempt's result."""
    usage = {"model_calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_microdollars": 7}
    return {
        "type": "step.completed",
        "workflow": workflow,
        "step": step,
        "attempt": attempt,
        "output": output,
        "usage": usage,
    }


def failed(step: str, *, attempt: int = 1, permanent: bool = False, workflow: str = WORKFLOW, **more: Any) -> Event:
    """The event that tells of an attempt's error."""
    about = {"workflow": workflow, "step": step, "attempt": attempt, "permanent": permanent}
    return {"type": "step.failed", **about, "error": {"type": "ModelUnavailable", "message": "no answer"}, **more}


async def until(condition: Callable[[], bool], *, within_seconds: float = 60.0) -> None:
    """Return once the condition holds; fail when it does not in time."""
    async with asyncio.timeout(within_seconds):
        while not condition():  # noqa: ASYNC110 - it may be about a database or another process
            await asyncio.sleep(0.002)
