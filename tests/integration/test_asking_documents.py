"""An agent without a database searches documents through the gateway: its own API, its own keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from functions.gateway.api import create_app
from shared.ai.tools.asking import GatewayDocuments
from shared.clock import SystemClock
from shared.config import load_settings
from shared.errors import ConfigurationError, HostUnavailable
from shared.runtime import Runtime
from shared.state import document
from tests.support.live import live as opened

TEXT = "Ferries to Oban sail at 7:30. In a storm the harbour master decides."


@pytest.fixture
async def gateway(database: str, tmp_path: Path) -> AsyncIterator[Runtime]:
    async with opened(database, tmp_path) as one:
        await one.store.put_document(document("handbook/ferries.md", TEXT.encode()))
        yield one.runtime


def asking(gateway: Runtime, key: str | None) -> GatewayDocuments:
    """What the agent has, whose requests reach the gateway without a network."""
    documents = GatewayDocuments("http://gateway", key)
    headers = documents._client.headers
    documents.__dict__["_client"] = httpx.AsyncClient(
        transport=httpx.ASGITransport(app=create_app(gateway)), base_url="http://gateway", headers=headers
    )
    return documents


async def test_what_the_gateway_finds_is_what_the_store_finds(gateway: Runtime) -> None:
    found = await asking(gateway, None).search("ferries oban", 3)
    assert found == [{"document": "handbook/ferries.md", "position": 1, "text": TEXT}]
    assert list(found) == [dict(one) for one in await gateway.store.search_documents("ferries oban", 3)]


async def test_a_key_that_may_read_is_all_it_takes(gateway: Runtime) -> None:
    key = await gateway.store.keys.add("researcher", "read")
    assert len(await asking(gateway, key).search("oban", 1)) == 1
    for wrong in (None, "no such key"):
        with pytest.raises(ConfigurationError, match=r"HTTP 401.* --scope read` and set AGENT_TEAM_API_KEY"):
            await asking(gateway, wrong).search("oban", 1)


async def test_a_gateway_that_does_not_answer_is_told_to_the_model_and_the_run_goes_on() -> None:
    documents = GatewayDocuments("http://127.0.0.1:1", None)
    with pytest.raises(HostUnavailable, match=r"cannot be searched now: the gateway does not answer \(ConnectError\)"):
        await documents.search("oban", 1)
    await documents.close()


async def test_an_agents_process_asks_the_gateway_and_never_opens_a_store(tmp_path: Path) -> None:
    settings = load_settings(
        {
            "AGENT_TEAM_HOME": str(tmp_path),
            "AGENT_TEAM_URL": "http://127.0.0.1:1",
            "DATABASE_URL": "postgresql://nobody@nowhere/nothing",
        }
    )
    live = Runtime(settings, clock=SystemClock(), serves=("researcher",))
    assert "search_documents" in live.tools
    assert live.documents is not None
    with pytest.raises(HostUnavailable):
        await live.documents.search("oban", 1)
    assert "store" not in live.__dict__
    await live.close()
