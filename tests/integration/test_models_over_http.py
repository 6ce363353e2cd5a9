"""The chain as it is shipped, with the provider's own client, against a local server; on a clock that waits for nobody."""

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from shared.ai import Request
from shared.ai.opening import Gateway, open_model
from shared.errors import ModelRefused, ModelUnavailable
from shared.guards import open_guards
from shared.messages import Usage
from tests.support.doubles import Purse, SkippingClock

MODELS = ("gemini-2.5-pro", "gemini-1.5-pro", "gemini-1.5-flash")
SAID = {
    "candidates": [{"content": {"role": "model", "parts": [{"text": "an answer"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
}


@dataclass
class Service:
    """Answers each model's requests with one status, 200 where none is set, and notes which models were asked."""

    url: str = ""
    statuses: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(head.split("content-length:")[1].split("\r\n")[0]))
            model = re.findall(r"/models/([^:]+):", head)[0]
            self.asked.append(model)
            status = self.statuses.get(model, 200)
            body = json.dumps(SAID if status == 200 else {"error": {"code": status, "status": "SOME_STATUS"}}).encode()
            fixed = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            writer.write(f"HTTP/1.1 {status} Whatever\r\n{fixed}".encode() + body)
            await writer.drain()
        finally:
            writer.close()


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    # Nothing here speaks TLS, and reading the certificate store for each client is what would take the time.
    monkeypatch.setattr(ssl, "create_default_context", lambda *_, **__: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    service = Service()
    listening = await asyncio.start_server(service.serve, "127.0.0.1", 0)
    service.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
    yield service
    listening.close()
    await listening.wait_closed()


@pytest.fixture
async def model(service: Service) -> AsyncIterator[Gateway]:
    clock = SkippingClock()
    opened: Any = open_model(
        gemini_api_key="AIza-a-key",
        models=MODELS,
        guards=open_guards("memory", clock),
        clock=clock,
        gemini_base_url=service.url,
        qps=1000,
        qps_given=True,
    )
    assert isinstance(opened, Gateway)
    yield opened
    await opened.close()


async def test_what_is_down_is_asked_four_times_what_is_gone_once_and_then_the_next_answers(
    service: Service, model: Gateway
) -> None:
    service.statuses = {"gemini-2.5-pro": 503, "gemini-1.5-pro": 404}
    purse = Purse()
    reply = await model.generate(Request(prompt="x", timeout_seconds=300, account=purse))

    assert (reply.output, reply.model) == ("an answer", "gemini-1.5-flash")
    assert service.asked == ["gemini-2.5-pro"] * 4 + ["gemini-1.5-pro", "gemini-1.5-flash"]
    # 100 tokens at 0.075 and 20 at 0.30 dollars a million, rounded up.
    used = Usage(model_calls=1, input_tokens=100, output_tokens=20, cost_microdollars=14)
    assert purse.settled == [(name, Usage()) for name in service.asked[:-1]] + [("gemini-1.5-flash", used)]

    service.asked.clear()
    await model.generate(Request(prompt="x", timeout_seconds=300))
    # The first model's circuit opens at its fifth failure, the second is known to be gone.
    assert service.asked == ["gemini-2.5-pro", "gemini-1.5-flash"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_key_that_is_refused_is_one_request(service: Service, model: Gateway, status: int) -> None:
    service.statuses = dict.fromkeys(MODELS, status)
    with pytest.raises(ModelRefused, match="the key is refused"):
        await model.generate(Request(prompt="x", timeout_seconds=300))
    assert service.asked == ["gemini-2.5-pro"]


async def test_when_all_are_down_the_error_names_them(service: Service, model: Gateway) -> None:
    service.statuses = dict.fromkeys(MODELS, 500)
    with pytest.raises(ModelUnavailable) as caught:
        await model.generate(Request(prompt="a secret", timeout_seconds=300))
    assert service.asked == [name for name in MODELS for _ in range(4)]
    assert all(f"{name} (ModelUnavailable: {name}: the service failed (500 SOME_STATUS))" in str(caught.value) for name in MODELS)
    assert "secret" not in str(caught.value)
