"""Secrets from Secret Manager: what a function fetches as it starts, and what it says when something is missing."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from functions_framework.aio import create_asgi_app

from shared.clock import ManualClock, SystemClock
from shared.errors import ConfigurationError, StoreUnavailable
from shared.keys.manager import SECRET, SecretManagerKeyStore
from shared.messages import KeyRing
from shared.runtime import Runtime, process, starting
from shared.runtime.spec import load_functions
from shared.runtime.starting import fetch, started
from shared.secrets import SecretManager
from shared.telemetry import Metrics
from tests.support.secret_manager import PROJECT, Service, serving

ROOT = Path(__file__).parents[2]
SPECS = load_functions()
KEY = "k" * 40
CLOUD = {
    "NODE_ENV": "production",
    "SECRETS_FROM": "secret-manager",
    "GCP_PROJECT_ID": PROJECT,
    "AGENT_BUS_PROVIDER": "memory",
    "GUARDS_BACKEND": "memory",
    "SENTRY_DSN": "",
}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def service(clock: ManualClock) -> AsyncIterator[Service]:
    async with serving(clock) as one:
        yield one


@pytest.fixture
async def manager(service: Service) -> AsyncIterator[SecretManager]:
    one = service.manager()
    yield one
    await one.close()


async def test_a_value_is_kept_for_five_minutes_and_that_of_a_version_for_ever(
    service: Service, manager: SecretManager, clock: ManualClock
) -> None:
    service.put("GEMINI_API_KEY", "one\n")
    assert (await manager.value("GEMINI_API_KEY")).get_secret_value() == "one"
    service.put("GEMINI_API_KEY", "two")
    await clock.advance(299)
    assert (await manager.value("GEMINI_API_KEY")).get_secret_value() == "one"
    await clock.advance(1)
    assert (await manager.value("GEMINI_API_KEY")).get_secret_value() == "two"
    assert (await manager.value("GEMINI_API_KEY", "1")).get_secret_value() == "one"
    calls = service.calls["access_secret_version"]
    await clock.advance(10_000)
    await manager.value("GEMINI_API_KEY", "1")
    assert service.calls["access_secret_version"] == calls


async def test_a_missing_secret_version_or_grant_is_told_with_the_command_that_mends_it(
    service: Service, manager: SecretManager
) -> None:
    for name in ("ABSENT", "EMPTY"):
        service.put("EMPTY")
        with pytest.raises(ConfigurationError, match=f"gcloud secrets versions add {name} --project=acme --data-file=-"):
            await manager.value(name)
    service.put("DATABASE_URL", "x").refused = {"access_secret_version"}
    with pytest.raises(ConfigurationError) as told:
        await manager.value("DATABASE_URL")
    assert str(told.value) == (
        "secret DATABASE_URL of project acme refuses this account; gcloud secrets add-iam-policy-binding DATABASE_URL "
        "--project=acme --member=serviceAccount:fn-writer@acme.iam.gserviceaccount.com --role=roles/secretmanager.secretAccessor"
    )
    service.put(SECRET, KEY).refused = {"list_secret_versions"}
    with pytest.raises(ConfigurationError, match=r"secret COMM_HMAC_KEYS .* --role=roles/secretmanager.viewer"):
        await SecretManagerKeyStore(manager).read()


async def test_a_service_that_fails_is_to_be_tried_again(service: Service, manager: SecretManager) -> None:
    service.put("GEMINI_API_KEY", "x")
    service.down = True
    with pytest.raises(StoreUnavailable, match=r"refuses work for secret GEMINI_API_KEY \(InternalServerError\)"):
        await manager.value("GEMINI_API_KEY")


@pytest.mark.parametrize("name", SPECS)
async def test_a_function_fetches_what_its_file_lists_and_nothing_else(name: str, service: Service, manager: SecretManager) -> None:
    listed = {*SPECS[name].secrets, "SENTRY_DSN"} - {"COMM_HMAC_KEYS"}
    for secret in listed:
        service.put(secret, f"the {secret}")
    found = await fetch(manager, SPECS[name], {"GUARDS_BACKEND": "firestore"})
    assert found == {secret: f"the {secret}" for secret in listed}
    assert service.calls == {"access_secret_version": len(listed)}
    service.put("REDIS_URL", "redis://nowhere")
    assert "REDIS_URL" in await fetch(manager, SPECS[name], {"GUARDS_BACKEND": "redis"})


async def test_all_that_is_missing_is_told_at_once_and_what_a_function_can_do_without_is_not_asked_for(
    service: Service, manager: SecretManager
) -> None:
    with pytest.raises(ConfigurationError) as told:
        await fetch(manager, SPECS["researcher"], {})
    assert [line.split()[1] for line in str(told.value).splitlines()] == ["GEMINI_API_KEY", "SENTRY_DSN"]
    found = await fetch(manager, SPECS["researcher"], {"GEMINI_API_KEY": "given", "SENTRY_DSN": "given"})
    assert found == {}, "what the environment has is not fetched"


@pytest.fixture
def writer_in_the_cloud(service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Service:
    """The writer's process, before its first request; its clock is the machine's."""
    service.clock = SystemClock()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(process, "_runtime", None)
    monkeypatch.setattr(process, "metrics", Metrics())
    monkeypatch.setattr(process, "tell_sentry", lambda *_arguments, **_more: None)
    monkeypatch.setattr(process, "configure_logging", lambda *_arguments, **_more: None)
    monkeypatch.setattr(starting, "SecretManager", lambda _project, clock, **_more: service.manager(clock))
    for name, value in CLOUD.items():
        monkeypatch.setenv(name, value)
    service.put("SENTRY_DSN", "https://publickey@sentry.example/1")
    service.put(SECRET, KEY)
    return service


async def test_a_function_whose_secret_is_missing_keeps_its_messages_until_it_is_there(
    writer_in_the_cloud: Service, caplog: pytest.LogCaptureFixture
) -> None:
    service = writer_in_the_cloud
    app = create_asgi_app("writer", str(ROOT / "main.py"))  # type: ignore[no-untyped-call]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://writer") as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(3)))
        assert {answer.status_code for answer in answers} == {503}
        assert "GEMINI" not in answers[0].text, "it is told in the log and not to the caller"
        assert "gcloud secrets versions add GEMINI_API_KEY" in caplog.records[0].getMessage()
        service.put("GEMINI_API_KEY", "AIza" + "x" * 30)
        answer = await client.get("/")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "function": "writer"})
    live = await started("writer")
    assert live.settings.gemini_api_key is not None
    assert live.settings.database_url is None
    assert live.ring is not None
    await live.close()


async def test_a_function_of_the_cloud_verifies_with_the_keys_that_it_read(
    writer_in_the_cloud: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = writer_in_the_cloud
    service.put("GEMINI_API_KEY", "AIza" + "x" * 30)
    live: Runtime = await started("writer")
    await live.ring.fresh()
    data = b"data"
    live.ring.verify("topic", data, KeyRing("k1", {"k1": KEY}).sign("topic", data))
    assert live.ring.active == "k1"
    assert not (Path.cwd() / ".agent-team").exists(), "nothing is made on the instance's disk"
    await live.close()


def test_the_client_is_imported_by_whoever_asks_it_and_by_nobody_else() -> None:
    script = (
        "import sys, functions.writer.main, functions.key_rotator.main, shared.keys.manager, shared.runtime.starting;"
        "print([name for name in ('google.cloud.secretmanager_v1', 'grpc', 'google.api_core') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
