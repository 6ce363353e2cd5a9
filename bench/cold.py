"""Cold starts: from the start of a process of functions-framework until its first message or request is answered.

An agent and the orchestrator are pushed a signed message, the gateway is asked for a workflow. Guards and bus are on Redis, the
state is on PostgreSQL, the model is the offline one. COLD_PACKAGES names a folder with what requirements-cloud.txt lists, as the
image has it; without it the packages of this interpreter are used.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from statistics import median
from time import perf_counter, sleep
from typing import Any

import uvloop

from shared.clock import SystemClock
from shared.ids import workflow_id
from shared.messages import StepCompleted
from shared.state import embedded, migrations
from tests.support.doubles import SECRET, sender
from tests.support.pushes import dispatch_for_writer, raw_push
from tests.support.reports import database_home
from tests.support.servers import free_port, redis_server

_ROOT = Path(__file__).parents[1]
_REPEATS = 5
_START_SECONDS = 60.0
_FUNCTIONS = ("writer", "orchestrator", "gateway")
_BYTECODE = ("none", "packages", "all")
"""What is compiled beforehand: nothing; packages and project, but not Python's own library; all of it."""


@dataclass(frozen=True)
class _Ground:
    """What every process stands on."""

    home: Path
    variables: dict[str, str]
    bytecode: dict[str, Path]
    """Folders that stand for __pycache__."""


def run() -> dict[str, float]:
    """Medians in milliseconds, `<function>_<what is compiled>_ms`, and `…_cpu_ms`, what it works of that until it has ended.

    Rounds are interleaved, since a machine's speed drifts; where others work on it too, CPU time is the one to believe.
    """
    with _ground() as ground:
        rounds = []
        for number in range(_REPEATS):
            rounds.append({(name, what): _measured(ground, name, what) for name in _FUNCTIONS for what in _BYTECODE})
            print(f"  round {number + 1} of {_REPEATS}", file=sys.stderr)
    figures = {}
    for name in _FUNCTIONS:
        for what in _BYTECODE:
            for index, unit in enumerate(("ms", "cpu_ms")):
                figures[f"{name}_{what}_{unit}"] = round(median(one[name, what][index] for one in rounds), 1)
    return figures


@contextmanager
def _ground() -> Iterator[_Ground]:
    with database_home() as home, redis_server() as redis, tempfile.TemporaryDirectory() as cache:
        database = embedded.start(home / "postgres")
        uvloop.run(migrations.migrate(database))
        packages = os.environ.get("COLD_PACKAGES", sysconfig.get_path("purelib"))
        variables = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join([packages, str(_ROOT)]),
            "AGENT_TEAM_HOME": str(home / "function"),
            "AGENT_BUS_PROVIDER": "redis",
            "COMM_HMAC_DEFAULT_SECRET": SECRET,
            "DATABASE_URL": database,
            "REDIS_URL": redis.url,
        }
        ground = _Ground(home, variables, {what: Path(cache) / what for what in _BYTECODE})
        for name in _FUNCTIONS:
            # Not measured: it leaves the bytecode behind that the others find.
            _measured(ground, name, "all", compiles=True)
        shutil.copytree(ground.bytecode["all"], ground.bytecode["packages"])
        own = Path(sysconfig.get_path("stdlib"))
        shutil.rmtree(ground.bytecode["packages"] / own.relative_to("/"), ignore_errors=True)
        yield ground


def _measured(ground: _Ground, name: str, what: str, *, compiles: bool = False) -> tuple[float, float]:
    port = free_port()
    # -S: no packages but those that are named.
    command = [sys.executable, "-S", "-m", "functions_framework", "--source", str(_ROOT / "main.py")]
    environment = ground.variables | {"FUNCTION_TARGET": name, "PYTHONPYCACHEPREFIX": str(ground.bytecode[what])}
    if not compiles:
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    path, body, expected = _first(name)
    before = getrusage(RUSAGE_CHILDREN)
    with (ground.home / "function.log").open("wb") as log:
        started = perf_counter()
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], cwd=ground.home, env=environment, stdout=log, stderr=log
        )
        try:
            status = _answer(process, port, path, body)
            milliseconds = (perf_counter() - started) * 1000
        finally:
            process.terminate()
            process.wait(timeout=30)
    assert status == expected, (ground.home / "function.log").read_text()
    after = getrusage(RUSAGE_CHILDREN)
    return milliseconds, (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000


def _first(name: str) -> tuple[str, dict[str, Any], int]:
    """Path, body and expected status of the first thing that a function is asked."""
    clock = SystemClock()
    if name == "gateway":
        return "/v1/workflows", {"workflow": "report", "input": {"brief": "Ferries to Oban."}}, 202
    if name == "writer":
        return "/", raw_push(dispatch_for_writer(clock), "agent-writer.writer"), 204
    workflow = workflow_id(clock.now())
    done = StepCompleted(workflow=workflow, step="plan", attempt=1, output={})
    subject = f"{workflow}/plan"
    message = sender("planner", clock).message("workflow-events", done, id=subject, subject=subject, workflow=workflow)
    return "/", raw_push(message, "workflow-events.orchestrator"), 204


def _answer(process: "subprocess.Popen[bytes]", port: int, path: str, body: dict[str, Any]) -> int:
    """The status with which it answers, once it takes connections."""
    until = perf_counter() + _START_SECONDS
    while process.poll() is None and perf_counter() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
        try:
            connection.connect()
        except ConnectionRefusedError:
            sleep(0.002)
            continue
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        status = connection.getresponse().status
        connection.close()
        return status
    return 0
