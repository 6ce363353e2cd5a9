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

    async def submit(self, brief: str, *, key: str) -> str:
        """The id of a report on `brief`."""
        body = {"workflow": "report", "input": {"brief": brief}}
        answer = await self.client.post("/v1/workflows", json=body, headers={"idempotency-key": key})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    async def ended(self, workflows: Sequence[str], *, within_seconds: float) -> list[dict[str, Any]]:
        """The workflows, once all of them have ended."""
        async with asyncio.timeout(within_seconds):
            return [await self._ended(workflow) for workflow in workflows]

    async def _ended(self, workflow: str) -> dict[str, Any]:
        while True:
            document: dict[str, Any] = (await self.client.get(f"/v1/workflows/{workflow}")).json()
            if document["finished_at"] is not None:
                return document
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
    environment = {**given, "AGENT_TEAM_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}
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
