"""Google's own client, pointed at a simulated Gemini."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import patch

import httpx2
from google.genai import Client, types

from shared.ai.catalog import Limit
from shared.local.simulator.opening import open_simulator
from shared.local.simulator.settings import SimulatorSettings, served_models

PRO = "gemini-2.5-pro"
NEWER = "gemini-3.1-pro-preview"
BRIEF = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails?"


@asynccontextmanager
async def google(url: str, *, key: str = "AIza-some-key") -> AsyncIterator[Any]:
    """The asynchronous models of Google's client, over the backend that the platform uses."""
    # Nothing here speaks TLS, and reading the certificate store is what would take the time.
    with patch.object(ssl, "create_default_context", lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)):
        http = httpx2.AsyncClient(trust_env=False)
        client = Client(
            api_key=key, vertexai=False, http_options=types.HttpOptions(base_url=url, httpx_async_client=http, timeout=10_000)
        )
    async with http:
        yield client.aio.models


@contextmanager
def simulator_thread(*models: str, keys: frozenset[str] | None = None, port: int = 0) -> Iterator[str]:
    """The address of a simulated Gemini that serves `models`, or all, from a thread of its own: for tests without an event loop."""
    loop, started, urls = asyncio.new_event_loop(), threading.Event(), list[str]()

    async def work() -> None:
        limits = served_models() | dict.fromkeys(models, Limit(qps=100.0, burst=100.0))
        async with open_simulator(SimulatorSettings(models=limits, keys=keys), port=port) as simulator:
            urls.append(simulator.url)
            started.set()
            await asyncio.Event().wait()

    task = loop.create_task(work())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.gather(task, return_exceptions=True)))
    thread.start()
    try:
        assert started.wait(60)
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(60)
        loop.close()


def settings(**given: Any) -> types.GenerateContentConfig:
    """A configuration whose calls the client does not carry out itself."""
    return types.GenerateContentConfig(
        **{"automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True), **given}
    )
