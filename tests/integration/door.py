"""`advance` as its callers see it, the events that go in, and the whole state to look at."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import orjson

from shared.state import Command, Event

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
USAGE = {"model_calls": 1, "input_tokens": 20, "output_tokens": 10, "cost_microdollars": 5}
LEASE = timedelta(seconds=900)
"""How long a step of 300 s may take before it is started again."""
TABLES = (
    "workflows", "turns", "steps", "edges", "history", "signals", "dead_letters", "documents", "passages", "api_keys", "schedules",
)  # fmt: skip


class Door:
    """One connection to the state; `moment` stands still until a test moves it."""

    def __init__(self, connection: "asyncpg.Connection[asyncpg.Record]", *, max_running: int = 10) -> None:
        self.connection = connection
        self.moment = START
        self.max_running = max_running

    async def advance(self, *events: Event) -> list[Command]:
        """Apply a batch of events now."""
        commands: list[Command] = orjson.loads(
            await self.connection.fetchval(
                "select advance($1::text::jsonb, $2, $3)", orjson.dumps(events).decode(), self.max_running, self.moment
            )
        )
        return commands

    async def call(self, function: str, **arguments: Any) -> Any:
        """Another of the state's doors, now; dictionaries go in as JSON."""
        values = [orjson.dumps(value).decode() if isinstance(value, dict) else value for value in arguments.values()]
        casts = [
            f"{name} => ${n}{'::text::jsonb' if isinstance(value, dict) else ''}"
            for n, (name, value) in enumerate(arguments.items(), start=1)
        ]
        answer = await self.connection.fetchval(
            f"select {function}({', '.join(casts)}, moment => ${len(values) + 1})", *values, self.moment
        )
        return orjson.loads(answer) if isinstance(answer, str) else answer

    async def repeat(self, *events: Event) -> list[Command]:
        """Apply events that may change nothing, because they were applied before or come too late, and prove that they don't."""
        before = await self.dump()
        commands = await self.advance(*events)
        assert await self.dump() == before
        return commands

    def wait(self, delay: timedelta | float) -> None:
        """Let time pass: a timedelta or seconds."""
        self.moment += delay if isinstance(delay, timedelta) else timedelta(seconds=delay)

    async def workflow(self, workflow: str = "wf_1") -> dict[str, Any]:
        """What `get_workflow` shows."""
        shown: dict[str, Any] = orjson.loads(await self.connection.fetchval("select get_workflow($1)", workflow))
        return shown

    async def statuses(self, workflow: str = "wf_1") -> dict[str, str]:
        """The status of each step."""
        return {step["id"]: step["status"] for step in (await self.workflow(workflow))["steps"]}

    async def step(self, step: str, workflow: str = "wf_1") -> dict[str, Any]:
        """One step's row."""
        row = await self.connection.fetchrow("select * from steps where workflow_id = $1 and id = $2", workflow, step)
        assert row is not None
        return dict(row)

    async def history(self, workflow: str = "wf_1") -> list[dict[str, Any]]:
        """All that happened."""
        entries: list[dict[str, Any]] = orjson.loads(await self.connection.fetchval("select workflow_history($1)", workflow))
        return entries

    async def dump(self) -> dict[str, list[Any]]:
        """Every row of every table."""
        return {table: await self.connection.fetch(f"select * from {table} order by 1, 2") for table in TABLES}


def step(id: str, *needs: str, **more: Any) -> dict[str, Any]:
    """A step of a definition or, under its full id, a child."""
    defaults = {"spec": {"of": id}, "uses_input": False, "max_retries": 3, "timeout_seconds": 300.0, "on_failure": "fail"}
    return {"id": id, "agent": "worker", "needs": list(needs), **defaults, **more}


def requested(steps: Sequence[dict[str, Any]], workflow: str = "wf_1", **more: Any) -> Event:
    """A request for a workflow whose output is that of its last step."""
    defaults = {
        "request_key": None,
        "request_hash": "hash",
        "name": "report",
        "version": 1,
        "input": {"brief": "text"},
        "output": "{{ the output }}",
        "output_needs": [steps[-1]["id"]],
        "output_uses_input": False,
        "max_steps": None,
        "max_tokens": None,
        "max_cost_microdollars": None,
        "deadline_seconds": None,
        "priority": 0,
        "callback_url": None,
        "traceparent": None,
    }
    return {"type": "workflow.requested", "workflow": workflow, "steps": list(steps), **defaults, **more}


def completed(id: str, *, attempt: int = 1, workflow: str = "wf_1", output: Any = None, usage: Any = None, **more: Any) -> Event:
    """An agent's result; with `children` and `join` it spawns."""
    result = {"output": {"by": id} if output is None else output, "usage": USAGE if usage is None else usage}
    return {"type": "step.completed", "workflow": workflow, "step": id, "attempt": attempt, **result, **more}


def failed(id: str, *, attempt: int = 1, workflow: str = "wf_1", permanent: bool = False, **more: Any) -> Event:
    """An agent's error."""
    error = {"type": "ModelUnavailable", "message": "no answer"}
    about = {"workflow": workflow, "step": id, "attempt": attempt}
    return {"type": "step.failed", **about, "error": error, "permanent": permanent, **more}


def dead(id: str, *, attempt: int = 1, workflow: str = "wf_1") -> Event:
    """What the dead-letter function says of a step whose message nobody could handle."""
    error = {"type": "DeadLettered", "message": "no delivery to worker succeeded"}
    return {**failed(id, attempt=attempt, workflow=workflow, permanent=True), "error": error}


def redriven(id: str, *, attempt: int = 1, workflow: str = "wf_1") -> Event:
    """Somebody's wish that such a step is tried once more."""
    return {"type": "step.redriven", "workflow": workflow, "step": id, "attempt": attempt}


def deferred(id: str, not_before: datetime, *, attempt: int = 1, deferrals: int = 0, workflow: str = "wf_1", **more: Any) -> Event:
    """An agent that wants to start again later."""
    about = {"workflow": workflow, "step": id, "attempt": attempt, "deferrals": deferrals}
    return {"type": "step.deferred", **about, "not_before": not_before.isoformat(), "usage": USAGE, **more}


def skipped(id: str, *, attempt: int = 1, workflow: str = "wf_1") -> Event:
    """The dispatcher's decision that a step shall not run."""
    return {"type": "step.skipped", "workflow": workflow, "step": id, "attempt": attempt, "reason": "when"}


def waiting(id: str, *, attempt: int = 1, workflow: str = "wf_1", seconds: float | None = None, prompt: str | None = None) -> Event:
    """The dispatcher's word on what a step waits for, and how long."""
    shown = {"for": "approval", "name": id, "prompt": prompt}
    return {"type": "step.waiting", "workflow": workflow, "step": id, "attempt": attempt, "wait": shown, "seconds": seconds}


def signalled(name: str, signal: str = "signal-1", *, workflow: str = "wf_1", **more: Any) -> Event:
    """What somebody tells a step that waits; `signal` tells copies from other signals."""
    return {"type": "step.signalled", "workflow": workflow, "name": name, "signal": signal, **more}


def expanded(id: str, children: Iterable[dict[str, Any]], *, join: str | None = "*", workflow: str = "wf_1") -> Event:
    """The dispatcher's decision that a step is many."""
    return {"type": "step.expanded", "workflow": workflow, "step": id, "attempt": 1, "children": list(children), "join": join}


def children(parent: str, count: int, **more: Any) -> list[dict[str, Any]]:
    """`count` children that wait for nothing and inherit from their parent what `more` does not say."""
    return [{"id": f"{parent}/{n}", "agent": "worker", "needs": [], "spec": {"item": n}, **more} for n in range(count)]


def rendered(workflow: str = "wf_1", output: Any = "the output") -> Event:
    """The dispatcher's rendering of a workflow's output."""
    return {"type": "workflow.rendered", "workflow": workflow, "output": output}


def cancelled(workflow: str = "wf_1") -> Event:
    """Somebody's wish that a workflow stops."""
    return {"type": "workflow.cancelled", "workflow": workflow, "reason": "no longer needed"}


def paused(workflow: str = "wf_1", **more: Any) -> Event:
    """Somebody's wish that nothing more of a workflow starts; copies of one have the same `key`."""
    return {"type": "workflow.paused", "workflow": workflow, "by": "ann", **more}


def unpaused(workflow: str = "wf_1", **more: Any) -> Event:
    """Somebody's wish that it goes on."""
    return {"type": "workflow.unpaused", "workflow": workflow, "by": "bob", **more}


def tick(**more: Any) -> Event:
    """The sweeper's minute."""
    return {"type": "tick", **more}


def dispatches(commands: Iterable[Command]) -> list[tuple[str, int]]:
    """Step and attempt of each dispatch, sorted."""
    return sorted((command["step"], command["attempt"]) for command in commands if command["type"] == "dispatch")


def kinds(commands: Iterable[Command]) -> list[str]:
    """The types of the commands, sorted."""
    return sorted(command["type"] for command in commands)


def one(commands: Iterable[Command], kind: str) -> Command:
    """The only command of a type."""
    (command,) = (each for each in commands if each["type"] == kind)
    return command
