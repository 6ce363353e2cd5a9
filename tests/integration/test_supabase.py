"""Supabase's HTTP API: who may call, what goes wrong and what is said of it, and the platform over it."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from postgrest.exceptions import APIError
from starlette.responses import HTMLResponse, JSONResponse, Response
from supabase import AsyncSupabaseException

import shared.state.supabase
from shared.ai.offline import OfflineModel
from shared.clock import SystemClock
from shared.config import load_settings
from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable
from shared.local import open_platform
from shared.runtime import Runtime
from shared.state import WorkflowStore
from shared.state.postgres import connected
from shared.state.supabase import SupabaseCaller, translate
from tests.conftest import Postgres
from tests.support.postgrest import ROLES, Project, grant_as_supabase_does, key, project, project_database
from tests.support.reports import brief, outputs, write_reports

from .door import TABLES, requested, step

pytestmark = pytest.mark.asyncio(loop_scope="module")
CALLS: dict[str, dict[str, Any]] = {
    "advance": {"events": [], "max_running": 1},
    "get_workflow": {"id": "wf_1"},
    "list_workflows": {},
    "workflow_history": {"id": "wf_1"},
    "workflow_snapshot": {"id": "wf_1", "seq": 1},
    "record_dead_letter": {
        "letter": {
            **{"message_id": "m", "subscription": "s", "topic": "t", "function": "f", "cause": "c", "reason": "r"},
            **{"data": "", "attributes": {}},
        }
    },
    "list_dead_letters": {"filter": {"states": ["waiting"]}},
    "count_dead_letters": {"filter": {}},
    "read_dead_letters": {"ids": [1]},
    "redrive_dead_letters": {"ids": [1, 2], "states": ["waiting"]},
    "return_dead_letters": {"ids": []},
    "put_document": {"name": "n", "sha256": "h", "passages": ["text"]},
    "list_documents": {},
    "search_documents": {"query": "text", "max_rows": 1},
    "remove_document": {"name": "n"},
    "add_api_key": {"id": "i", "name": "n", "hash": "h", "scope": "read"},
    "list_api_keys": {},
    "find_api_key": {"id": "i"},
    "use_api_key": {"id": "i"},
    "has_api_keys": {},
    "revoke_api_key": {"name": "n"},
    "read_schedules": {},
    "note_schedules": {"notes": [{"name": "n", "cron": "* * * * *", "tick": "2026-11-24T12:00:00Z"}]},
}


@pytest.fixture(scope="module")
def migrated(postgres: Postgres) -> Iterator[str]:
    with project_database(postgres) as dsn:
        yield dsn


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(migrated: str) -> AsyncIterator[Project]:
    async with project(migrated) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def supabase(running: Project) -> AsyncIterator[Project]:
    """A project with an empty state."""
    await running.pool.execute(f"truncate {', '.join(TABLES)} restart identity")
    running.answer = None
    running.clients.clear()
    running.calls.clear()
    running.most_in_flight = 0
    yield running
    running.answer = None


async def refusal(url: str, api_key: str, function: str = "list_workflows") -> AgentTeamError:
    """The error that a call ends with; it is one line and holds neither the key nor anything that was sent."""
    caller = SupabaseCaller(url, api_key)
    try:
        with pytest.raises(AgentTeamError) as raised:
            await caller.call(function, CALLS[function])
    finally:
        await caller.close()
    _is_one_clear_line(raised.value)
    assert api_key not in str(raised.value)
    return raised.value


def _is_one_clear_line(error: AgentTeamError) -> None:
    message = str(error)
    assert len(message) > 20
    assert "\n" not in message
    assert "hunter2" not in message


async def test_the_roles_are_those_of_supabase() -> None:
    assert set(ROLES) == {"anon", "authenticated", "service_role"}


@pytest.mark.parametrize("function", CALLS)
async def test_the_service_role_may_call(supabase: Project, function: str) -> None:
    caller = SupabaseCaller(supabase.url, key())
    await caller.call(function, CALLS[function])
    await caller.close()
    assert supabase.calls == [function]


@pytest.mark.parametrize("role", ["anon", "authenticated"])
@pytest.mark.parametrize("function", CALLS)
async def test_the_public_roles_may_not(supabase: Project, role: str, function: str) -> None:
    error = await refusal(supabase.url, key(role), function)
    assert type(error) is ConfigurationError
    assert "127.0.0.1 may not call" in str(error)
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(error)
    assert await supabase.pool.fetchval("select count(*) from dead_letters") == 0


async def test_an_expired_key_is_told_from_a_wrong_one(supabase: Project) -> None:
    expired = await refusal(supabase.url, key(lives_seconds=-60))
    assert type(expired) is ConfigurationError
    assert "has expired; set SUPABASE_SERVICE_ROLE_KEY to a new service role key" in str(expired)
    for wrong in (key(secret="the secret of another project, long enough for HS256"), "sb_secret_unknown"):
        error = await refusal(supabase.url, wrong)
        assert type(error) is ConfigurationError
        assert "127.0.0.1 refuses the key; set SUPABASE_SERVICE_ROLE_KEY" in str(error)


@pytest.mark.parametrize("bad", ["pasted with\nits line", "with a space", "schlüssel"])
async def test_a_key_that_no_header_can_hold_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ConfigurationError, match="SUPABASE_SERVICE_ROLE_KEY") as raised:
        SupabaseCaller("https://project.supabase.co", bad)
    assert bad not in str(raised.value)


async def test_a_project_that_is_not_migrated_says_how_to_migrate_it(postgres: Postgres, migrated: str) -> None:
    dsn = postgres.create_empty()
    try:
        await grant_as_supabase_does(dsn)
        async with project(dsn) as bare:
            error = await refusal(bare.url, key())
    finally:
        postgres.drop(dsn)
    assert type(error) is ConfigurationError
    assert "run `agent-team migrate`" in str(error)


PAUSED = "the Supabase project at 127.0.0.1 is paused; resume it in the dashboard"
GATEWAY: list[tuple[Response, type[AgentTeamError], str]] = [
    (Response("paused", 540), StoreUnavailable, PAUSED),
    (JSONResponse({"message": "project paused"}, 540), StoreUnavailable, PAUSED),
    (JSONResponse({"message": "name resolution failed"}, 503), StoreUnavailable, "see in the dashboard whether it is paused"),
    (JSONResponse({"code": "PGRST002", "message": "no schema cache"}, 503), StoreUnavailable, "whether it is paused"),
    (HTMLResponse("<h1>web server is down</h1>", 521), StoreUnavailable, "HTTP 521"),
    (HTMLResponse("hunter2", 500), StoreUnavailable, "HTTP 500"),
    (Response("", 544), StoreUnavailable, "HTTP 544"),
    (JSONResponse({"message": "rate limit", "code": 429}, 429), StoreUnavailable, "HTTP 429"),
    (JSONResponse({"message": "exceed_egress_quota"}, 402), StoreUnavailable, "usage and billing"),
    (JSONResponse({"message": "Invalid API key", "hint": "hunter2"}, 401), ConfigurationError, "set SUPABASE_SERVICE_ROLE_KEY"),
    (JSONResponse({"message": "No API key found"}, 403), ConfigurationError, "set SUPABASE_SERVICE_ROLE_KEY"),
    (JSONResponse({"message": "no Route matched"}, 404), ConfigurationError, "correct SUPABASE_URL"),
    (HTMLResponse("<h1>a web site, hunter2</h1>", 200), ConfigurationError, "correct SUPABASE_URL"),
    (JSONResponse(["not a problem"], 405), ConfigurationError, "correct SUPABASE_URL"),
    (Response("", 200, media_type="application/json"), ConfigurationError, "correct SUPABASE_URL"),
    (Response("", 301, {"location": "https://elsewhere/"}), ConfigurationError, "correct SUPABASE_URL"),
    (HTMLResponse("too large", 413), Permanent, "HTTP 413"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), GATEWAY, ids=[f"{a.status_code} {says}" for a, _, says in GATEWAY])
async def test_what_answers_instead_of_postgrest_is_understood(
    supabase: Project, answer: Response, kind: type[AgentTeamError], says: str
) -> None:
    supabase.answer = answer
    error = await refusal(supabase.url, key())
    assert type(error) is kind
    assert says in str(error)
    assert "127.0.0.1" in str(error)


async def test_a_busy_gateway_says_when_to_come_back(supabase: Project) -> None:
    supabase.answer = Response("", 429, {"retry-after": "7"})
    error = await refusal(supabase.url, key())
    assert isinstance(error, StoreUnavailable)
    assert error.retry_after_seconds == 7


async def test_a_host_that_dns_does_not_know_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "hunter2")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = await refusal("https://paused.supabase.co", key())
    assert type(error) is StoreUnavailable
    assert str(error).startswith("paused.supabase.co is not known to DNS; correct SUPABASE_URL, or resume the project")


async def test_a_host_where_nobody_listens_is_unavailable() -> None:
    error = await refusal("http://127.0.0.1:1", key())
    assert type(error) is StoreUnavailable
    assert "127.0.0.1 cannot work now (ConnectError)" in str(error)


@pytest.mark.parametrize("url", ["ftp://host", "https://[::1", "https://host:port", "https://"])
async def test_what_is_no_url_is_a_configuration_error(url: str) -> None:
    error = await refusal(url, key())
    assert type(error) is ConfigurationError
    assert "SUPABASE_URL" in str(error)


async def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared.state.supabase, "_CALL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = await refusal(f"http://127.0.0.1:{silent.getsockname()[1]}", key())
    assert type(error) is StoreUnavailable


async def test_two_hundred_callers_share_the_few_connections(supabase: Project) -> None:
    caller = SupabaseCaller(supabase.url, key(), connections=5)
    store = WorkflowStore(caller, max_running=1000)
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(store.advance([requested([step("a")], f"wf_{n:03}")]) for n in range(100)),
            *(store.history(f"wf_{n:03}") for n in range(200)),
        )
    assert await supabase.pool.fetchval("select count(*) from workflows") == 100
    assert supabase.most_in_flight == 5
    assert len(supabase.clients) == 5
    await store.close()


async def test_a_whole_report_is_written_over_the_api(supabase: Project, migrated: str, tmp_path: Path) -> None:
    settings = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": migrated})
    store = WorkflowStore(SupabaseCaller(supabase.url, key()), max_running=settings.max_concurrent_pipelines)
    live = Runtime(settings, clock=SystemClock(), model=OfflineModel(), store=store)
    async with open_platform(settings, runtime=live) as opened:
        (workflow,) = await write_reports(opened, [brief(0)])
        history = await opened.runtime.store.history(workflow["id"])
    assert (workflow["status"], workflow["error"]) == ("SUCCESS", None)
    assert {one["status"] for one in workflow["steps"]} == {"SUCCESS"}
    assert workflow["output"] == outputs(workflow)["final"]
    assert [entry["seq"] for entry in history] == list(range(1, len(history) + 1))
    assert {"advance", "get_workflow", "list_workflows", "workflow_history"} == set(supabase.calls)
    async with connected(migrated) as connection:
        assert await connection.fetchval("select count(*) from workflows where status = 'SUCCESS'") == 1


# What the client raises

TRANSPORT: dict[type[BaseException], type[AgentTeamError]] = {
    httpx.UnsupportedProtocol: ConfigurationError,
    httpx.InvalidURL: ConfigurationError,
    AsyncSupabaseException: ConfigurationError,
    ValueError: ConfigurationError,
    TimeoutError: StoreUnavailable,
    OSError: StoreUnavailable,
    RuntimeError: StoreUnavailable,
    TypeError: Permanent,
}
HTTPX = [
    cls for _, cls in inspect.getmembers(httpx, inspect.isclass) if issubclass(cls, httpx.RequestError) and cls not in TRANSPORT
]


@pytest.mark.parametrize("cls", [*TRANSPORT, *HTTPX], ids=lambda cls: cls.__name__)
async def test_each_error_of_the_client_and_the_network_is_translated(cls: type[Exception]) -> None:
    error = translate(cls("the key is hunter2"), host="host", function="advance")
    assert type(error) is TRANSPORT.get(cls, StoreUnavailable)
    _is_one_clear_line(error)


async def test_the_walk_over_the_client_s_errors_finds_them() -> None:
    assert {httpx.ConnectError, httpx.ReadTimeout, httpx.PoolTimeout, httpx.RemoteProtocolError} <= set(HTTPX)


CODES: dict[str | None, type[AgentTeamError]] = {
    **dict.fromkeys(("PGRST000", "PGRST001", "PGRST002", "PGRST003", "PGRSTX00"), StoreUnavailable),
    **dict.fromkeys(("PGRST100", "PGRST102", "PGRST116", "PGRST121"), Permanent),
    **dict.fromkeys(("PGRST106", "PGRST202", "PGRST203", "PGRST300", "PGRST301", "PGRST302", "PGRST303"), ConfigurationError),
    **dict.fromkeys(("08006", "40P01", "53300", "55P03", "57014", "57P01", "25006", "XX000"), StoreUnavailable),
    **dict.fromkeys(("28P01", "3F000", "42883", "42P01", "42501"), ConfigurationError),
    **dict.fromkeys(("22023", "22P05", "23505", "54001", "P0001", None), Permanent),
}


@pytest.mark.parametrize("code", CODES)
async def test_each_code_of_an_answer_is_translated(code: str | None) -> None:
    body = {"code": code, "message": "hunter2", "details": "hunter2", "hint": "hunter2"}
    error = translate(APIError(body), host="host", function="advance")
    assert type(error) is CODES[code]
    _is_one_clear_line(error)
