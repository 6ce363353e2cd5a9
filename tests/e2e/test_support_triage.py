"""A ticket goes in, a person decides, an answer comes out: through every function, with real SQL and the offline model."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shared.local import Platform
from shared.messages import WorkflowRequested, WorkflowSignalled
from shared.runtime.signals import send_signal
from tests.support.reports import outputs, platform

ROOT = Path(__file__).parents[2]
TICKET = (ROOT / "examples" / "support-ticket.txt").read_text(encoding="utf-8")


async def asked(opened: Platform) -> str:
    """A ticket whose draft waits for somebody."""
    workflow = await opened.submit(WorkflowRequested(workflow="support-triage", input={"ticket": TICKET}))
    async with asyncio.timeout(60):
        async for entry in opened.follow(workflow):
            if entry["type"] == "workflow.waiting":
                return workflow
    raise AssertionError("it ended without asking anybody")


async def decided(opened: Platform, workflow: str, *, later: bool = False, **said: Any) -> dict[str, Any]:
    """The workflow once it has ended after this decision."""
    payload = WorkflowSignalled(workflow=workflow, name="approve", by="ann", **said)
    await send_signal(opened.runtime, payload, source="cli", signal="one", later=later)
    async with asyncio.timeout(60):
        async for _ in opened.follow(workflow):
            pass
    return await opened.runtime.store.get(workflow)


@pytest.mark.parametrize("later", [False, True], ids=["published here", "taken by the sweeper"])
async def test_a_ticket_is_answered_once_a_person_has_approved_it(later: bool, database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path) as opened:
        workflow = await asked(opened)
        waiting = await opened.runtime.store.get(workflow)
        assert waiting["status"] == "WAITING"
        triage = outputs(waiting)["triage"]
        assert (
            waiting["steps"][1]["waiting"]["prompt"]
            == f"Send this? {triage['category']}, {triage['urgency']}: {triage['reply']}"[:4000]
        )
        ended = await decided(opened, workflow, later=later, decision="approve")
    assert (ended["status"], ended["error"]) == ("SUCCESS", None)
    said = outputs(ended)
    assert (said["approve"]["decision"], said["approve"]["by"]) == ("approve", "ann")
    assert ended["output"] == said["final"]
    assert ended["output"]["category"] == triage["category"]
    assert (ended["steps"][0]["usage"]["model_calls"], ended["steps"][1]["usage"]["model_calls"]) == (1, 0)


async def test_a_ticket_whose_answer_is_rejected_is_not_answered(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path) as opened:
        ended = await decided(opened, await asked(opened), decision="reject", comment="call them instead")
    assert (ended["status"], ended["output"]) == ("FAILED", None)
    assert ended["error"] == {"type": "Rejected", "message": "rejected by ann", "step": "approve"}


async def test_a_ticket_that_waits_goes_on_in_the_next_process(database: str, tmp_path: Path) -> None:
    async with platform(database, tmp_path) as opened:
        workflow = await asked(opened)
    async with platform(database, tmp_path) as opened:
        assert opened.unfinished == [], "nobody has to wait for its end"
        assert (await decided(opened, workflow, decision="approve"))["status"] == "SUCCESS"
