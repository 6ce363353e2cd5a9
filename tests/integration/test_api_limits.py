"""How often a client may ask the API, over one instance and several, and what it is told of that."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from functions.gateway import limits
from functions.gateway.api import create_app
from shared.clock import ManualClock
from shared.config import Settings
from shared.guards import open_guards
from shared.runtime import Runtime
from shared.state import WorkflowStore
from tests.support.doubles import SECRET, RememberingBus
from tests.support.servers import redis_server

POLICY = '"minute";q=100;w=60'


class NoKeys:
    """A state without keys, in which no workflow waits and everything else is broken."""

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        if function in ("has_api_keys", "count_queued"):
            return 0
        raise RuntimeError(function)

    async def close(self) -> None:
        pass


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(datetime(2026, 5, 1, tzinfo=UTC))


def runtime(clock: ManualClock, **given: Any) -> Runtime:
    settings = Settings(app_env="test", comm_hmac_default_secret=SECRET, **given)
    store = WorkflowStore(NoKeys(), max_running=1)
    return Runtime(settings, clock=clock, bus=RememberingBus(), store=store, guards=open_guards("memory", clock))


class Api:
    """The API, asked from any address."""

    def __init__(self, live: Runtime) -> None:
        self.app = create_app(live)

    async def get(self, path: str = "/metrics", *, peer: str = "198.51.100.9", **headers: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app, client=(peer, 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.get(path, headers={name.replace("_", "-"): value for name, value in headers.items()})

    async def many(self, count: int, **how: Any) -> list[int]:
        return [(await self.get(**how)).status_code for _ in range(count)]


@pytest.fixture
def api(clock: ManualClock) -> Api:
    return Api(runtime(clock))


async def test_the_101st_request_of_a_minute_is_refused_and_passes_when_it_is_told(api: Api, clock: ManualClock) -> None:
    assert await api.many(60) == [200] * 60
    await clock.advance(20.5)
    assert await api.many(40) == [200] * 40
    refused = await api.get()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    assert refused.json()["detail"] == "100 requests a minute are allowed; try again after the seconds in Retry-After"
    assert refused.headers["retry-after"] == "40"  # 39.5, rounded up
    assert refused.headers["ratelimit"] == '"minute";r=0;t=40'
    assert refused.headers["x-content-type-options"] == "nosniff"
    await clock.advance(39)
    assert (await api.get()).status_code == 429
    await clock.advance(1)
    assert await api.many(100) == [200] * 100
    assert (await api.get()).status_code == 429


async def test_what_is_refused_does_not_count(api: Api, clock: ManualClock) -> None:
    await api.many(100)
    assert await api.many(500) == [429] * 500
    await clock.advance(60)
    assert (await api.get()).status_code == 200


async def test_the_log_names_a_client_that_is_refused_once_a_minute(
    api: Api, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        await api.many(110)
        await clock.advance(60)
    refusals = [record for record in caplog.records if record.getMessage() == "rate limit: a client is refused"]
    assert [record.__dict__["client"] for record in refusals] == ["198.51.100.9"] * 2


async def test_another_address_is_not_affected(api: Api) -> None:
    await api.many(101)
    assert (await api.get()).status_code == 429
    assert (await api.get(peer="198.51.100.10")).status_code == 200


async def test_every_answer_tells_what_is_allowed_and_what_is_left(api: Api, clock: ManualClock) -> None:
    asked = [("/metrics", 200), ("/nothing", 404), ("/v1/workflows?limit=x", 422), ("/v1/workflows", 500)]
    for left, (path, status) in enumerate(asked):
        answer = await api.get(path)
        assert (answer.status_code, answer.headers["ratelimit-policy"]) == (status, POLICY)
        assert answer.headers["ratelimit"] == f'"minute";r={99 - left};t=60'
    await clock.advance(30)
    assert (await api.get()).headers["ratelimit"] == '"minute";r=95;t=30'
    await clock.advance(30)
    assert (await api.get()).headers["ratelimit"] == '"minute";r=99;t=60'


async def test_health_is_not_limited(api: Api) -> None:
    await api.many(100)
    for path in ("/health", "/health/ready"):
        answers = [await api.get(path) for _ in range(150)]
        assert 429 not in {answer.status_code for answer in answers}
        assert "ratelimit" not in answers[-1].headers


async def test_refused_callers_are_limited_too_so_that_nobody_tries_keys_through(clock: ManualClock) -> None:
    class WithKeys(NoKeys):
        async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
            return function == "has_api_keys" or None

    live = runtime(clock)
    live.__dict__["store"] = WorkflowStore(WithKeys(), max_running=1)
    api = Api(live)
    assert await api.many(100, authorization="Bearer x") == [401] * 100
    refused = await api.get(authorization="Bearer x")
    assert refused.status_code == 429


@pytest.mark.parametrize("hops", [0, 1])
async def test_a_forged_header_changes_nothing(clock: ManualClock, hops: int) -> None:
    api = Api(runtime(clock, api_proxy_hops=hops))
    own = "203.0.113.7"  # what the proxy appends
    for number in range(100):
        forged = f"10.1.2.{number}, {own}" if hops else f"10.1.2.{number}"
        assert (await api.get(x_forwarded_for=forged, x_real_ip="10.0.0.1", forwarded="for=10.0.0.1")).status_code == 200
    assert (await api.get(x_forwarded_for=f"10.9.9.9, {own}")).status_code == 429


async def test_behind_a_proxy_clients_are_told_apart(clock: ManualClock) -> None:
    api = Api(runtime(clock, api_proxy_hops=1))
    assert await api.many(101, x_forwarded_for="203.0.113.7") == [200] * 100 + [429]
    assert (await api.get(x_forwarded_for="203.0.113.8")).status_code == 200


async def test_what_is_known_of_clients_is_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "_MOST_SEEN", 3)
    limit = limits.RateLimit(Response(), live=runtime(clock))
    for number in range(10):
        transport = httpx.ASGITransport(app=limit, client=(f"198.51.100.{number}", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            assert (await client.get("/")).headers["ratelimit"] == '"minute";r=99;t=60'
    assert list(limit._seen) == ["198.51.100.7", "198.51.100.8", "198.51.100.9"]


async def test_no_answer_lets_pages_of_others_read_it(api: Api) -> None:
    for path in ("/", "/docs", "/health", "/openapi.json", "/metrics", "/v1/workflows", "/nothing"):
        for method in ("GET", "OPTIONS"):
            transport = httpx.ASGITransport(app=api.app)
            headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
                answer = await client.request(method, path)
            assert not [name for name in answer.headers if name.startswith("access-control-")], f"{method} {path}"
            assert method == "GET" or answer.status_code in (404, 405)


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[list[Api], Any]]:
    """Two instances that share a Redis, which can be ended. One that is slow on a busy machine is not down."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"shared.redis.connections.{name}", 60.0)
    with redis_server() as server:
        given: dict[str, Any] = {"redis_url": server.url, "api_rate_per_minute": 20, "guards_instances": 2}
        settings = Settings(app_env="test", comm_hmac_default_secret=SECRET, **given)
        lives = [Runtime(settings, bus=RememberingBus(), store=WorkflowStore(NoKeys(), max_running=1)) for _ in range(2)]
        yield [Api(live) for live in lives], server
        for live in lives:
            await live.close()


async def test_instances_that_share_their_guards_share_the_limit(fleet: tuple[list[Api], Any]) -> None:
    (first, second), _ = fleet
    began = time.monotonic()
    answers = await asyncio.gather(*(api.get() for _ in range(15) for api in (first, second)))
    assert sorted(answer.status_code for answer in answers) == [200] * 20 + [429] * 10
    least = 60 - (time.monotonic() - began)
    assert all(least <= int(answer.headers["retry-after"]) <= 60 for answer in answers if answer.status_code == 429)


async def test_without_the_guards_store_each_instance_allows_its_share(fleet: tuple[list[Api], Any]) -> None:
    (first, second), server = fleet
    server.kill()
    for api in (first, second):
        statuses = await api.many(15)
        assert statuses == [200] * 10 + [429] * 5
    assert re.fullmatch(r'"minute";r=0;t=\d+', (await first.get()).headers["ratelimit"])
