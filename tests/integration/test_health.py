"""What `/health/ready`, the doctor and the log say of the servers that the platform stands on: real ones, right and wrong."""

import asyncio
import io
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from google.api_core import exceptions as google
from typer.testing import CliRunner

from functions.gateway.api import create_app
from functions.gateway.models import Ready
from shared.ai.guarded import breaker_of
from shared.cli import app as cli_app
from shared.clock import ManualClock
from shared.config import Settings, load_settings
from shared.errors import StoreUnavailable
from shared.local.platform import open_platform
from shared.runtime import Runtime, health
from shared.runtime.health import Readiness, dependencies
from shared.state import WorkflowStore
from shared.telemetry import configure_logging
from tests.support.doubles import SECRET, RememberingBus
from tests.support.servers import free_port, redis_server
from tests.support.simulated import simulator_thread

PASSWORD = "a-very-secret-word"
KEY = "AIza-a-key-as-long-as-those-of-google-are"
Scene = Callable[[], AbstractContextManager[str]]
"""What makes a server that is not as it must be, and gives its URL."""


def settings(**given: Any) -> Settings:
    return Settings(app_env="test", comm_hmac_default_secret=SECRET, **given)


async def ready(live: Runtime) -> tuple[int, dict[str, Any]]:
    """Status and body of `GET /health/ready`."""
    transport = httpx.ASGITransport(app=create_app(live))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        answer = await client.get("/health/ready")
    Ready.model_validate_json(answer.content)
    body: dict[str, Any] = answer.json()
    assert body["latency_ms"].keys() == body["checks"].keys()
    assert body["errors"].keys() == {name for name, verdict in body["checks"].items() if verdict == "unhealthy"}
    return answer.status_code, body


class Caller:
    """A database that answers as the test says."""

    def __init__(self, answer: Callable[[], Any] = list) -> None:
        self.answer = answer
        self.calls = 0

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        self.calls += 1
        answer = self.answer()
        return await answer if asyncio.iscoroutine(answer) else answer

    async def close(self) -> None:
        pass


def store(caller: Caller) -> WorkflowStore:
    return WorkflowStore(caller, max_running=1)


def with_models(gemini: str, default: str, *fallbacks: str, **given: Any) -> Settings:
    return settings(gemini_api_key=KEY, gemini_base_url=gemini, ai_model_default=default, ai_model_fallbacks=fallbacks, **given)


@pytest.fixture(scope="module")
def gemini() -> Iterator[str]:
    """Where a simulated Gemini answers, to our key alone."""
    with simulator_thread("gemini-x", "gemini-y", keys=frozenset({KEY})) as url:
        yield url


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine's servers are slow, and not unhealthy; the tests that are about time have their own."""
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 60.0)


# Healthy


@pytest.fixture
async def live(database: str) -> AsyncIterator[Runtime]:
    runtime = Runtime(settings(database_url=database))
    yield runtime
    await runtime.close()


async def test_with_memory_guards_database_and_model_are_what_there_is_to_check(live: Runtime) -> None:
    status, body = await ready(live)
    assert (status, body["status"], body["errors"]) == (200, "healthy", {})
    assert body["checks"] == {"database": "healthy", "ai_service": "healthy"}
    assert 0 < body["latency_ms"]["database"] < 60_000


async def test_with_redis_it_is_checked_too(database: str) -> None:
    with redis_server(password=PASSWORD) as server:
        live = Runtime(settings(database_url=database, redis_url=server.url))
        status, body = await ready(live)
        await live.close()
    assert status == 200
    assert body["checks"] == {"database": "healthy", "redis": "healthy", "ai_service": "healthy"}


async def test_a_redis_that_only_the_bus_uses_is_checked_too(database: str) -> None:
    def with_bus(url: str) -> Runtime:
        given = settings(database_url=database, redis_url=url, guards_backend="memory", agent_bus_provider="redis")
        return Runtime(given, bus=RememberingBus())

    with redis_server(password=PASSWORD) as server:
        live = with_bus(server.url)
        assert (await ready(live))[1]["checks"]["redis"] == "healthy"
        await live.close()
        live = with_bus(server.url.replace(PASSWORD, "another"))
        status, body = await ready(live)
        await live.close()
    assert (status, body["checks"]["redis"]) == (503, "unhealthy")


# Servers that are not as they must be


@contextmanager
def nobody() -> Iterator[str]:
    yield f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"


@contextmanager
def unknown_host() -> Iterator[str]:
    def look_up(host: str, *arguments: Any, **options: Any) -> Any:
        # A resolver of the machine's might take its time, or know everything.
        if host == "no-such-host.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(host, *arguments, **options)

    ask = socket.getaddrinfo
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        yield f"redis://:{PASSWORD}@no-such-host.invalid:6379/0"


@contextmanager
def wrong_password() -> Iterator[str]:
    with redis_server(password="another") as server:
        yield server.url.replace("another", PASSWORD)


@contextmanager
def full() -> Iterator[str]:
    with redis_server("--maxmemory", "1", "--maxmemory-policy", "noeviction", password=PASSWORD) as server:
        yield server.url


@contextmanager
def replica() -> Iterator[str]:
    with redis_server("--replicaof", "127.0.0.1", str(free_port()), password=PASSWORD) as server:
        yield server.url


BROKEN_REDIS: dict[Scene, str] = {
    nobody: "cannot be reached (ConnectionError); is it running, and is REDIS_URL right?",
    unknown_host: "cannot be reached (ConnectionError); is it running, and is REDIS_URL right?",
    wrong_password: "refuses REDIS_URL's user or password; correct it",
    full: "is full; raise its maxmemory",
    replica: "is a read-only replica; REDIS_URL must name the primary, unless a failover is going on",
}


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the process logs, as it stands in the log."""
    root, stream = logging.getLogger(), io.StringIO()
    level = root.level
    handler = configure_logging("warn", stream=stream)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def doctor(monkeypatch: pytest.MonkeyPatch, home: Path, **environment: str) -> dict[str, dict[str, Any]]:
    """The doctor's findings by name."""
    monkeypatch.chdir(home)
    for name, value in {"AGENT_TEAM_HOME": str(home / "home"), **environment}.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli_app.app, ["doctor", "--json"], prog_name="agent-team")
    assert PASSWORD not in result.output
    return {check["name"]: check for check in orjson.loads(result.stdout)["checks"]}


def wrong(findings: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: f"{check['found']}; {check['advice']}" for name, check in findings.items() if not check["ok"]}


def lines_of(log: io.StringIO, logger: str) -> list[dict[str, Any]]:
    return [entry for line in log.getvalue().splitlines() if (entry := orjson.loads(line))["logger"] == logger]


@pytest.mark.parametrize("broken", BROKEN_REDIS, ids=lambda broken: broken.__name__)
async def test_what_is_wrong_with_redis_is_one_clear_line_for_who_asks_and_in_the_log(
    database: str, log: io.StringIO, broken: Scene
) -> None:
    with broken() as url:
        live = Runtime(settings(database_url=database, redis_url=url))
        status, body = await ready(live)
        await live.close()

    where = url.replace(f":{PASSWORD}@", "")
    line = f"Redis at {where} {BROKEN_REDIS[broken]}"
    assert (status, body["status"]) == (503, "unhealthy")
    assert body["checks"] == {"database": "healthy", "redis": "unhealthy", "ai_service": "healthy"}
    assert body["errors"] == {"redis": line}
    (entry,) = lines_of(log, "shared.runtime.health")
    assert (entry["level"], entry["msg"], entry["status"]) == ("error", f"redis is unhealthy: {line}", "unhealthy")
    assert PASSWORD not in log.getvalue() + str(body)
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize("broken", BROKEN_REDIS, ids=lambda broken: broken.__name__)
def test_what_is_wrong_with_redis_is_one_clear_line_of_the_doctors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gemini: str, broken: Scene
) -> None:
    with broken() as url:
        findings = doctor(monkeypatch, tmp_path, REDIS_URL=url, GEMINI_API_KEY=KEY, GEMINI_BASE_URL=gemini)

    where = url.replace(f":{PASSWORD}@", "")
    assert wrong(findings) == {"guards": f"Redis at {where} {BROKEN_REDIS[broken]}"}


async def test_a_redis_that_hangs_is_unhealthy_and_the_model_is_not(
    database: str, gemini: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of a check is for the breakers, which hang with it. What is left is enough for the model on a busy machine too.
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 8.0)
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"shared.redis.connections.{name}", 10.0)
    with redis_server(password=PASSWORD) as server:
        os.kill(server.pid, signal.SIGSTOP)
        live = Runtime(settings(database_url=database, redis_url=server.url, gemini_api_key=KEY, gemini_base_url=gemini))
        status, body = await ready(live)
        await live.close()
    assert status == 503
    assert body["checks"] == {"database": "healthy", "redis": "unhealthy", "ai_service": "healthy"}
    assert f"redis://127.0.0.1:{server.port}/0" in body["errors"]["redis"]
    assert PASSWORD not in str(body)


class _WithoutDatabase:
    """Firestore's client where the project has no database: https://cloud.google.com/firestore/docs/understand-error-codes."""

    async def commit(self, *_: object, **__: object) -> None:
        raise google.NotFound("The database (default) does not exist for project acme")  # type: ignore[no-untyped-call]

    batch_get_documents = commit


NO_DATABASE = (
    "Firestore (projects/acme/databases/(default)) has no such database; create it in native mode or correct GCP_PROJECT_ID"
)


@pytest.fixture
def firestore_without_database(monkeypatch: pytest.MonkeyPatch) -> None:
    async def opened(_: object) -> _WithoutDatabase:
        return _WithoutDatabase()

    monkeypatch.setattr("shared.guards.firestore_store.FirestoreStore._open", opened)


@pytest.mark.usefixtures("firestore_without_database")
async def test_a_missing_firestore_database_is_one_clear_line_for_who_asks_and_in_the_log(database: str, log: io.StringIO) -> None:
    live = Runtime(settings(database_url=database, guards_backend="firestore", gcp_project_id="acme"))
    status, body = await ready(live)
    await live.close()

    assert status == 503
    assert body["checks"] == {"database": "healthy", "firestore": "unhealthy", "ai_service": "healthy"}
    assert body["errors"] == {"firestore": NO_DATABASE}
    assert [entry["msg"] for entry in lines_of(log, "shared.runtime.health")] == [f"firestore is unhealthy: {NO_DATABASE}"]


@pytest.mark.usefixtures("firestore_without_database")
def test_a_missing_firestore_database_is_one_clear_line_of_the_doctors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gemini: str
) -> None:
    model = {"GEMINI_API_KEY": KEY, "GEMINI_BASE_URL": gemini}
    findings = doctor(monkeypatch, tmp_path, GUARDS_BACKEND="firestore", GCP_PROJECT_ID="acme", **model)
    assert wrong(findings) == {"guards": NO_DATABASE}


async def test_a_database_that_is_not_there_is_named_without_its_password() -> None:
    port = free_port()
    live = Runtime(settings(database_url=f"postgresql://team:{PASSWORD}@127.0.0.1:{port}/state"))
    status, body = await ready(live)
    await live.close()
    assert (status, body["checks"]) == (503, {"database": "unhealthy", "ai_service": "healthy"})
    assert body["errors"]["database"].startswith(f"postgresql://127.0.0.1:{port}/state: the database cannot be reached")
    assert PASSWORD not in str(body)


def test_the_doctor_names_a_database_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    port = free_port()
    findings = doctor(monkeypatch, tmp_path, DATABASE_URL=f"postgresql://team:{PASSWORD}@127.0.0.1:{port}/state")
    assert wrong(findings)["database"].startswith(f"postgresql://127.0.0.1:{port}/state: the database cannot be reached")


async def test_a_database_without_the_schema_says_how_to_get_it(empty_database: str) -> None:
    live = Runtime(settings(database_url=empty_database))
    status, body = await ready(live)
    await live.close()
    assert status == 503
    assert "run `agent-team migrate`" in body["errors"]["database"]


async def test_over_http_the_projects_host_is_named_and_not_the_databases() -> None:
    port = free_port()
    given = settings(
        database_url="postgresql://team:x@database.example/state",
        supabase_url=f"http://127.0.0.1:{port}",
        supabase_service_role_key=PASSWORD,
    )
    live = Runtime(given, serves=("gateway",))
    status, body = await ready(live)
    await live.close()
    assert status == 503
    assert "127.0.0.1" in body["errors"]["database"]
    assert "database.example" not in body["errors"]["database"]
    assert PASSWORD not in str(body)


async def test_an_error_that_nobody_expected_is_in_the_log_and_not_in_the_answer(log: io.StringIO) -> None:
    def broken() -> None:
        raise ZeroDivisionError("payload")

    status, body = await ready(Runtime(settings(), store=store(Caller(broken))))
    assert status == 503
    assert body["errors"] == {"database": "database cannot be checked (ZeroDivisionError); see the log"}
    first, second = lines_of(log, "shared.runtime.health")
    assert first["error"]["type"] == "ZeroDivisionError"
    assert second["msg"].startswith("database is unhealthy")
    assert "payload" not in log.getvalue()


# The model


@pytest.mark.parametrize(
    ("failures", "later", "breaker", "status"), [(4, 0, True, 200), (5, 0, True, 503), (5, 30, True, 200), (5, 0, False, 200)]
)
async def test_the_model_is_unhealthy_while_its_breaker_is_open(
    gemini: str, failures: int, later: float, breaker: bool, status: int
) -> None:
    clock = ManualClock()
    given = with_models(gemini, "gemini-x", enable_circuit_breaker=breaker)
    live = Runtime(given, clock=clock, store=store(Caller()))
    for _ in range(failures):
        await live.guards.breaker.after(breaker_of("gemini-x"), success=False)
    await clock.advance(later)

    answered, body = await ready(live)
    assert answered == status
    if status == 503:
        assert body["errors"]["ai_service"].startswith("the circuit breaker of gemini-x is OPEN")


@pytest.mark.parametrize(("open_circuits", "status"), [(("gemini-x",), 200), (("gemini-x", "gemini-y"), 503)])
async def test_the_models_are_unhealthy_when_none_is_left(gemini: str, open_circuits: tuple[str, ...], status: int) -> None:
    given = with_models(gemini, "gemini-x", "gemini-y")
    live = Runtime(given, clock=ManualClock(), store=store(Caller()))
    for model in open_circuits:
        for _ in range(5):
            await live.guards.breaker.after(breaker_of(model), success=False)

    answered, body = await ready(live)
    assert answered == status
    if status == 503:
        assert body["errors"]["ai_service"].startswith("the circuit breakers of gemini-x, gemini-y are OPEN")


async def test_the_model_is_unhealthy_when_it_cannot_be_opened() -> None:
    status, body = await ready(Runtime(settings(gemini_api_key="AIza\u00e9"), store=store(Caller())))
    assert status == 503
    assert body["errors"]["ai_service"].startswith("GEMINI_API_KEY")


async def asked_of(given: Settings) -> tuple[int, str | None]:
    """The status, and what is said of the model."""
    live = Runtime(given, store=store(Caller()))
    status, body = await ready(live)
    await live.close()
    return status, body["errors"].get("ai_service")


async def test_a_model_that_nobody_has_called_yet_is_asked_for_without_calling_it(gemini: str) -> None:
    assert await asked_of(with_models(gemini, "gemini-x")) == (200, None)
    async with httpx.AsyncClient() as client:
        ledger = (await client.get(f"{gemini}/_simulator/ledger")).json()
    assert ledger["models"].get("gemini-x", {}).get("calls", 0) == 0


async def test_a_model_that_is_not_there_is_passed_over_while_there_is_another(gemini: str) -> None:
    assert await asked_of(with_models(gemini, "gemini-gone", "gemini-y")) == (200, None)
    status, said = await asked_of(with_models(gemini, "gemini-gone", "gemini-lost"))
    assert (status, said) == (
        503,
        "gemini-gone: no such model; set AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS to models that Google serves",
    )


async def test_a_key_that_is_refused_is_unhealthy_and_not_shown(gemini: str) -> None:
    status, said = await asked_of(settings(gemini_api_key=f"AIza-{PASSWORD}", gemini_base_url=gemini))
    assert (status, said) == (503, "the key is refused (400); check that GEMINI_API_KEY is valid and may use the Gemini API")


async def test_a_gemini_that_is_away_is_named_without_its_password() -> None:
    port = free_port()
    status, said = await asked_of(settings(gemini_api_key=KEY, gemini_base_url=f"http://user:{PASSWORD}@127.0.0.1:{port}/"))
    assert (status, said) == (503, f"http://127.0.0.1:{port} cannot be reached (ConnectError); is the network there?")


async def test_a_gemini_that_does_not_answer_is_unhealthy_within_the_time_of_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < health._SHARE < 1
    monkeypatch.setattr(health, "_SHARE", 0.01)  # of a minute: what is left for a machine to be late is far more
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        status, said = await asked_of(settings(gemini_api_key=KEY, gemini_base_url=url))
    assert (status, str(said).replace("0.5", "0.6")) == (503, f"{url} did not answer within 0.6 s; is it reachable from here?")


@pytest.mark.parametrize(("answer", "status"), [(200, 200), (429, 200), (500, 503), (503, 503), (403, 503)])
async def test_a_quota_that_is_used_up_is_no_failure_of_the_service(answer: int, status: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {answer} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert (await asked_of(settings(gemini_api_key=KEY, gemini_base_url=url, ai_model_fallbacks=())))[0] == status


# How it is asked


async def test_what_does_not_answer_in_time_is_unhealthy_and_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 0.05)
    given = settings(database_url=f"postgresql://team:{PASSWORD}@database.example/state")
    status, body = await ready(Runtime(given, store=store(Caller(lambda: asyncio.Event().wait()))))
    assert status == 503
    assert body["checks"] == {"database": "unhealthy", "ai_service": "healthy"}
    assert body["errors"]["database"].startswith("postgresql://database.example/state: no answer within 0.05 s")
    assert body["latency_ms"]["database"] >= 50
    assert body["latency_ms"]["database"] > body["latency_ms"]["ai_service"]


async def test_all_are_asked_at_once() -> None:
    caller = Caller(lambda: both.wait())
    live = Runtime(settings(redis_url="redis://unused"), store=store(caller))
    both = asyncio.Barrier(2)

    class Idempotency:
        async def claim(self, *_: object, **__: object) -> None:
            await both.wait()

    class Guards:
        idempotency = Idempotency()

    live.__dict__["guards"] = Guards()
    assert (await ready(live))[0] == 200


async def test_an_answer_is_shared_by_all_who_ask_at_once_and_kept_for_five_seconds() -> None:
    clock, gate = ManualClock(), asyncio.Event()
    caller = Caller(lambda: gate.wait())
    readiness = Readiness(Runtime(settings(), clock=clock, store=store(caller)))
    asked = [asyncio.create_task(readiness.report()) for _ in range(10)]
    await clock.advance(0)
    asked[0].cancel()
    gate.set()
    answers = await asyncio.gather(*asked[1:])
    assert isinstance((await asyncio.gather(asked[0], return_exceptions=True))[0], asyncio.CancelledError)
    assert all(answer is answers[0] for answer in answers)
    assert caller.calls == 1

    await clock.advance(4.9)
    assert await readiness.report() is answers[0]
    await clock.advance(0.1)
    assert await readiness.report() is not answers[0]
    assert caller.calls == 2


async def test_only_changes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    clock, errors = ManualClock(), [None, "down", "down", "refused", None, None]
    current = iter(errors)

    def answer() -> list[Any]:
        error = next(current)
        if error is not None:
            raise StoreUnavailable(error)
        return []

    readiness = Readiness(Runtime(settings(database_url="postgresql://db/x"), clock=clock, store=store(Caller(answer))))
    for _ in errors:
        await readiness.report()
        await clock.advance(5)

    assert [record.getMessage() for record in caplog.records] == [
        "database is unhealthy: postgresql://db/x: down",
        "database is unhealthy: postgresql://db/x: refused",
        "database is healthy again",
    ]


async def test_the_platform_in_one_process_has_memory_guards_and_checks_no_redis(database: str, tmp_path: Path) -> None:
    given = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": database, "REDIS_URL": "redis://nowhere"})
    async with open_platform(given) as platform:
        names = [dependency.name for dependency in dependencies(platform.runtime)]
        status, _ = await ready(platform.runtime)
    assert (names, status) == (["database", "ai_service"], 200)
