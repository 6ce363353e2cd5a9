"""`agent-team worker`: real processes on a real Redis and a real PostgreSQL."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from shared.bus import Message
from shared.config import load_settings
from shared.ids import workflow_id
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from shared.runtime.requests import request_event
from tests.support.doubles import SECRET
from tests.support.library import AGENTS
from tests.support.reports import brief
from tests.support.servers import RedisServer, free_port, redis_server

ROOT = Path(__file__).parents[2]
TEAM = ("planner", "researcher", "writer", "critic", "judge")
BACKLOG = 'bus_backlog{subscription="workflow-events.orchestrator"}'
SETTLED = (
    'bus_oldest_unacked_seconds{subscription="workflow-events.orchestrator"} 0.0',
    'envelope_rejected_total{reason="key"} 1.0',
)
_START_SECONDS = 60.0


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server("--appendonly", "yes") as one:
        yield one


class Worker:
    """One `agent-team worker`. What it logs goes to a file."""

    def __init__(self, folder: Path, environment: dict[str, str], *functions: str) -> None:
        self.log = folder / f"worker-{'-'.join(functions)}-{time.monotonic_ns()}.log"
        options = [word for name in functions for word in (name.split("=") if name.startswith("--") else ("--function", name))]
        command = [sys.executable, "-m", "shared.cli", "worker", *options]
        process = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENT_TEAM_HOME": str(folder / "home")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env={**process, **environment}, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=log
            )

    def wait_until_ready(self) -> str:
        """The line that it prints then."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _START_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        assert line, self.log.read_text()
        return line.strip()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> tuple[int, float]:
        """Its exit code, and how long it took."""
        began = time.monotonic()
        self.process.send_signal(how)
        self.process.communicate(timeout=30)
        return self.process.returncode, time.monotonic() - began

    def lines(self) -> list[dict[str, Any]]:
        """What it logged."""
        return [orjson.loads(line) for line in self.log.read_bytes().splitlines()]


Start = Callable[..., Worker]


@pytest.fixture
def start(server: RedisServer, database: str, tmp_path: Path) -> Iterator[Start]:
    """Start a worker for functions; `environment` comes on top of what it needs."""
    workers: list[Worker] = []

    def one(*functions: str, **environment: str) -> Worker:
        workers.append(Worker(tmp_path, variables(server, database) | environment, *functions))
        return workers[-1]

    yield one
    for worker in workers:
        worker.process.kill()
        worker.process.communicate()


def variables(server: RedisServer, database: str) -> dict[str, str]:
    return {
        "AGENT_BUS_PROVIDER": "redis",
        "REDIS_URL": server.url,
        "DATABASE_URL": database,
        "COMM_HMAC_DEFAULT_SECRET": SECRET,
    }


@asynccontextmanager
async def client(server: RedisServer, database: str, home: Path) -> AsyncIterator[Runtime]:
    """What submits workflows, and looks at them."""
    live = Runtime(load_settings({**variables(server, database), "AGENT_TEAM_HOME": str(home)}))
    try:
        yield live
    finally:
        await live.close()


async def submit(live: Runtime, count: int) -> list[str]:
    ids = [workflow_id(live.clock.now()) for _ in range(count)]
    requests = [WorkflowRequested(workflow="report", input={"brief": brief(number)}) for number in range(count)]
    await live.dispatcher("test").apply(
        [request_event(live, wanted, workflow=id) for wanted, id in zip(requests, ids, strict=True)]
    )
    return ids


async def ended(live: Runtime, ids: list[str], *, within_seconds: float = 90.0) -> list[dict[str, Any]]:
    async with asyncio.timeout(within_seconds):
        while True:
            workflows = [await live.store.get(id) for id in ids]
            if all(one["finished_at"] is not None for one in workflows):
                return workflows
            await asyncio.sleep(0.05)


async def test_a_report_is_written_by_two_workers_one_of_agents_and_one_of_the_orchestrator(
    server: RedisServer, database: str, tmp_path: Path, start: Start
) -> None:
    agents, orchestrator = start(*TEAM), start("orchestrator")
    ready = [await asyncio.to_thread(worker.wait_until_ready) for worker in (agents, orchestrator)]
    async with client(server, database, tmp_path / "home") as live:
        [report] = await ended(live, await submit(live, 1))

    assert report["status"] == "SUCCESS"
    assert ready == [f"agent-team worker is ready for {', '.join(TEAM)}", "agent-team worker is ready for orchestrator"]
    for worker in (agents, orchestrator):
        code, seconds = await asyncio.to_thread(worker.stop)
        assert code == 0
        assert seconds < 10
        assert worker.lines(), "the worker logs nothing"
        assert not [line for line in worker.lines() if line["level"] in ("warn", "error")]


async def test_a_worker_shows_how_far_it_is_behind(server: RedisServer, database: str, tmp_path: Path, start: Start) -> None:
    port = free_port()
    worker = start("orchestrator", f"--metrics-port={port}", HOST="127.0.0.1")
    await asyncio.to_thread(worker.wait_until_ready)
    async with client(server, database, tmp_path / "home") as live, httpx.AsyncClient() as http:
        await submit(live, 1)
        await live.bus.publish([Message("workflow-events", b"not to be trusted")])
        shown = ""
        async with asyncio.timeout(30):
            while not all(line in shown for line in (BACKLOG, *SETTLED)):
                await asyncio.sleep(0.05)
                shown = await scraped(http, port)

    other = start("planner", f"--metrics-port={port}", HOST="127.0.0.1")
    assert await asyncio.to_thread(other.process.wait, 30) == 2
    assert f"metrics cannot be served on 127.0.0.1:{port} (Address already in use)" in other.log.read_text()


async def scraped(http: httpx.AsyncClient, port: int) -> str:
    return (await http.get(f"http://127.0.0.1:{port}/metrics")).text


async def test_workers_that_are_ended_under_load_lose_nothing(
    server: RedisServer, database: str, tmp_path: Path, start: Start
) -> None:
    workers = [start(), start()]
    for worker in workers:
        await asyncio.to_thread(worker.wait_until_ready)
    async with client(server, database, tmp_path / "home") as live:
        ids = await submit(live, 30)
        for round in range(3):
            await progress(live, 30 * (round + 1))
            code, seconds = await asyncio.to_thread(workers.pop(0).stop)
            assert (code, seconds < 10) == (0, True)
            workers.append(start())
            await asyncio.to_thread(workers[-1].wait_until_ready)
        reports = await ended(live, ids)

    assert {report["status"] for report in reports} == {"SUCCESS"}
    assert {step["attempt"] for report in reports for step in report["steps"]} <= {0, 1}


async def progress(live: Runtime, steps: int) -> None:
    """Wait until so many steps of all workflows have ended."""
    async with asyncio.timeout(60):
        while True:
            workflows = [await live.store.get(one["id"]) for one in await live.store.recent(limit=100)]
            if sum(step["status"] == "SUCCESS" for one in workflows for step in one["steps"]) >= steps:
                return
            await asyncio.sleep(0.02)


async def test_without_functions_it_works_for_all_that_messages_set_off(start: Start) -> None:
    line = await asyncio.to_thread(start().wait_until_ready)

    ready = sorted([*AGENTS, "dead_letter", "intake", "key_rotator", "orchestrator", "webhook"])
    assert line == f"agent-team worker is ready for {', '.join(ready)}"


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_second_signal_ends_it_at_once(start: Start, server: RedisServer, signals: int) -> None:
    worker = start("planner")
    await asyncio.to_thread(worker.wait_until_ready)
    os.kill(server.pid, signal.SIGSTOP)  # so that ending in order takes seconds
    began = time.monotonic()
    if signals == 2:
        worker.process.send_signal(signal.SIGINT)
        await asyncio.sleep(0.3)  # two signals of one kind at once are one
    code, _ = await asyncio.to_thread(worker.stop, signal.SIGINT)
    seconds = time.monotonic() - began

    assert code == 0
    assert seconds < 1.5 if signals == 2 else 1.5 < seconds < 10


@pytest.mark.parametrize(
    ("functions", "environment", "said"),
    [
        (("nobody",), {}, "nobody is no function; a worker can work for: chronicler, coordinator, critic, "),
        (("gateway",), {}, "gateway is not set off by messages; a worker can work for"),
        ((), {"AGENT_BUS_PROVIDER": "memory"}, "AGENT_BUS_PROVIDER is memory; a worker consumes the Redis bus"),
        ((), {"REDIS_URL": ""}, "REDIS_URL is needed because AGENT_BUS_PROVIDER is redis"),
        (("planner",), {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, "Redis at redis://127.0.0.1:1/0 cannot be reached"),
        (("planner", "orchestrator"), {"DATABASE_URL": ""}, "DATABASE_URL is not set, and orchestrator cannot work without"),
    ],
)
def test_what_is_missing_is_told_in_one_line(
    start: Start, functions: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    worker = start(*functions, **environment)
    assert (worker.process.wait(_START_SECONDS), worker.process.stdout and worker.process.stdout.read()) == (2, "")
    [line] = worker.log.read_text().splitlines()
    assert line.startswith(f"error: {said}")
    assert "secret" not in line


def test_a_database_without_the_schema_is_refused_where_a_function_uses_it(start: Start, empty_database: str) -> None:
    worker = start("orchestrator", DATABASE_URL=empty_database)
    assert worker.process.wait(_START_SECONDS) == 2
    assert "run `agent-team migrate`" in worker.log.read_text()
