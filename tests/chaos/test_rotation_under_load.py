"""Signing keys rotated twice under load, by a rotator that is killed in the middle.

No message is rejected, and in the end the old key is refused.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from shared.bus import Message
from shared.config import load_settings
from shared.ids import workflow_id
from shared.keys import FileKeyStore
from shared.local.fleet import Fleet, open_fleet
from shared.local.servers import redis_binary
from shared.messages import KeyRing, Remaining, StepDispatched
from shared.runtime import Runtime
from tests.support.reports import brief, database_home
from tests.support.servers import missing

pytestmark = pytest.mark.timeout(420)
A_SECOND = 100
GRACE_SECONDS = 10
"""Longer than any message waits here: on the machine of the tests a queue may grow for some seconds."""


@asynccontextmanager
async def rotator(fleet: Fleet) -> AsyncIterator[asyncio.subprocess.Process]:
    """`agent-team keys rotate`, ended with the test."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shared.cli", "keys", "rotate", "--grace-seconds", str(GRACE_SECONDS)),
        env={**os.environ, **fleet.environment},
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def said(process: asyncio.subprocess.Process, word: str) -> None:
    """Return once it has said so."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while not (line := (await process.stdout.readline()).decode()).startswith(word):
            assert line, f"it ended before it said {word!r}"


class Sending:
    """Signs and publishes messages that the writer verifies, claims and has nothing else to do for: their step is over."""

    def __init__(self, live: Runtime) -> None:
        self.live = live
        self.by_key: Counter[str] = Counter()
        self.enough = False

    async def message(self, number: int) -> Message:
        await self.live.ring.fresh()
        now = self.live.clock.now()
        order = StepDispatched(
            workflow=workflow_id(now),
            step=f"step-{number}",
            attempt=1,
            agent="writer",
            input={},
            upstream={},
            deadline=now - timedelta(seconds=1),
            timeout_seconds=1,
            remaining=Remaining(),
        )
        return self.live.sender("test").dispatch(order, cause=None, traceparent=None)

    async def run(self) -> None:
        """A hundred a second, until it is enough."""
        begun = self.live.clock.monotonic()
        while not self.enough:
            owed = int((self.live.clock.monotonic() - begun) * A_SECOND) - self.by_key.total()
            messages = [await self.message(self.by_key.total() + number) for number in range(max(owed, 0))]
            if messages:
                await self.live.bus.publish(messages)
                self.by_key.update(message.attributes["hmac-key-id"] for message in messages)
            await asyncio.sleep(0.02)


def lines(home: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (home / "agent-team.log").read_bytes().splitlines() if line.startswith(b"{")]


async def until(condition: Callable[[], bool], *, within_seconds: float) -> None:
    async with asyncio.timeout(within_seconds):
        while not condition():  # noqa: ASYNC110 - it is about other processes
            await asyncio.sleep(0.2)


async def report(fleet: Fleet, number: int) -> str:
    """The status in which a whole workflow ends, in which every function signs."""
    async with httpx.AsyncClient(base_url=fleet.addresses["gateway"], timeout=60) as client:
        answer = await client.post("/v1/workflows", json={"workflow": "report", "input": {"brief": brief(number)}})
        assert answer.status_code == 202, answer.text
        path = f"/v1/workflows/{answer.json()['id']}"
        async with asyncio.timeout(120):
            while (state := (await client.get(path)).json())["finished_at"] is None:  # noqa: ASYNC110 - it is about other processes
                await asyncio.sleep(0.5)
        return str(state["status"])


async def test_keys_rotate_twice_under_load_without_a_message_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    if redis_binary() is None:
        missing("redis-server")
    monkeypatch.setenv("API_RATE_PER_MINUTE", "100000")
    with database_home() as home:
        settings = load_settings({"AGENT_TEAM_HOME": str(home)})
        async with open_fleet(settings, bus="redis") as fleet:
            names = ("AGENT_TEAM_HOME", "AGENT_BUS_PROVIDER", "REDIS_URL")
            live = Runtime(load_settings({name: fleet.environment[name] for name in names}), serves=("test",))
            sending = Sending(live)
            load = asyncio.create_task(sending.run())
            async with rotator(fleet) as first:
                await said(first, "rotated")
            reporting = asyncio.create_task(report(fleet, 1))
            async with rotator(fleet) as killed:
                await said(killed, "retire k1")  # k2 has just begun to sign
                killed.kill()
            old = FileKeyStore(home, live.clock).load().key("k1")
            async with rotator(fleet) as again:
                await said(again, "rotated")
            assert await reporting == "SUCCESS"
            await until(lambda: sending.by_key["k2"] > A_SECOND, within_seconds=30)
            sending.enough = True
            await load

            sent = sending.by_key.total()
            await until(lambda: handled(home) >= sent, within_seconds=90)
            assert rejected(home) == []
            assert handled(home) == sent
            assert sending.by_key.keys() == {"prod-v1", "k1", "k2"}

            # Whoever kept the old key is nobody any more, as soon as the writer has looked again.
            assert old.secret is not None
            kept = KeyRing("k1", {"k1": old.secret.get_secret_value()})
            async with asyncio.timeout(30):
                while not rejected(home):
                    late = await sending.message(sent)
                    await live.bus.publish([Message(late.topic, late.data, kept.sign(late.topic, late.data))])
                    await asyncio.sleep(0.5)
            assert set(rejected(home)) == {"HMAC verification failed: key id 'k1' is retired; sign with the active key"}
            await live.close()


def rejected(home: Path) -> list[str]:
    return [line["msg"] for line in lines(home) if line.get("status") == "rejected"]


def handled(home: Path) -> int:
    return sum(line["msg"] == "step came too late" for line in lines(home))
