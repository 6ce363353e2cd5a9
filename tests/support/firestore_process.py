"""One instance of many, in a process of its own, that uses the guards of a Firestore emulator at the same time as the others.

    python -m tests.support.firestore_process EMULATOR PROJECT claim COUNT LEASE_SECONDS
    python -m tests.support.firestore_process EMULATOR PROJECT reserve CALLERS RATE BURST SECONDS PAUSE_SECONDS
    python -m tests.support.firestore_process EMULATOR PROJECT window CALLERS LIMIT LENGTH_SECONDS SECONDS PAUSE_SECONDS

Prints `ready`, waits for a line, does its work and prints the result as JSON: `claim` the ids that it got, with their tokens;
`reserve` when each call arrived and was let through, in seconds since the epoch. Each of CALLERS calls again PAUSE_SECONDS after it
was let through. `window` the same, and what each call took of windows that end at whole multiples of their length. Then it waits
for the end of its input.
"""

import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

from shared.clock import SystemClock
from shared.guards import Guards, New, Window, firestore_store
from shared.guards.firestore import open_firestore

_AT_ONCE = 20


async def main(emulator: str, project: str, what: str, *numbers: str) -> None:
    # An emulator that many ask at once on a busy machine takes its time.
    with patch.multiple(firestore_store, _CALL_SECONDS=60.0, _ATTEMPT_SECONDS=60.0):
        await take_part(open_firestore(project, SystemClock(), emulator=emulator), what, *numbers)


async def take_part(guards: Guards, what: str, *numbers: str) -> None:
    for _ in range(2):
        await guards.limiter.reserve("warm", rate=1000, burst=1000, cost=1000)  # connected, and written both ways
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    say(json.dumps(await WORK[what](guards, *(float(number) for number in numbers))))
    await asyncio.to_thread(sys.stdin.read)
    await guards.close()


async def claim_all(guards: Guards, count: float, lease_seconds: float) -> dict[str, str]:
    won = {}
    ids = [f"message {number}" for number in range(int(count))]
    random.shuffle(ids)

    async def work() -> None:
        while ids:
            key = ids.pop()
            answer = await guards.idempotency.claim(key, lease_seconds=lease_seconds, ttl_seconds=3600)
            if isinstance(answer, New):
                won[key] = answer.token

    await asyncio.gather(*(work() for _ in range(_AT_ONCE)))
    return won


async def reserve_all(guards: Guards, callers: float, rate: float, burst: float, seconds: float, pause: float) -> list[Any]:
    passed: list[tuple[float, float]] = []
    end = time.time() + seconds

    async def work() -> None:
        await asyncio.sleep(random.uniform(0, pause))
        while (arrived := time.time()) < end:
            wait = await guards.limiter.reserve("model", rate=rate, burst=burst)
            through = time.time() + wait
            passed.append((arrived, through))
            await asyncio.sleep(max(0.0, min(through, end) - time.time()) + pause)

    await asyncio.gather(*(work() for _ in range(int(callers))))
    return passed


async def use_windows(guards: Guards, callers: float, limit: float, length: float, seconds: float, pause: float) -> list[Any]:
    passed: list[tuple[float, float, int]] = []
    end = time.time() + seconds

    async def work() -> None:
        await asyncio.sleep(random.uniform(0, pause))
        while (arrived := time.time()) < end:
            cost = random.randint(1, 3)
            window = Window("minute", limit, cost, length - arrived % length, length)
            wait = await guards.limiter.reserve("model", rate=1000, burst=1000, windows=[window])
            through = time.time() + wait
            passed.append((arrived, through, cost))
            await asyncio.sleep(max(0.0, min(through, end) - time.time()) + pause)

    await asyncio.gather(*(work() for _ in range(int(callers))))
    return passed


WORK: dict[str, Callable[..., Awaitable[Any]]] = {"claim": claim_all, "reserve": reserve_all, "window": use_windows}


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
