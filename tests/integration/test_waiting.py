"""Workflows that wait for people, time and signals, through the functions that move them, on a clock that tests move."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from functions.gateway.models import HistoryPage, Problem, Workflow
from functions.gateway.signals import Signalled
from shared.bus import Delivery, Outcome
from shared.errors import Conflict
from shared.messages import StepDispatched, WorkflowSignalled
from shared.runtime import load
from shared.runtime.retention import purge_old
from shared.runtime.signals import send_signal
from shared.runtime.travel import Fork, fork, rerun
from shared.state.postgres import connected
from tests.support.doubles import WORKFLOW, delivery, signed
from tests.support.live import Live, completed, definition, live, start

STEPS = """
- {id: draft, agent: writer, input: {}}
- {id: ask, needs: [draft], approval: {prompt: "Send {{ steps.draft.output }}?", timeout_seconds: 604800}}
- {id: final, agent: critic, needs: [draft, ask], input: {said: "{{ steps.ask.output }}"}}
"""
PATH = f"/v1/workflows/{WORKFLOW}"


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


@pytest.fixture
async def client(team: Live) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(team.runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as opened:
        yield opened


async def begun(team: Live, steps: str = STEPS, **fields: Any) -> None:
    await team.runtime.dispatcher("intake").apply([start(definition(steps, **fields))])


async def asked(team: Live) -> None:
    """A workflow whose draft waits for its approval."""
    await begun(team)
    await team.runtime.dispatcher("orchestrator").apply([completed("draft", output="Dear Ann")])


async def swept(team: Live, seconds: float = 0) -> None:
    """Time passes, and the sweeper looks."""
    await team.clock.advance(seconds)
    app = load("sweeper").app
    assert app is not None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app(team.runtime)), base_url="http://sweeper") as sweeper:
        assert (await sweeper.post("/")).status_code == 204


async def step_of(team: Live, step: str) -> dict[str, Any]:
    document = await team.store.get(WORKFLOW)
    found: dict[str, Any] = next(one for one in document["steps"] if one["id"] == step)
    return found


async def status(team: Live) -> str:
    return str((await team.store.get(WORKFLOW))["status"])


async def test_a_day_is_waited_for_without_anything_running(team: Live) -> None:
    await begun(team, "- {id: night, wait: {seconds: 86400}}\n- {id: draft, agent: writer, needs: [night], input: {}}")
    assert (await status(team), team.dispatched(), team.clock.sleepers) == ("WAITING", [], 0)
    await swept(team, 86_399)
    assert (await status(team), team.dispatched()) == ("WAITING", [])
    await swept(team, 1)
    assert (await status(team), team.dispatched()) == ("RUNNING", [("draft", 1)])
    assert (await step_of(team, "night"))["output"] == {"woken_by": "time"}


async def test_an_approval_that_nobody_gives_for_seven_days_fails_its_workflow(team: Live) -> None:
    await asked(team)
    await swept(team, 7 * 86_400 - 1)
    assert await status(team) == "WAITING"
    await swept(team, 1)
    (told,) = team.finished()
    assert told.error is not None
    assert (told.status, told.error.type) == ("FAILED", "TimedOut")


async def test_an_approval_that_was_given_on_the_seventh_day_counts(team: Live) -> None:
    await asked(team)
    team.bus.published.clear()  # they expire long before
    await team.clock.advance(7 * 86_400 - 1)
    said = WorkflowSignalled(workflow=WORKFLOW, name="ask", decision="approve", by="ann")
    assert await send_signal(team.runtime, said, source="cli", signal="1") == ("woken", "RUNNING")
    output = (await step_of(team, "ask"))["output"]
    assert (output["decision"], output["by"]) == ("approve", "ann")
    (order,) = team.opened()
    assert isinstance(order, StepDispatched)
    assert order.input == {"said": output}
    await swept(team, 1)
    with pytest.raises(Conflict, match="waits no longer"):
        await send_signal(team.runtime, said, source="cli", signal="2")
    assert team.dispatched() == [("final", 1)]


async def test_a_moment_is_waited_for_wherever_its_offset_is(team: Live) -> None:
    until = (team.clock.now() + timedelta(hours=1)).isoformat()
    await begun(
        team,
        '- {id: morning, wait: {until: "{{ input.moment }}"}}',
        input="{moment: {type: string, default: '" + until + "'}}",
    )
    await swept(team, 3599)
    assert await status(team) == "WAITING"
    await swept(team, 1)
    assert await status(team) == "SUCCESS"


async def test_a_rejection_is_taken_by_a_definition_that_goes_on_after_it(team: Live) -> None:
    steps = "- {id: ask, approval: {prompt: Well}, on_failure: continue}\n- {id: draft, agent: writer, needs: [ask], input: {}}"
    await begun(team, steps)
    said = WorkflowSignalled(workflow=WORKFLOW, name="ask", decision="reject", by="ann")
    await send_signal(team.runtime, said, source="cli", signal="1")
    assert (await step_of(team, "ask"))["error"] == {"type": "Rejected", "message": "rejected by ann"}
    assert team.dispatched() == [("draft", 1)]


async def orchestrated(team: Live, payload: WorkflowSignalled, *, id: str) -> Outcome:
    arrived: Delivery = delivery(signed(payload, "workflow-events", team.clock, id=id), "orchestrator")
    return await load("orchestrator").handlers(team.runtime)[arrived.topic](arrived)


async def test_a_signal_on_the_bus_moves_its_workflow_once(team: Live, caplog: pytest.LogCaptureFixture) -> None:
    await begun(team, "- {id: paid, wait: {signal: payment}}\n- {id: draft, agent: writer, needs: [paid], input: {}}")
    payload = WorkflowSignalled(workflow=WORKFLOW, name="payment", data={"amount": 5}, by="shop")
    for _ in range(3):
        assert await orchestrated(team, payload, id="payment 7") is Outcome.ACK
    assert (await step_of(team, "paid"))["output"] == {"woken_by": "signal", "data": {"amount": 5}}
    assert team.dispatched() == [("draft", 1)]
    assert await orchestrated(team, payload, id="payment 8") is Outcome.ACK, "too late is no error of the message"
    assert "signal refused: payment waits no longer" in caplog.text


# Over HTTP


async def test_an_approval_over_http_is_shown_decided_and_kept_with_its_author(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    shown = Workflow.model_validate_json((await client.get(PATH)).content)
    waiting = shown.steps[1].waiting
    assert waiting is not None
    assert (shown.status, waiting.for_, waiting.name, waiting.prompt) == ("WAITING", "approval", "ask", "Send Dear Ann?")
    assert [one["id"] for one in (await client.get("/v1/workflows?status=WAITING")).json()["items"]] == [WORKFLOW]

    answer = await client.post(
        f"{PATH}/signals/ask", json={"decision": "amend", "data": "Dear Bob", "comment": "name", "by": "ann"}
    )
    assert answer.status_code == 202
    signalled = Signalled.model_validate_json(answer.content)
    assert (signalled.outcome, signalled.status, answer.headers["location"]) == ("woken", "RUNNING", PATH)
    output = (await step_of(team, "ask"))["output"]
    assert (output["value"], output["comment"]) == ("Dear Bob", "name")
    history = HistoryPage.model_validate_json((await client.get(f"{PATH}/history")).content)
    (said,) = [entry for entry in history.items if entry.type == "workflow.signalled"]
    assert said.data == {"name": "ask", "decision": "amend", "by": "ann", "comment": "name"}


async def test_who_shows_a_key_cannot_decide_in_the_name_of_another(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    shown = {"authorization": f"Bearer {await team.runtime.store.keys.add('desk', 'submit')}"}
    answer = await client.post(f"{PATH}/signals/ask", json={"decision": "approve", "by": "the boss"}, headers=shown)
    assert answer.status_code == 202
    assert (await step_of(team, "ask"))["output"]["by"] == "desk"


async def test_a_repeated_call_is_the_same_signal_and_another_comes_too_late(team: Live, client: httpx.AsyncClient) -> None:
    await asked(team)
    for _ in range(2):
        key = {"idempotency-key": "one"}
        answer = await client.post(f"{PATH}/signals/ask", json={"decision": "approve"}, headers=key)
        assert (answer.status_code, answer.json()["outcome"]) == (202, "woken")
    late = await client.post(f"{PATH}/signals/ask", json={"decision": "reject"})
    assert (late.status_code, late.headers["content-type"]) == (409, "application/problem+json")
    assert "what it was told first counts" in Problem.model_validate_json(late.content).detail


async def test_a_signal_that_comes_early_is_kept_and_says_so(team: Live, client: httpx.AsyncClient) -> None:
    await begun(team)
    answer = await client.post(f"{PATH}/signals/ask", json={"decision": "approve"})
    assert (answer.status_code, answer.json()["outcome"]) == (202, "kept")
    await team.runtime.dispatcher("orchestrator").apply([completed("draft", output="Dear Ann")])
    assert team.dispatched() == [("draft", 1), ("final", 1)]


@pytest.mark.parametrize(
    ("path", "body", "status_code", "detail"),
    [
        (f"{PATH}/signals/nobody", None, 404, "no step of this workflow waits for nobody; there are ask"),
        ("/v1/workflows/wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD/signals/ask", None, 404, "there is no workflow wf_"),
        ("/v1/workflows/x/signals/ask", None, 404, "there is no such workflow"),
        (f"{PATH}/signals/ask", None, 409, "waits for a decision"),
        (f"{PATH}/signals/ask", {"decision": "perhaps"}, 422, "decision"),
        (f"{PATH}/signals/ask", {"decision": "amend"}, 422, "amend needs the value"),
        (f"{PATH}/signals/ask", {"decision": "amend", "data": "\0"}, 422, "NUL"),
        (f"{PATH}/signals/ask", {"decision": "approve", "comment": "\0"}, 422, "NUL"),
        (f"{PATH}/signals/a%20b", {"decision": "approve"}, 422, "name"),
    ],
)
async def test_a_signal_that_cannot_be_taken_is_a_problem(
    team: Live, client: httpx.AsyncClient, path: str, body: Any, status_code: int, detail: str
) -> None:
    await asked(team)
    before = await team.store.get(WORKFLOW)
    answer = await client.post(path, json=body) if body is not None else await client.post(path)
    assert answer.status_code == status_code, answer.text
    problem = Problem.model_validate_json(answer.content)
    assert (problem.errors is not None) == (status_code == 422)
    assert detail in problem.detail
    assert await team.store.get(WORKFLOW) == before


# Forks, reruns, retention


async def decided(team: Live, decision: str, key: str) -> None:
    said = WorkflowSignalled.model_validate({"workflow": WORKFLOW, "name": "ask", "decision": decision, "by": "ann"})
    await send_signal(team.runtime, said, source="cli", signal=key)


async def forked(team: Live, at: int | None = None, **params: Any) -> dict[str, Any]:
    answer = await fork(team.runtime, Fork(WORKFLOW, at, params), function="gateway")
    return await team.store.get(answer["workflow"])


async def test_a_fork_reuses_an_approval_that_was_given_and_asks_anew_for_one_that_was_not(team: Live) -> None:
    await asked(team)
    waits = (await team.store.get(WORKFLOW))["seq"]
    await team.clock.advance(3600)
    await decided(team, "approve", "1")
    before, after = await forked(team, waits), await forked(team)
    (draft, ask, final) = before["steps"]
    assert (before["status"], draft["reused"], ask["status"], final["status"]) == ("WAITING", True, "WAITING", "PENDING")
    assert ask["waiting"]["since"] == team.clock.now().isoformat(), "the week begins anew"
    (_, ask, final) = after["steps"]
    assert (after["status"], ask["reused"], ask["output"]["by"], final["status"]) == ("RUNNING", True, "ann", "RUNNING")


async def test_a_signal_that_was_kept_for_the_original_is_not_for_its_fork(team: Live) -> None:
    await begun(team)
    await decided(team, "approve", "early")
    fork_ = await forked(team)
    await team.runtime.dispatcher("orchestrator").apply([completed("draft", output="Dear Bob", workflow=fork_["id"])])
    assert (await team.store.get(fork_["id"]))["status"] == "WAITING"


async def test_people_are_asked_again_when_a_changed_field_has_a_part_in_what_they_are_asked(team: Live) -> None:
    steps = '- {id: ask, approval: {prompt: "Pay {{ input.sum }}?"}}\n- {id: other, wait: {signal: go}}'
    await begun(team, steps, input="{sum: {type: string, default: '5'}, note: {type: string, default: ''}}")
    await decided(team, "approve", "1")
    assert {step["id"]: step["reused"] for step in (await forked(team, sum="6"))["steps"]} == {"ask": False, "other": False}
    assert {step["id"]: step["reused"] for step in (await forked(team, note="x"))["steps"]} == {"ask": True, "other": False}


async def test_a_rerun_asks_anew_what_was_rejected(team: Live) -> None:
    await asked(team)
    await decided(team, "reject", "1")
    assert await status(team) == "FAILED"
    for _ in range(2):
        assert (await rerun(team.runtime, WORKFLOW, function="gateway"))["type"] == "rerun"
        assert await status(team) == "WAITING"
        assert (await step_of(team, "ask"))["waiting"]["for"] == "approval"
    await decided(team, "approve", "2")
    assert (await status(team), (await step_of(team, "ask"))["output"]["decision"]) == ("RUNNING", "approve")


async def test_what_was_told_to_a_workflow_is_purged_with_it(team: Live) -> None:
    await asked(team)
    await decided(team, "reject", "1")
    await team.clock.advance(30 * 86_400 + 1)
    await purge_old(team.runtime, max_batches=1)
    async with connected(team.dsn) as connection:
        assert await connection.fetchval("select count(*) from signals") == 0
