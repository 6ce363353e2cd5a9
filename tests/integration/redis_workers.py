"""Processes that race for one Redis: `python -m tests.integration.redis_workers ROLE '{"url": …}'`.

They say that they are ready, begin at the time that they are given on stdin, and answer with one line of JSON.
"""

import asyncio
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from shared.clock import SystemClock
from shared.errors import RateLimited, StoreUnavailable
from shared.guards import Done, Guards, New, open_guards

_CALLERS = 100


async def reserve(guards: Guards, *, begin: float, seconds: float, callers: int) -> Any:
    """Each caller asks, waits as told and goes through, again and again: [when asked, when answered, the wait] of each."""
    granted: list[tuple[float, float, float]] = []
    end = begin + seconds

    async def caller() -> None:
        await asyncio.sleep(random.uniform(0, 0.3))
        while (asked := time.time()) < end:
            try:
                wait = await guards.limiter.reserve("fleet", rate=50, burst=50, max_wait_seconds=3)
            except RateLimited:
                await asyncio.sleep(0.5)
            else:
                granted.append((asked, time.time(), wait))
                await asyncio.sleep(wait)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return granted


async def race(guards: Guards, *, begin: float, ids: int, lease: float) -> Any:
    """Claim and complete until every id is done and stdin has ended.

    The ids claimed and completed here, and when the last call began during which Redis failed.
    """
    left = deque(random.sample(range(ids), ids))
    claimed: list[int] = []
    done: list[int] = []
    last_failure = 0.0
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

    async def caller() -> None:
        nonlocal last_failure
        while left or not over.done():
            number = left.popleft() if left else random.randrange(ids)
            key, asked = f"message-{number}", time.time()
            try:
                claim = await guards.idempotency.claim(key, lease_seconds=lease, ttl_seconds=60)
                if isinstance(claim, New):
                    claimed.append(number)
                    if await guards.idempotency.complete(key, token=claim.token, result=b"r"):
                        done.append(number)
                elif not isinstance(claim, Done):
                    left.append(number)
                    await asyncio.sleep(0.02)
            except StoreUnavailable:
                last_failure = max(last_failure, asked)
                left.append(number)
                await asyncio.sleep(0.02)

    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return {"claimed": claimed, "done": done, "last_failure": last_failure}


async def hold(guards: Guards, *, begin: float, ids: int, lease: float) -> Any:
    """Claim, and tell the tokens; whoever started it kills it."""
    claims = [await guards.idempotency.claim(f"held-{number}", lease_seconds=lease, ttl_seconds=60) for number in range(ids)]
    _tell([claim.token for claim in claims if isinstance(claim, New)])
    await asyncio.Event().wait()


ROLES: dict[str, Callable[..., Awaitable[Any]]] = {"reserve": reserve, "race": race, "hold": hold}


async def main(role: str, options: dict[str, Any]) -> None:
    guards = open_guards("redis", SystemClock(), redis_url=options.pop("url"))
    await guards.limiter.reserve("warm", rate=1000, burst=1000)
    _tell("ready")
    begin = float(await asyncio.to_thread(sys.stdin.readline))
    await asyncio.sleep(begin - time.time())
    answer = await ROLES[role](guards, begin=begin, **options)
    await guards.close()
    _tell(answer)


def _tell(answer: Any) -> None:
    sys.stdout.write(orjson.dumps(answer).decode() + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], orjson.loads(sys.argv[2])))
