"""Every workflow that comes with the platform, with its example, offline and over HTTP from a simulated Gemini, on two buses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.ai import offline
from shared.ai.catalog import Limit
from shared.local import Platform
from shared.local.servers import redis_binary
from shared.local.simulator import SimulatorSettings, answers, open_simulator, served_models
from shared.messages import WorkflowRequested, WorkflowSignalled
from shared.runtime.signals import send_signal
from tests.conftest import Postgres
from tests.support.library import ROOT, WORKFLOWS, differences, documented_output, example
from tests.support.redis_bus import bus_at
from tests.support.reports import outputs, platform
from tests.support.servers import missing, redis_server

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECONDS = 60
NOTES = (ROOT / "examples" / "incident-chat.txt").read_text(encoding="utf-8")
NOTICES = {"offline": offline.NOTICE, "simulated": answers.NOTICE}


@dataclass(frozen=True)
class Here:
    """A platform, and which model answers it."""

    platform: Platform
    model: str


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=[(model, bus) for model in NOTICES for bus in ("memory", "redis")], ids="-".join
)
async def here(request: pytest.FixtureRequest, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Here]:
    model, bus = request.param
    database = postgres.create()
    async with AsyncExitStack() as stack:
        variables: dict[str, str] = {}
        opened = None
        if bus == "redis":
            if redis_binary() is None:
                missing("redis-server")
            opened = await stack.enter_async_context(bus_at(stack.enter_context(redis_server())))
        if model == "simulated":
            plenty = SimulatorSettings(models={name: Limit(qps=1000, burst=1000) for name in served_models()})
            simulator = await stack.enter_async_context(open_simulator(plenty))
            variables = {"GEMINI_API_KEY": "AIza-some-key", "GEMINI_BASE_URL": simulator.url, "AI_RATE_QPS": "1000"}
        home = tmp_path_factory.mktemp("home")
        yield Here(await stack.enter_async_context(platform(database, home, model=None, bus=opened, **variables)), model)
    postgres.drop(database)


async def run(opened: Platform, workflow: str, given: dict[str, Any], **decision: Any) -> dict[str, Any]:
    """The workflow once it has ended; whatever it asks a person is decided so."""
    id = await opened.submit(WorkflowRequested(workflow=workflow, input=given))
    async with asyncio.timeout(SECONDS):
        async for entry in opened.follow(id):
            if entry["type"] == "workflow.waiting":
                await decide(opened, id, decision)
    return await opened.runtime.store.get(id)


async def decide(opened: Platform, id: str, decision: dict[str, Any]) -> None:
    for step in (await opened.runtime.store.get(id))["steps"]:
        if step["status"] == "WAITING":
            said = WorkflowSignalled(workflow=id, name=step["id"], by="ann", **{"decision": "approve", **decision})
            await send_signal(opened.runtime, said, source="cli", signal=step["id"])


@pytest.mark.parametrize("workflow", WORKFLOWS)
async def test_a_workflow_makes_of_its_example_what_its_page_shows(here: Here, workflow: str) -> None:
    ended = await run(here.platform, workflow, example(workflow))

    assert (ended["status"], ended["error"]) == ("SUCCESS", None)
    assert {step["status"] for step in ended["steps"]} <= {"SUCCESS", "SKIPPED"}
    assert {step["attempt"] for step in ended["steps"]} <= {0, 1}
    assert differences(ended["output"], documented_output(workflow)) == []
    assert ended["usage"]["model_calls"] == sum(step["usage"]["model_calls"] for step in ended["steps"]) > 0
    if "text" in ended["output"]:
        # Whoever reads it is told once that nobody thought about it.
        assert ended["output"]["text"].startswith("# ")
        assert ended["output"]["text"].count(NOTICES[here.model]) == 1


async def test_a_postmortem_that_a_person_approves_is_final_as_it_was(here: Here) -> None:
    ended = await run(here.platform, "incident-postmortem", {"notes": NOTES, "approval": True})
    said = outputs(ended)
    assert (ended["status"], said["approve"]["by"]) == ("SUCCESS", "ann")
    assert ended["output"] == said["revise"]
    (final,) = [step for step in ended["steps"] if step["id"] == "final"]
    assert final["usage"]["model_calls"] == 0


async def test_a_postmortem_that_a_person_rejects_is_none(here: Here) -> None:
    ended = await run(here.platform, "incident-postmortem", {"notes": NOTES, "approval": True}, decision="reject")
    assert (ended["status"], ended["output"], ended["error"]["type"]) == ("FAILED", None, "Rejected")


async def test_what_a_person_wants_of_a_postmortem_is_not_lost(here: Here) -> None:
    asked = {"notes": NOTES, "approval": True}
    commented = await run(here.platform, "incident-postmortem", asked, comment="Say what the German seller lost.")
    assert "Say what the German seller lost." in commented["output"]["text"]
    amended = await run(here.platform, "incident-postmortem", asked, decision="amend", data="# Mine")
    assert amended["output"]["text"] == "# Mine"


async def test_every_fact_of_a_postmortem_stands_in_the_notes(here: Here) -> None:
    output = (await run(here.platform, "incident-postmortem", {"notes": NOTES}))["output"]
    quotes = [one["quote"] for name in ("impact", "moments", "causes", "went_well", "actions") for one in output[name]]
    assert len(quotes) >= 20
    flat = " ".join(NOTES.split())
    assert [quote for quote in quotes if quote not in flat] == []
    assert [quote for quote in quotes if quote not in output["text"]] == []


async def test_a_file_that_cannot_be_reviewed_does_not_take_the_others_reviews_away(database: str, tmp_path: Path) -> None:
    class Picky(offline.OfflineModel):
        async def generate(self, request: Any) -> Any:
            if "orders.py" in request.material.get("path", ""):
                raise RuntimeError("not this one")
            return await super().generate(request)

    async with platform(database, tmp_path, model=Picky(), ORCH_MAX_RETRIES="0") as opened:
        ended = await run(opened, "code-review", example("code-review"))
    assert ended["status"] == "SUCCESS"
    unread = [file["note"] for file in ended["output"]["files"] if file["path"] == "shop/orders.py"]
    assert unread == ["not reviewed: the review failed"]
    assert {one["file"] for one in ended["output"]["findings"]} == {"shop/payments/client.py"}
