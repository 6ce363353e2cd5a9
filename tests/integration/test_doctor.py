"""What `agent-team doctor` finds about clocks, keys and buses, on servers that are there and on some that are not."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest
from typer.testing import CliRunner

from shared.cli import app as cli_app
from shared.cli.checks import judge_skew
from shared.clock import SystemClock
from shared.local.server import bind
from tests.support.doubles import SECRET
from tests.support.scripted import answer, scripted
from tests.support.servers import redis_server

Find = Callable[..., dict[str, dict[str, Any]]]
PRODUCTION = {
    **{"NODE_ENV": "production", "GEMINI_API_KEY": "AIza" + "x" * 35, "COMM_HMAC_DEFAULT_SECRET": SECRET},
    **{"AGENT_BUS_PROVIDER": "memory", "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_ROLE_KEY": "k"},
    "SENTRY_DSN": "https://key@sentry.example/1",
}


@pytest.fixture
def find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """What is found, by name; arguments are environment variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("shared.runtime.health.CHECK_SECONDS", 60.0)  # a busy machine is not unhealthy
    for name in ("DATABASE_URL", "GEMINI_API_KEY", "LOG_LEVEL", "NODE_ENV", "APP_ENV", "REDIS_URL"):
        monkeypatch.delenv(name, raising=False)
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level

    def found(**environment: str) -> dict[str, dict[str, Any]]:
        for name, value in {"AGENT_TEAM_HOME": str(tmp_path / "home"), **environment}.items():
            monkeypatch.setenv(name, value)
        result = CliRunner().invoke(cli_app.app, ["doctor", "--json"], prog_name="agent-team")
        assert result.stderr == ""
        document = orjson.loads(result.stdout)
        assert document["ok"] is (result.exit_code == 0)
        return {check["name"]: check for check in document["checks"]}

    yield found
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize(
    ("seconds", "uncertain", "ok", "found", "is_advised"),
    [
        (0.0, 0.01, True, "agrees", False),
        (-5.0, 0.0, True, "agrees", False),
        (6.0, 0.5, True, "6.0 s ahead of the database's", True),
        (6.0, 2.0, True, "agrees", False),
        (-59.0, 0.0, True, "59.0 s behind the database's", True),
        (-61.0, 0.0, False, "61.0 s behind the database's: tokens and signatures are refused", True),
        (86400.0, 5.0, False, "86400.0 s ahead of", True),
    ],
)
def test_a_clock_may_be_off_by_seconds_and_not_by_a_minute(
    seconds: float, uncertain: float, ok: bool, found: str, is_advised: bool
) -> None:
    check = judge_skew(seconds, uncertain_seconds=uncertain)
    assert (check.ok, found in check.found, bool(check.advice)) == (ok, True, is_advised), check


@pytest.mark.parametrize(("ahead", "ok"), [(0, True), (35, True), (-120, False)])
def test_the_clock_is_compared_with_the_database_s(
    find: Find, database: str, monkeypatch: pytest.MonkeyPatch, ahead: int, ok: bool
) -> None:
    now = SystemClock.now

    def wrong(self: SystemClock) -> datetime:
        return now(self) + timedelta(seconds=ahead)

    monkeypatch.setattr(SystemClock, "now", wrong)
    clock = find(DATABASE_URL=database)["clock"]
    assert clock["ok"] is ok
    assert bool(clock["advice"]) is (ahead != 0)
    if ahead:
        said, direction = float(clock["found"].split()[0]), clock["found"].split()[2]
        assert abs(said - abs(ahead)) < 15  # half of the time that the database may take to answer
        assert direction == ("ahead" if ahead > 0 else "behind")


def test_the_schema_is_told_by_its_version(find: Find, database: str) -> None:
    newest = max(file.name[:14] for file in (Path(__file__).parents[2] / "supabase" / "migrations").glob("*.sql"))
    assert find(DATABASE_URL=database)["database"]["found"].endswith(f"schema current, at {newest}")


def test_production_needs_a_key_of_the_api(find: Find, database: str) -> None:
    missing = find(DATABASE_URL=database, **PRODUCTION)["API keys"]
    assert (missing["ok"], missing["advice"]) == (False, "make one: agent-team keys api add NAME")
    _execute(
        database,
        "create table if not exists api_keys"
        " (id text, name text, hash text, scope text, created_at timestamptz, revoked_at timestamptz)",
        "insert into api_keys (id, name, hash, scope, created_at) values ('a', 'ci', 'x', 'read', now())",
        "insert into api_keys (id, name, hash, scope, created_at, revoked_at) values ('b', 'old', 'x', 'read', now(), now())",
    )
    assert find(DATABASE_URL=database, **PRODUCTION)["API keys"] == {
        "name": "API keys",
        "ok": True,
        "found": "1 key in use",
        "advice": "",
    }


def test_elsewhere_the_api_may_be_open(find: Find, database: str) -> None:
    found = find(DATABASE_URL=database)["API keys"]
    assert (found["ok"], found["found"]) == (True, "none: whoever reaches the gateway's port may use it")


@pytest.mark.parametrize(
    ("key", "ok"), [("AIza" + "x" * 35, True), ("your-key", False), ("AIza" + "x" * 10 + " " + "x" * 20, False)]
)
def test_a_gemini_key_must_look_like_one_and_is_not_shown(find: Find, key: str, ok: bool) -> None:
    found = find(GEMINI_API_KEY=key)
    assert found["model key"]["ok"] is ok
    assert key not in str(found)


def test_the_key_that_signs_is_the_one_that_was_activated_last(find: Find) -> None:
    for command in (["add"], ["activate", "k1", "--force"]):
        assert find()["signing secret"]["ok"]
        assert CliRunner().invoke(cli_app.app, ["keys", *command], prog_name="agent-team").exit_code == 0
    assert find()["signing secret"]["found"] == "kept in the data folder, signing as k1"


def test_keys_in_the_cloud_are_asked_for_there(find: Find) -> None:
    check = find(SECRETS_FROM="secret-manager", GCP_PROJECT_ID="acme", GOOGLE_APPLICATION_CREDENTIALS="/nowhere")["signing secret"]
    assert not check["ok"]
    assert check["found"] == "secret COMM_HMAC_KEYS of project acme needs credentials"
    assert "gcloud auth application-default login" in check["advice"]


def test_a_redis_bus_is_asked(find: Find) -> None:
    with redis_server(password="a-very-secret-word") as server:
        given = {"AGENT_BUS_PROVIDER": "redis", "GUARDS_BACKEND": "memory", "REDIS_URL": server.url}
        assert find(**given)["bus"]["found"].endswith(", answers")
        wrong = find(**{**given, "REDIS_URL": server.url.replace("a-very-secret-word", "another-secret-word")})["bus"]
    gone = find(**given)["bus"]
    assert (wrong["ok"], gone["ok"]) == (False, False)
    assert "password" in wrong["found"]
    assert "cannot be reached" in gone["found"]
    assert "secret-word" not in str((wrong, gone))


def test_an_emulator_is_asked_whether_it_is_there(find: Find) -> None:
    given = {"AGENT_BUS_PROVIDER": "pubsub", "GCP_PROJECT_ID": "acme"}
    with scripted([answer(200, b"Ok\n", "text/plain")]) as emulator:
        host = emulator.url.removeprefix("http://")
        assert find(**given, PUBSUB_EMULATOR_HOST=host)["bus"] == {
            "name": "bus",
            "ok": True,
            "found": f"pubsub, emulator at {host}, answers",
            "advice": "",
        }
    gone = find(**given, PUBSUB_EMULATOR_HOST=host)["bus"]
    assert (gone["ok"], gone["advice"]) == (False, "start it, or correct PUBSUB_EMULATOR_HOST")
    with scripted([answer(404, b"")]) as other:
        assert find(**given, PUBSUB_EMULATOR_HOST=other.url.removeprefix("http://"))["bus"]["ok"] is False


def test_a_database_that_is_away_ends_nothing_else(find: Find) -> None:
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    found = find(DATABASE_URL=f"postgresql://team:hunter2@127.0.0.1:{port}/postgres")
    assert [found[name]["ok"] for name in ("database", "clock", "API keys", "workflows", "bus")] == [
        False,
        False,
        False,
        True,
        True,
    ]
    assert "hunter2" not in str(found)


def _execute(database: str, *statements: str) -> None:
    async def work() -> None:
        connection = await asyncpg.connect(database)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(work())
