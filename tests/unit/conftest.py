"""What several files here need."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from shared.ai import Price
from shared.ai.gemini import GeminiModel
from shared.clock import ManualClock
from tests.support.gemini import KEY, GeminiServer


@pytest.fixture
async def gemini_server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[GeminiServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Nothing here speaks TLS, and reading the certificate store three times a client is what would take the time.
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    server = GeminiServer()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    yield server
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def gemini(gemini_server: GeminiServer) -> AsyncIterator[GeminiModel]:
    price = Price(input_usd=2, output_usd=10, cached_input_usd=0.5)
    clock = ManualClock(datetime(2026, 5, 1, 12, tzinfo=UTC))
    model = GeminiModel(KEY, "gemini-2.5-pro", clock=clock, base_url=gemini_server.url, price=price)
    yield model
    await model.close()
