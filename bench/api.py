"""The API of `agent-team serve`, over HTTP on loopback: memory bus, embedded PostgreSQL, durable commits.

The client is a process of its own that writes requests by hand on connections that stay open, so that it is not what is measured.
Of what is started meanwhile one workflow at a time is at work: the figures are the API's, not the agents'.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median, quantiles
from time import perf_counter
from typing import Final

import psutil
import uvloop

_READERS: Final = 16
_WRITERS: Final = 32
_READS: Final = 4_000
_WRITES: Final = 1_000
_ROUNDS: Final = 3
_BRIEF: Final = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails? " * 10
_LENGTH: Final = re.compile(rb"content-length: (\d+)")
_MEASURE: Final = "import sys; from bench.api import measure; measure(int(sys.argv[1]), int(sys.argv[2]))"


class Connection:
    """One connection that stays open; one request at a time."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect to this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, request: bytes, *, status: bytes) -> bytes:
        """The body of the answer, which must have `status`."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        body = await self._reader.readexactly(int(length[1]))
        assert head[9:12] == status, head + body
        return body

    async def send_until_end(self, request: bytes) -> None:
        """Return when a stream of events has ended; the connection is of no more use then."""
        self._writer.write(request)
        await self._reader.readuntil(b"event: end")


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()


def _post(round: int, number: int) -> bytes:
    body = json.dumps({"workflow": "report", "input": {"brief": _BRIEF}})
    head = f"POST /v1/workflows HTTP/1.1\r\nhost: bench\r\nidempotency-key: {round}-{number}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()


async def _load(
    port: int, request: Callable[[int], bytes], *, count: int, connections: int, status: bytes
) -> tuple[float, list[float]]:
    """Requests a second, and how many milliseconds each took."""
    numbers: Iterator[int] = iter(range(count))
    took: list[float] = []

    async def send_in_turn(connection: Connection) -> None:
        for number in numbers:
            began = perf_counter()
            await connection.send(request(number), status=status)
            took.append((perf_counter() - began) * 1000)

    opened = [await Connection.open(port) for _ in range(connections)]
    began = perf_counter()
    await asyncio.gather(*(send_in_turn(connection) for connection in opened))
    return count / (perf_counter() - began), took


async def _figures(port: int, server: psutil.Process) -> dict[str, float]:
    connection = await Connection.open(port)
    workflow = json.loads(await connection.send(_post(-1, 0), status=b"202"))["id"]
    await connection.send_until_end(_get(f"/v1/workflows/{workflow}/events"))
    show = _get(f"/v1/workflows/{workflow}")
    before = _cpu_seconds(server)
    reads = [await _load(port, lambda _: show, count=_READS, connections=_READERS, status=b"200") for _ in range(_ROUNDS)]
    cpu = (_cpu_seconds(server) - before) / (_READS * _ROUNDS) * 1000
    alone = await _load(port, lambda _: show, count=500, connections=1, status=b"200")
    writes = [
        await _load(port, partial(_post, round), count=_WRITES, connections=_WRITERS, status=b"202") for round in range(_ROUNDS)
    ]
    alone_p50 = {"api.show_alone_p50_ms": median(alone[1]), "api.show_cpu_ms": cpu}
    return {**_named("show", reads), **alone_p50, **_named("submit", writes)}


def _cpu_seconds(process: psutil.Process) -> float:
    """What others on this machine do hardly changes it."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _named(name: str, rounds: list[tuple[float, list[float]]]) -> dict[str, float]:
    took = quantiles([one for _, times in rounds for one in times], n=100)
    return {
        f"api.{name}_per_second": median(rate for rate, _ in rounds),
        f"api.{name}_p50_ms": took[49],
        f"api.{name}_p99_ms": took[98],
    }


def measure(port: int, pid: int) -> None:
    """Ask the platform on `port`, whose process is `pid`, and print the figures as JSON."""
    print(json.dumps(uvloop.run(_figures(port, psutil.Process(pid)))))


@contextmanager
def _platform() -> Iterator[tuple[int, int]]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        environment = {
            **os.environ,
            "AGENT_TEAM_HOME": home,
            "MAX_CONCURRENT_PIPELINES": "1",
            "AGENT_BUS_PROVIDER": "memory",
            "API_RATE_PER_MINUTE": "100000000",
        }
        command = [sys.executable, "-m", "shared.cli", "serve", "--port", "0"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"ready on http://\S+:(\d+);", process.stdout.readline())
            assert found is not None, "it does not start"
            yield int(found[1]), process.pid
        finally:
            process.terminate()
            process.communicate()


def run() -> dict[str, float]:
    """Requests a second and milliseconds: showing a report of the team's, and starting one, durable at the answer."""
    with _platform() as (port, pid):
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(port), str(pid)], stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures
