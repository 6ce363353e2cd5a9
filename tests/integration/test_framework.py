"""Functions as the cloud runs them: real processes of functions-framework, told by the environment which function they are."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.bus import Message
from shared.clock import SystemClock
from tests.support.doubles import SECRET
from tests.support.pushes import dispatch_for_writer, raw_push
from tests.support.servers import free_port

ROOT = Path(__file__).parents[2]


@dataclass
class Serving:
    """A process of functions-framework."""

    url: str
    log: Path
    process: "subprocess.Popen[bytes]"

    async def post(self, body: Any) -> httpx.Response:
        async with await self._client() as client:
            return await client.post("/", json=body)

    async def get(self, path: str) -> httpx.Response:
        async with await self._client() as client:
            return await client.get(path)

    def lines(self) -> list[dict[str, Any]]:
        """What it has logged as JSON."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    async def _client(self) -> httpx.AsyncClient:
        """A client, once the process listens."""
        host, _, port = self.url.removeprefix("http://").partition(":")
        async with asyncio.timeout(90):
            while True:
                assert self.process.poll() is None, self.log.read_text()
                try:
                    _, writer = await asyncio.open_connection(host, int(port))
                except OSError:
                    await asyncio.sleep(0.02)
                    continue
                writer.close()
                return httpx.AsyncClient(base_url=self.url, timeout=30)


@contextmanager
def serving(function: str, folder: Path, **variables: str) -> Iterator[Serving]:
    """`FUNCTION_TARGET=<function> functions-framework --port N`, ended in order."""
    port = free_port()
    program = Path(sys.executable).parent / "functions-framework"
    command = [str(program), "--source", str(ROOT / "main.py"), "--host", "127.0.0.1", "--port", str(port)]
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = {
        **inherited,
        "FUNCTION_TARGET": function,
        "COMM_HMAC_DEFAULT_SECRET": SECRET,
        "AGENT_TEAM_HOME": str(folder / "home"),
        **variables,
    }
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield Serving(f"http://127.0.0.1:{port}", log, process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


async def test_the_writer_answers_pushes_in_a_process_of_its_own(tmp_path: Path) -> None:
    message = dispatch_for_writer(SystemClock())
    altered = Message(message.topic, message.data.replace(b"Oban", b"Skye"), message.attributes)
    with serving("writer", tmp_path) as writer:
        # Under the framework's synchronous decorator a coroutine would answer 200 and never run.
        assert (await writer.post(raw_push(message, "agent-writer.writer"))).status_code == 204
        done = [line for line in writer.lines() if line.get("status") == "completed"]
        assert [(line["step"], line["agent"]) for line in done] == [("draft", "writer")]

        assert (await writer.post(raw_push(altered, "agent-writer.writer"))).status_code == 204
        (rejected,) = [line for line in writer.lines() if line.get("status") == "rejected"]
        assert rejected["reason"] == "signature"
        assert "Skye" not in writer.log.read_text()


async def test_the_gateway_answers_for_its_health(tmp_path: Path, database: str) -> None:
    with serving("gateway", tmp_path, DATABASE_URL=database) as gateway:
        answer = await gateway.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"


async def test_the_sweeper_is_ticked_over_http(tmp_path: Path, database: str) -> None:
    with serving("sweeper", tmp_path, DATABASE_URL=database) as sweeper:
        assert (await sweeper.post({})).status_code == 204


async def test_what_is_missing_is_told_in_the_log_and_not_to_the_caller(tmp_path: Path) -> None:
    with serving("writer", tmp_path, ORCH_MAX_RETRIES="many") as writer:
        answer = await writer.post(raw_push(dispatch_for_writer(SystemClock()), "agent-writer.writer"))
        assert answer.status_code >= 500
        assert "ORCH_MAX_RETRIES" not in answer.text
        assert "ORCH_MAX_RETRIES is 'many'; expected" in writer.log.read_text()


def test_a_function_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="named 'poet'"), serving("poet", tmp_path) as poet:
        asyncio.run(poet.get("/"))
