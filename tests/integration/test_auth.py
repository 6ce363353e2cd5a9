"""Who may call the API: keys and identity tokens, what each may do, and for how long an answer of the state is believed."""

import hmac
import logging
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import httpx
import jwt as pyjwt
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.datastructures import Headers
from starlette.routing import Route

from functions.gateway import auth
from functions.gateway.api import create_app
from functions.gateway.auth import OPEN, Allowed, Caller, Callers, Gate
from shared.clock import ManualClock
from shared.config import Settings
from shared.errors import StoreUnavailable
from shared.messages import APPROVE
from shared.runtime import Runtime
from shared.runtime.oidc import Certificates, IdentityTokens
from shared.state import SCOPES, Scope, WorkflowStore
from shared.state.keys import new_key
from shared.state.postgres import PostgresCaller
from tests.support.doubles import SECRET, RememberingBus
from tests.support.identity import ISSUER, Google, key

UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
BRIEF = {"workflow": "report", "input": {"brief": "Why was the ferry late?"}}
AUDIENCE = "https://api.example.com"
ROBOT = "ci@project.iam.gserviceaccount.com"


class CountingCaller(PostgresCaller):
    """The database, which counts what it is asked and can be away."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.asked: list[str] = []
        self.away = False

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        self.asked.append(function)
        if self.away:
            raise StoreUnavailable("the database at 10.0.0.1 is away")
        return await super().call(function, arguments)


@pytest.fixture
def clock() -> ManualClock:
    # What verifies identity tokens looks at the real time.
    return ManualClock(datetime.now(UTC))


@pytest.fixture
def caller(database: str) -> CountingCaller:
    return CountingCaller(database)


Open = Callable[..., Runtime]


@pytest.fixture
async def opened(caller: CountingCaller, clock: ManualClock) -> AsyncIterator[Open]:
    """Opens a runtime on the test's database."""
    runtimes: list[Runtime] = []

    def open_runtime(**given: Any) -> Runtime:
        defaults: dict[str, Any] = {"app_env": "test", "comm_hmac_default_secret": SECRET, "api_rate_per_minute": 10_000}
        settings = Settings(**(defaults | given))
        store = WorkflowStore(caller, max_running=5, clock=clock)
        runtimes.append(Runtime(settings, clock=clock, bus=RememberingBus(), store=store))
        return runtimes[-1]

    yield open_runtime
    for one in runtimes:
        await one.close()


@pytest.fixture
def live(opened: Open) -> Runtime:
    return opened()


def client_of(app: FastAPI, shown: str | None = None) -> httpx.AsyncClient:
    headers = {} if shown is None else {"authorization": f"Bearer {shown}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway", headers=headers)


def routes(app: FastAPI) -> Iterator[tuple[str, Route]]:
    """Every method of every route."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        assert isinstance(route, Route), f"{route} is no plain route: say how it is guarded"
        for method in sorted(cast("set[str]", route.methods) - {"HEAD"}):
            yield method, route


def scopes(route: Route) -> list[Allowed]:
    """What the dependencies of a route ask of a caller."""
    found = [] if not isinstance(route, APIRoute) else [one.call for one in route.dependant.dependencies]
    return [one for one in found if isinstance(one, Allowed)]


def path_of(route: Route) -> str:
    values = {
        "id": UNKNOWN,
        "id:int": "1",
        "name": "report",
        "name:document": "report",
        "name:path": "report",
        "seq": "1",
        "step:path": "plan",
    }
    return re.sub(r"\{(.*?)\}", lambda place: values[place[1]], route.path)


def opened_without_a_link(route: Route) -> int:
    """What an open route answers; of approvals nobody is told anything without a link."""
    return 404 if route.path == APPROVE else 200


async def send(client: httpx.AsyncClient, method: str, route: Route) -> httpx.Response:
    body: dict[str, Any] = {"json": {}} if method == "POST" else {}
    return await client.request(method, path_of(route), **body)


# Every route


def test_every_route_that_is_not_open_says_what_its_callers_need(live: Runtime) -> None:
    for method, route in routes(create_app(live)):
        if route.path in OPEN:
            assert scopes(route) == [], f"{route.path} asks for a caller that nobody looks for"
            continue
        (asked,) = scopes(route)
        assert method == "GET" or SCOPES.index(asked.needed(method)) >= SCOPES.index("submit"), f"{method} {route.path}"


def test_what_each_scope_may_do_is_what_the_documentation_says(live: Runtime) -> None:
    needed = {
        f"{method} {route.path}": asked.needed(method) for method, route in routes(create_app(live)) for asked in scopes(route)
    }
    assert needed == {
        "POST /v1/workflows": "submit",
        "GET /v1/workflows": "read",
        "GET /v1/workflows/{id}": "read",
        "GET /v1/workflows/{id}/output": "read",
        "GET /v1/workflows/{id}/steps/{step:path}/output": "read",
        "GET /v1/workflows/{id}/history": "read",
        "GET /v1/workflows/{id}/snapshots/{seq}": "read",
        "POST /v1/workflows/{id}/cancel": "submit",
        "POST /v1/workflows/{id}/pause": "submit",
        "POST /v1/workflows/{id}/resume": "submit",
        "GET /v1/workflows/{id}/events": "read",
        "POST /v1/workflows/{id}/fork": "submit",
        "POST /v1/workflows/{id}/rerun": "submit",
        "POST /v1/workflows/{id}/signals/{name:path}": "submit",
        "POST /v1/agents/{name}/tasks": "submit",
        "GET /v1/dead-letters": "admin",
        "GET /v1/dead-letters/{id:int}": "admin",
        "POST /v1/dead-letters/redrive": "admin",
        "GET /v1/documents": "read",
        "GET /v1/documents/search": "read",
        "PUT /v1/documents/{name:document}": "admin",
        "DELETE /v1/documents/{name:document}": "admin",
        "GET /v1/schedules": "read",
        "GET /metrics": "read",
    }


async def test_without_a_valid_key_every_route_but_the_open_ones_is_401(live: Runtime) -> None:
    await live.store.keys.add("ci", "admin")
    revoked = await live.store.keys.add("old", "admin")
    await live.store.keys.revoke("old")
    app = create_app(live)
    for shown in (None, "", "x", new_key(), revoked, f"{revoked}x", "atk_"):
        async with client_of(app, shown) as client:
            for method, route in routes(app):
                answer = await send(client, method, route)
                if route.path in OPEN:
                    assert answer.status_code == opened_without_a_link(route), route.path
                    continue
                assert answer.status_code == 401, f"{method} {route.path}"
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["detail"].startswith("show an API key or a Google identity token that is valid here")


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_may_do_what_its_scope_includes_and_nothing_else(live: Runtime, scope: Scope) -> None:
    app = create_app(live)
    async with client_of(app, await live.store.keys.add("ci", scope)) as client:
        for method, route in routes(app):
            if route.path.endswith("/events"):
                continue  # one that is not refused never ends, or is not found
            answer = await send(client, method, route)
            allowed = all(SCOPES.index(scope) >= SCOPES.index(asked.needed(method)) for asked in scopes(route))
            assert (answer.status_code == 403) is not allowed, f"{method} {route.path}: {answer.status_code}"
            assert answer.status_code != 401
            if not allowed:
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["detail"] == f"this needs the scope {scopes(route)[0].needed(method)}"


async def test_what_is_not_there_is_not_told_to_strangers(live: Runtime) -> None:
    shown = await live.store.keys.add("ci", "read")
    app = create_app(live)
    async with client_of(app) as stranger, client_of(app, shown) as client:
        for path in ("/nothing", "/docs/", "/health/", "/v1"):
            assert (await stranger.get(path)).status_code == 401, path
            assert (await client.get(path)).status_code == 404, path


async def test_an_unknown_caller_is_refused_before_the_body_is_read(live: Runtime) -> None:
    await live.store.keys.add("ci", "read")
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    async def note(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"10")]
    scope = {"type": "http", "method": "POST", "path": "/v1/workflows", "query_string": b"", "headers": headers}
    await create_app(live)(scope, receive, note)
    assert sent[0]["status"] == 401
    assert (b"connection", b"close") in sent[0]["headers"]


# Keys


def shown(*values: str) -> Headers:
    return Headers(raw=[(b"authorization", value.encode("latin-1")) for value in values])


async def test_a_caller_is_known_by_the_key_s_name(live: Runtime) -> None:
    one = await live.store.keys.add("ci", "submit")
    callers = Callers(live)
    assert await callers.identify(shown(f"Bearer {one}")) == Caller("ci", "submit")
    assert await callers.identify(shown(f"bearer   {one} ")) == Caller("ci", "submit")
    for wrong in (
        [],
        [one],
        [f"Basic {one}"],
        [f"Bearer{one}"],
        [f"Bearer {one}", f"Bearer {one}"],
        [f"Bearer {one} {one}"],
        ["Bearer \xe9"],
    ):
        assert await callers.identify(shown(*wrong)) is None, wrong


async def test_a_route_learns_who_calls(live: Runtime) -> None:
    one = await live.store.keys.add("ci", "submit")
    seen: list[Any] = []

    async def route(scope: Any, _receive: Any, _send: Any) -> None:
        seen.append((scope["path"], scope.get("state")))

    gate = Gate(route, callers=Callers(live))
    for path in ("/v1/workflows", "/health"):
        headers = [(b"authorization", f"Bearer {one}".encode())]
        await gate({"type": "http", "path": path, "headers": headers}, cast("Any", None), cast("Any", None))
    assert seen == [("/v1/workflows", {"caller": "ci", "scope": "submit"}), ("/health", None)]


async def test_the_last_letter_of_a_key_counts_and_is_compared_in_constant_time(
    live: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await live.store.keys.add("ci", "submit")
    callers = Callers(live)
    compared: list[str] = []
    really = hmac.compare_digest

    def compare(kept: str, given: str) -> bool:
        compared.extend((kept, given))
        return really(kept, given)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    wrong = one[:-1] + ("A" if one[-1] != "A" else "B")
    assert await callers.identify(shown(f"Bearer {wrong}")) is None
    assert await callers.identify(shown(f"Bearer {one}")) is not None
    assert [len(part) for part in compared] == [64] * 4


async def test_a_revoked_key_is_taken_for_thirty_seconds_at_most(live: Runtime, caller: CountingCaller, clock: ManualClock) -> None:
    one = await live.store.keys.add("ci", "read")
    async with client_of(create_app(live), one) as client:
        assert (await client.get("/metrics")).status_code == 200
        await live.store.keys.revoke("ci")
        await clock.advance(29.9)
        asked = len(caller.asked)
        assert (await client.get("/metrics")).status_code == 200
        assert "find_api_key" not in caller.asked[asked:]
        await clock.advance(0.1)
        assert (await client.get("/metrics")).status_code == 401


async def test_wrong_keys_ask_the_state_once_each(live: Runtime, caller: CountingCaller, clock: ManualClock) -> None:
    await live.store.keys.add("ci", "read")
    callers, wrong = Callers(live), new_key()
    for _ in range(10):
        assert await callers.identify(shown(f"Bearer {wrong}")) is None
        assert await callers.identify(shown("Bearer no-key")) is None
    assert caller.asked.count("find_api_key") == 1
    await clock.advance(30)
    await callers.identify(shown(f"Bearer {wrong}"))
    assert caller.asked.count("find_api_key") == 2


async def test_what_is_kept_of_keys_is_bounded(live: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MOST_KEPT", 5)
    one = await live.store.keys.add("ci", "read")
    callers = Callers(live)
    for _ in range(20):
        await callers.identify(shown(f"Bearer {new_key()}"))
        assert await callers.identify(shown(f"Bearer {one}")) is not None
    assert len(callers._keys) == 5


async def test_a_key_s_use_is_noted_once_a_minute_and_a_wrong_secret_is_no_use(
    live: Runtime, caller: CountingCaller, clock: ManualClock
) -> None:
    one = await live.store.keys.add("ci", "read")
    callers = Callers(live)
    await callers.identify(shown(f"Bearer {one[:-1]}{'A' if one[-1] != 'A' else 'B'}"))
    assert (await live.store.keys.listed())[0]["last_used_at"] is None
    for _ in range(5):
        await callers.identify(shown(f"Bearer {one}"))
    assert caller.asked.count("use_api_key") == 1
    assert datetime.fromisoformat((await live.store.keys.listed())[0]["last_used_at"]) == clock.now()
    await clock.advance(60)
    await callers.identify(shown(f"Bearer {one}"))
    assert datetime.fromisoformat((await live.store.keys.listed())[0]["last_used_at"]) == clock.now()


async def test_while_the_state_is_away_nobody_gets_in_and_nothing_is_remembered(live: Runtime, caller: CountingCaller) -> None:
    one = await live.store.keys.add("ci", "read")
    async with client_of(create_app(live), one) as client:
        caller.away = True
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "10.0.0.1" not in answer.text
        caller.away = False
        assert (await client.get("/metrics")).status_code == 200


async def test_no_key_is_in_the_log(live: Runtime, caller: CountingCaller, caplog: pytest.LogCaptureFixture) -> None:
    one = await live.store.keys.add("ci", "read")
    caplog.set_level(logging.DEBUG)
    async with client_of(create_app(live), one) as client:
        await client.post("/v1/workflows", json=BRIEF)
        caller.away = True
        await client.get("/v1/workflows")
    assert one.split("_", 2)[2] not in caplog.text + str([record.__dict__ for record in caplog.records])


# Open, and closed


async def test_at_home_the_api_is_open_until_the_first_key_and_never_again(live: Runtime, clock: ManualClock) -> None:
    app = create_app(live)
    async with client_of(app) as stranger:
        assert (await stranger.get("/metrics")).status_code == 200
        assert (await stranger.post("/v1/workflows", json=BRIEF)).status_code == 202
        one = await live.store.keys.add("ci", "read")
        await clock.advance(1)
        assert (await stranger.get("/metrics")).status_code == 401
        async with client_of(app, one) as client:
            assert (await client.get("/metrics")).status_code == 200
        await live.store.keys.revoke("ci")
        await clock.advance(60)
        assert (await stranger.get("/metrics")).status_code == 401


async def test_in_production_nothing_is_served_before_there_is_a_key(
    opened: Open, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    live = opened(app_env="production")
    app = create_app(live)
    async with client_of(app, new_key()) as client:
        for method, route in routes(app):
            answer = await send(client, method, route)
            assert answer.status_code == (opened_without_a_link(route) if route.path in OPEN else 503), route.path
        assert answer.headers["content-type"] in ("application/problem+json", "text/html; charset=utf-8")
        assert "keys api add" not in (await client.get("/metrics")).text
        assert any(
            "`agent-team keys api add NAME`" in record.getMessage() for record in caplog.records if record.levelname == "ERROR"
        )
    one = await live.store.keys.add("ci", "read")
    await clock.advance(1)
    async with client_of(app, one) as client, client_of(app) as stranger:
        assert (await client.get("/metrics")).status_code == 200
        assert (await stranger.get("/metrics")).status_code == 401


async def test_health_tells_strangers_no_more_than_what_is_unhealthy(
    live: Runtime, caller: CountingCaller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 60.0)  # a busy machine is not unhealthy
    one = await live.store.keys.add("ci", "read")
    app = create_app(live)
    async with client_of(app) as stranger, client_of(app, one) as client:
        assert (await client.get("/health/ready")).json().keys() == {"status", "checks", "latency_ms", "errors"}
        told = {"status": "healthy", "checks": {"database": "healthy", "ai_service": "healthy"}}
        assert (await stranger.get("/health/ready")).json() == told
        caller.away = True
        assert (await stranger.get("/health/ready")).json().keys() == {"status", "checks"}
        assert (await stranger.get("/health")).json().keys() == {"status", "timestamp", "uptime"}


async def test_health_in_production_tells_nothing_when_nobody_can_say_who_asks(opened: Open, caller: CountingCaller) -> None:
    caller.away = True
    for environment, told in (("production", False), ("test", True)):
        async with client_of(create_app(opened(app_env=environment))) as stranger:
            answer = await stranger.get("/health/ready")
        assert answer.status_code == 503
        assert ("10.0.0.1" in answer.text) is told


# Google identity tokens


@pytest.fixture
def google() -> Google:
    return Google(key("first"))


@pytest.fixture
def with_google(opened: Open, clock: ManualClock, google: Google) -> Runtime:
    live = opened(api_audience=AUDIENCE, api_callers={ROBOT: "submit", "ann@example.com": "read"})
    live.__dict__["api_tokens"] = IdentityTokens(AUDIENCE, clock, Certificates(clock, google), setting="API_AUDIENCE")
    return live


def token(**changes: Any) -> str:
    now = int(datetime.now(UTC).timestamp())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "1", "email": ROBOT, "email_verified": True, "iat": now, "exp": now + 3600}
    return pyjwt.encode(claims | changes, key("first").private, algorithm="RS256", headers={"kid": "first"})


async def test_an_account_may_do_what_the_settings_say(with_google: Runtime) -> None:
    app = create_app(with_google)
    async with client_of(app, token()) as client:
        assert (await client.post("/v1/workflows", json=BRIEF)).status_code == 202
        assert (await client.get("/v1/dead-letters")).status_code == 403
    async with client_of(app, token(email="Ann@Example.com")) as client:
        assert (await client.get("/v1/workflows")).status_code == 200
        assert (await client.post("/v1/workflows", json=BRIEF)).status_code == 403
    callers = Callers(with_google)
    assert await callers.identify(shown(f"Bearer {token()}")) == Caller(ROBOT, "submit")


async def test_any_other_token_is_refused(with_google: Runtime) -> None:
    app = create_app(with_google)
    past = int(datetime.now(UTC).timestamp()) - 4000
    for wrong in (
        {"email": "somebody@example.com"},
        {"email_verified": False},
        {"aud": "https://other.example.com"},
        {"iss": "https://accounts.example.com"},
        {"iat": past, "exp": past + 100},
    ):
        async with client_of(app, token(**wrong)) as client:
            assert (await client.get("/v1/workflows")).status_code == 401, wrong
    async with client_of(app) as stranger:
        assert (await stranger.get("/v1/workflows")).status_code == 401


async def test_keys_are_taken_beside_tokens(with_google: Runtime) -> None:
    async with client_of(create_app(with_google), await with_google.store.keys.add("ci", "read")) as client:
        assert (await client.get("/v1/workflows")).status_code == 200


async def test_while_google_cannot_be_asked_a_token_can_be_shown_again(with_google: Runtime, google: Google) -> None:
    google.down = True
    async with client_of(create_app(with_google), token()) as client:
        assert (await client.get("/v1/workflows")).status_code == 503


async def test_without_an_audience_no_token_is_taken(live: Runtime) -> None:
    await live.store.keys.add("ci", "read")
    async with client_of(create_app(live), token()) as client:
        assert (await client.get("/v1/workflows")).status_code == 401


async def test_with_an_audience_production_is_not_closed_for_want_of_keys(opened: Open) -> None:
    live = opened(app_env="production", api_audience=AUDIENCE, api_callers={ROBOT: "read"})
    async with client_of(create_app(live)) as stranger:
        assert (await stranger.get("/metrics")).status_code == 401


async def test_a_workflow_belongs_to_whoever_s_key_asked_for_it_and_they_are_who_paused_it(live: Runtime) -> None:
    ann, bob = await live.store.keys.add("ann", "submit"), await live.store.keys.add("bob", "submit")
    app = create_app(live)
    async with client_of(app, ann) as hers, client_of(app, bob) as his:
        id = (await hers.post("/v1/workflows", json={"workflow": "report", "input": {"brief": "Why?"}})).json()["id"]
        task = (await his.post("/v1/agents/planner/tasks", json={"input": {"brief": "Why?"}})).json()["id"]
        fork = (await his.post(f"/v1/workflows/{id}/fork", json={})).json()["id"]
        assert [(await his.get(f"/v1/workflows/{one}")).json()["tenant"] for one in (id, task, fork)] == ["ann", "bob", "bob"]
        assert (await his.post(f"/v1/workflows/{id}/pause", json={"by": "ann"})).json()["paused_by"] == "bob"
        assert (await his.post(f"/v1/workflows/{id}/cancel", json={"by": "ann"})).json()["receipt"]["by"] == "bob"
