"""`agent-team serve` as a process, spoken to over HTTP."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
_START_SECONDS = 90.0


@dataclass
class Served:
    """The platform behind an address."""

    url: str
    home: Path
    process: asyncio.subprocess.Process
    client: httpx.AsyncClient

    async def submit(self, brief: str, *, key: str, **more: Any) -> str:
        """The id of a report on `brief`; `more` goes into the request."""
        body = {"workflow": "report", "input": {"brief": brief}, **more}
        answer = await self.client.post("/v1/workflows", json=body, headers={"idempotency-key": key})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def publish(self, brief: str) -> str:
        """The id of a report on `brief` that `agent-team publish` asks for, in a shell that has read the platform's environment."""
        variables, command = self.home / "environment", f"{sys.executable} -m shared.cli publish report --input -"
        read = f"set -a; . {variables}; set +a; " if variables.exists() else ""
        process = await asyncio.create_subprocess_shell(
            f"{read}exec {command}",
            cwd=ROOT,
            env={**os.environ, "AGENT_TEAM_HOME": str(self.home)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, said = await process.communicate(brief.encode())
        assert process.returncode == 0, said.decode()
        return printed.decode().strip()

    async def ended(self, workflows: Sequence[str], *, within_seconds: float) -> list[dict[str, Any]]:
        """The workflows, once all of them have ended."""
        async with asyncio.timeout(within_seconds):
            return [await self._ended(workflow) for workflow in workflows]

    async def _ended(self, workflow: str) -> dict[str, Any]:
        while True:
            answer = await self.client.get(f"/v1/workflows/{workflow}")
            # One that was asked for over the bus is not there at once.
            if answer.status_code == 200 and (document := answer.json())["finished_at"] is not None:
                return dict(document)
            await asyncio.sleep(0.05)

    async def end(self) -> int:
        """End it as Ctrl-C does; its exit status."""
        self.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def serving(home: Path, *arguments: str, **variables: str) -> AsyncIterator[Served]:
    """The platform, once it says that it is ready. What still runs in the end is ended."""
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "CI")}
    # Tests ask more often than people do.
    environment = {**given, "AGENT_TEAM_HOME": str(home), "PYTHONPATH": str(ROOT), "API_RATE_PER_MINUTE": "100000", **variables}
    command = [sys.executable, "-m", "shared.cli", "serve", "--port", "0", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=home, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_START_SECONDS):
            line = (await process.stdout.readline()).decode()
        found = re.search(r"ready on (http://\S+);", line)
        assert found, f"it does not start: {line}{(await process.stderr.read()).decode()}"
        async with httpx.AsyncClient(base_url=found[1], timeout=30) as client:
            yield Served(found[1], home, process, client)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
