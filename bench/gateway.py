"""What the model gateway adds to a call: everything in front of a model, against the provider's own client and nothing.

One call at a time, the ways in turn, all to one local server in a process of its own that gives the same answer at once. A call
asks the breaker, reserves its place, sets aside what it may cost, and settles all three: over Redis six round trips in a row.
"""

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from statistics import quantiles
from time import perf_counter
from typing import Any, Final

import httpx2
import orjson
import uvloop
from google.genai import Client, types

from shared.ai import Hold, Request, open_model
from shared.clock import SystemClock
from shared.errors import BudgetExceeded, RateLimited
from shared.guards import Guards, RateLimiter, Window, open_guards
from shared.local.servers import redis_binary
from shared.messages import Usage
from shared.runtime.joining import tune_collector
from tests.support.servers import redis_server

MODEL: Final = "gemini-2.5-pro"
PROMPT: Final = "All work and no play makes the gateway a dull machine. " * 18
_ROUNDS: Final = 1_000
_WARM_UP: Final = 50
_FOR_EVER: Final = 10.0 * 366 * 86_400
_SERVE: Final = "from bench.gateway import serve; serve()"
_ANSWER: Final = orjson.dumps(
    {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "A dull machine. " * 16}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 240, "candidatesTokenCount": 64, "totalTokenCount": 304},
        "modelVersion": MODEL,
    }
)
_RESPONSE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_ANSWER) + _ANSWER


class LimitedAccount:
    """A budget in the shared limiter, as windows that never end: one reservation before a call, two settlements after it."""

    def __init__(self, limiter: RateLimiter, clock: SystemClock, *, bucket: str) -> None:
        self._limiter = limiter
        self._clock = clock
        self._bucket = bucket

    async def hold(self, *, tokens: int, cost_microdollars: int) -> Hold:
        windows = (
            Window("tokens", 1e12, tokens, _FOR_EVER, _FOR_EVER),
            Window("cost", 1e12, cost_microdollars, _FOR_EVER, _FOR_EVER),
        )
        try:
            await self._limiter.reserve(self._bucket, rate=1e6, burst=1e6, windows=windows, max_wait_seconds=1)
        except RateLimited as error:
            raise BudgetExceeded("the budget is used up") from error
        return Hold(tokens, cost_microdollars, self._clock.monotonic())

    async def settle(self, hold: Hold, *, model: str, usage: Usage) -> None:
        age = self._clock.monotonic() - hold.held_at
        await asyncio.gather(
            self._limiter.settle(self._bucket, window="tokens", cost=usage.tokens - hold.tokens, age_seconds=age),
            self._limiter.settle(
                self._bucket, window="cost", cost=usage.cost_microdollars - hold.cost_microdollars, age_seconds=age
            ),
        )


def serve() -> None:
    """Answer every request at once with the same; print the port, and end when whoever started it does."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(_RESPONSE)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def listen() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.close()

    uvloop.run(listen())


@contextmanager
def _server() -> Iterator[str]:
    process = subprocess.Popen([sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
    finally:
        process.terminate()
        process.communicate()


def _direct(url: str) -> Callable[[], Awaitable[Any]]:
    """The provider's own client, asked for the same in the same way."""
    options = types.HttpOptions(base_url=url, httpx_async_client=httpx2.AsyncClient())
    client = Client(api_key="AIza-a-key", vertexai=False, http_options=options)
    config = types.GenerateContentConfig(
        temperature=0.2,
        max_output_tokens=1024,
        automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        http_options=types.HttpOptions(timeout=60_000),
    )
    return lambda: client.aio.models.generate_content(model=MODEL, contents=PROMPT, config=config)


def _gateway(url: str, guards: Guards) -> Callable[[], Awaitable[Any]]:
    """The chain as it is shipped, with a rate that nobody waits for and an account with limits."""
    clock = SystemClock()
    model = open_model(
        gemini_api_key="AIza-a-key",
        models=(MODEL, "gemini-1.5-pro", "gemini-1.5-flash"),
        guards=guards,
        clock=clock,
        gemini_base_url=url,
        qps=1e6,
        qps_given=True,
    )
    account = LimitedAccount(guards.limiter, clock, bucket="budget:bench")
    return lambda: model.generate(Request(prompt=PROMPT, max_tokens=1024, timeout_seconds=60, account=account))


async def _measure(ways: dict[str, Callable[[], Awaitable[Any]]]) -> dict[str, float]:
    """p50 and p95 of each way in milliseconds, and what each adds to the first."""
    names = tuple(ways)
    milliseconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_WARM_UP + _ROUNDS):
        if number == _WARM_UP:
            tune_collector()  # as the processes of the platform do once they have started
        # Each is first as often as the others: what one leaves to do, such as garbage, falls on the next.
        for name in (*names[number % len(names) :], *names[: number % len(names)]):
            before = perf_counter()
            await ways[name]()
            if number >= _WARM_UP:
                milliseconds[name].append((perf_counter() - before) * 1e3)
    percentiles = {name: quantiles(each, n=100) for name, each in milliseconds.items()}
    figures = {}
    for name, found in percentiles.items():
        for percent in (50, 95):
            figures[f"gateway.{name}_p{percent}_ms"] = found[percent - 1]
            if name != "direct":
                figures[f"gateway.{name}_adds_p{percent}_ms"] = found[percent - 1] - percentiles["direct"][percent - 1]
    return figures


async def _run() -> dict[str, float]:
    with _server() as url:
        memory = open_guards("memory", SystemClock())
        ways = {"direct": _direct(url), "memory": _gateway(url, memory)}
        if redis_binary() is None:
            return await _measure(ways)
        with redis_server() as server:
            over_redis = open_guards("redis", SystemClock(), redis_url=server.url)
            try:
                return await _measure({**ways, "redis": _gateway(url, over_redis)})
            finally:
                await over_redis.close()


def run() -> dict[str, float]:
    """Milliseconds of a call and of what the gateway adds to it, with guards in memory and over Redis."""
    return uvloop.run(_run())
