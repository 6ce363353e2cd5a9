"""The simulated Gemini as a process of its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import pytest
from google.genai import errors

from tests.support.simulated import BRIEF, PRO, google

ROOT = Path(__file__).parents[2]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = [sys.executable, "-m", "shared.local.simulator", *arguments]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=environment)


async def test_it_tells_its_address_keeps_its_quota_and_ends_in_order() -> None:
    process = await start(
        "--limit", "gemini-2.5-pro=1,1,2", "--key", "AIza-some-key", "--thinking-tokens", "5", "--tolerance-seconds", "0"
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            url = (await process.stdout.readline()).decode().strip()
        async with google(url) as models, httpx.AsyncClient(base_url=url, trust_env=False) as control:
            answer = await models.generate_content(model=PRO, contents=BRIEF)
            with pytest.raises(errors.ClientError, match="429"):
                await asyncio.gather(*(models.generate_content(model=PRO, contents=BRIEF) for _ in range(3)))
            ledger = (await control.get("/_simulator/ledger")).json()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()

    assert answer.usage_metadata.thoughts_token_count == 5
    entry = ledger["models"][PRO]
    assert entry["violations"] == entry["calls"] - entry["answered"] > 0
    assert (process.returncode, said) == (0, b"")


@pytest.mark.parametrize("given", ["gemini-2.5-pro", "gemini-2.5-pro=fast", "gemini-2.5-pro=1"])
async def test_a_limit_that_is_none_is_refused(given: str) -> None:
    process = await start("--limit", given)
    _, said = await process.communicate()

    assert process.returncode == 2
    assert b"is not MODEL=QPS,BURST" in said


async def test_a_port_in_use_is_told_in_one_line() -> None:
    listening = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        process = await start("--port", str(port))
        _, said = await process.communicate()

    assert process.returncode == 2
    assert said.decode().startswith(f"error: port {port} on 127.0.0.1 is in use")
    assert said.count(b"\n") == 1
