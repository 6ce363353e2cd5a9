"""Entry points: each function is found by its name and is registered as functions-framework needs it; and what a runtime opens."""

import ast
import asyncio
import importlib
import inspect
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
from functions_framework import _function_registry as registry

from shared.ai import Reply, Request, ToolCall, ToolContext
from shared.bus import Outcome
from shared.bus.memory import MemoryBus
from shared.bus.pubsub import PubSubBus
from shared.clock import ManualClock, SystemClock
from shared.config import load_settings
from shared.errors import ConfigurationError, NotFound
from shared.runtime import Runtime, load, process, runtime
from shared.runtime.spec import FUNCTIONS, load_functions
from shared.state import WorkflowStore
from shared.telemetry import Metrics
from tests.support.doubles import SECRET, RememberingBus, ScriptedModel, Stage, delivery, sender
from tests.support.pushes import dispatch_for_writer

SPECS = load_functions()
ROOT = FUNCTIONS.parent


@pytest.fixture
def root_main() -> ModuleType:
    spec = importlib.util.spec_from_file_location("root_main", ROOT / "main.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", SPECS)
def test_every_function_is_found_by_its_name_and_speaks_asgi(name: str, root_main: ModuleType) -> None:
    entry = getattr(root_main, name)
    assert inspect.iscoroutinefunction(entry)
    assert entry.__name__ == name
    assert name in registry.ASGI_FUNCTIONS
    assert registry.REGISTRY_MAP[name] == registry.HTTP_SIGNATURE_TYPE
    assert load(name).name == name


def test_a_function_that_is_not_there_is_named(root_main: ModuleType) -> None:
    with pytest.raises(AttributeError, match=r"functions/poet/main\.py is missing"):
        _ = root_main.poet
    with pytest.raises(NotFound, match="no function poet"):
        load("poet")


def test_a_library_that_is_missing_is_not_taken_for_a_missing_function(
    root_main: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(module: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'some_library'", name="some_library")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="some_library"):
        _ = root_main.writer
    with pytest.raises(ModuleNotFoundError, match="some_library"):
        load("writer")


@pytest.mark.parametrize("name", SPECS)
def test_a_function_handles_the_topics_that_it_is_deployed_with(name: str, tmp_path: Path) -> None:
    live = Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": "postgresql://nobody@nowhere/nothing"}))
    handlers = load(name).handlers(live)
    assert set(handlers) == {subscription.topic for subscription in SPECS[name].subscriptions()}


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.is_agent])
def test_an_agent_knows_the_agent_contract_and_nothing_else(name: str) -> None:
    for file in (FUNCTIONS / name).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith(("shared", "functions")):
                own = node.module.startswith(f"functions.{name}.")
                assert own or node.module == "shared.runtime", f"{file} imports {node.module}"


async def test_an_agent_works_on_what_its_runtime_was_given(tmp_path: Path) -> None:
    bus, model = RememberingBus(), ScriptedModel({"title": "t", "summary": "s", "text": "x"})
    settings = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "COMM_HMAC_DEFAULT_SECRET": SECRET, "AI_TEMPERATURE": "0.9"})
    clock = ManualClock()
    live = Runtime(settings, clock=clock, bus=bus, model=model)
    handler = load("writer").handlers(live)["agent-writer"]
    assert await handler(delivery(dispatch_for_writer(clock), "writer")) is Outcome.ACK
    assert len(model.requests) == 1
    assert len(bus.published) == 1


def test_a_runtime_opens_what_the_settings_say(tmp_path: Path) -> None:
    home = {"AGENT_TEAM_HOME": str(tmp_path)}
    live = Runtime(load_settings({**home, "COMM_QOS": "at-most-once", "ENABLE_IDEMPOTENCY": "false", "MAX_PAYLOAD_BYTES": "1000"}))
    assert isinstance(live.clock, SystemClock)
    assert isinstance(live.bus, MemoryBus)
    assert live.link.at_most_once
    assert live.link.idempotency is None
    assert live.link.max_bytes == 1000
    assert live.link.bus is live.bus
    assert live.max_retries == 3
    assert Runtime(load_settings({**home, "ENABLE_RETRY_LOGIC": "no"})).max_retries == 0
    assert {"report"} <= set(live.definitions)
    in_the_cloud = Runtime(load_settings({**home, "AGENT_BUS_PROVIDER": "pubsub", "GCP_PROJECT_ID": "p"})).bus
    assert isinstance(in_the_cloud, PubSubBus)
    assert in_the_cloud.project == "p"


@pytest.mark.parametrize(
    ("serves", "settings", "searches"),
    [
        (None, {}, True),  # the platform in one process has its own database
        (("researcher",), {}, False),
        # An agent's account has no database, so it asks the gateway.
        (("researcher",), {"DATABASE_URL": "postgresql://nobody@nowhere/nothing"}, False),
        (("researcher",), {"AGENT_TEAM_URL": "https://nowhere.test"}, True),
        # A process that keeps the state as well has it at hand.
        (("researcher", "orchestrator"), {"DATABASE_URL": "postgresql://nobody@nowhere/nothing"}, True),
        (("researcher", "intake"), {"SUPABASE_URL": "https://nowhere.test", "SUPABASE_SERVICE_ROLE_KEY": "x" * 40}, True),
        (("researcher", "orchestrator"), {}, False),
    ],
)
def test_documents_can_be_searched_where_a_store_or_a_gateway_is_within_reach(
    serves: tuple[str, ...] | None, settings: dict[str, str], searches: bool, tmp_path: Path
) -> None:
    live = Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path), **settings}), serves=serves)
    assert set(live.tools) == {"calculate", "http_get", *(["search_documents"] if searches else [])}
    assert "store" not in live.__dict__, "it is opened by the first search"


async def test_a_search_asks_the_store(tmp_path: Path) -> None:
    class Store:
        async def search_documents(self, query: str, limit: int) -> list[dict[str, object]]:
            return [{"document": query, "position": limit, "text": "found"}]

    live = Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path)}), store=cast(WorkflowStore, Store()), serves=("researcher",))
    call = live.tools["search_documents"].call({"query": "ferry", "limit": 3}, ToolContext("", live.clock.now(), live.clock))
    assert await call == [{"document": "ferry", "position": 3, "text": "found"}]


async def test_a_call_of_a_tool_takes_no_longer_than_the_settings_say(tmp_path: Path) -> None:
    search = asyncio.Event()
    answers = (ToolCall("search_documents", {"query": "ferry"}),)

    class Store:
        async def search_documents(self, query: str, limit: int) -> None:
            await search.wait()

    class Searching(ScriptedModel):
        async def generate(self, request: Request) -> Reply:
            reply = await super().generate(request)
            return reply if request.turns else replace(reply, calls=answers)

    model, bus, clock = Searching({"findings": [], "gaps": []}), RememberingBus(), ManualClock()
    given = {"AGENT_TEAM_HOME": str(tmp_path), "COMM_HMAC_DEFAULT_SECRET": SECRET, "DEFAULT_TOOL_TIMEOUT_MS": "50"}
    live = Runtime(load_settings(given), clock=clock, bus=bus, model=model, store=cast(WorkflowStore, Store()))
    order = Stage(clock).order(agent="researcher", input={"question": "Why?", "brief": "Because."})
    message = sender("orchestrator", clock).dispatch(order, cause="cause-1", traceparent=None)
    handler = load("researcher").handlers(live)["agent-researcher"]
    assert await handler(delivery(message, "researcher")) is Outcome.ACK
    assert model.requests[1].turns[0].results == ({"error": "search_documents took longer than its 0.05 s"},)


async def test_closing_frees_only_what_was_opened(tmp_path: Path) -> None:
    live = Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": "postgresql://nobody@nowhere/nothing"}))
    await live.close()
    assert "bus" not in live.__dict__
    assert live.store is live.store
    await live.close()


def test_the_process_has_one_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[tuple[object, ...]] = []
    monkeypatch.setattr(process, "_runtime", None)
    monkeypatch.setattr(process, "configure_logging", lambda level, *, cloud, project: told.append((level, cloud, project)))
    monkeypatch.setattr(process, "redact_values", lambda *values: told.append(values))
    # The process's own: a change noted there would reach the log of another test.
    process_metrics = Metrics()
    monkeypatch.setattr(process, "metrics", process_metrics)
    for name, value in {"COMM_HMAC_DEFAULT_SECRET": SECRET, "LOG_LEVEL": "warn", "K_SERVICE": "writer"}.items():
        monkeypatch.setenv(name, value)
    assert runtime() is runtime()
    assert told == [(SECRET,), ("warn", True, None)]
    process_metrics.log_changes(None)


def test_a_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"

    def signature() -> str:
        return Runtime(load_settings({"AGENT_TEAM_HOME": str(home)})).ring.sign("topic", b"data")["hmac-signature"]

    assert signature() == signature()
    assert stat.S_IMODE((home / "hmac-secret").stat().st_mode) == 0o600
    assert len((home / "hmac-secret").read_text()) >= 32
    assert [file.name for file in home.iterdir()] == ["hmac-secret"]


def test_of_two_that_make_a_secret_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def overtaken(source: str, target: Path) -> None:
        target.write_text("the secret of somebody who was quicker")
        link(source, target)

    monkeypatch.setattr(os, "link", overtaken)
    Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path)})).ring.sign("topic", b"data")
    assert (tmp_path / "hmac-secret").read_text() == "the secret of somebody who was quicker"


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="set AGENT_TEAM_HOME to another folder"):
        _ = Runtime(load_settings({"AGENT_TEAM_HOME": str(tmp_path / "file")})).ring
