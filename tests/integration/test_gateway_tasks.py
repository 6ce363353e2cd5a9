"""`/v1/agents/{name}/tasks` and `/v1/documents` over a real database."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest

from functions.gateway.api import create_app
from functions.gateway.documents import DocumentList, Passages, Put
from functions.gateway.models import Accepted, Workflow
from shared.messages import StepDispatched
from shared.runtime import Runtime
from tests.integration.test_gateway import client_of, fields_of, problem_in, settings
from tests.support.doubles import RememberingBus
from tests.support.library import AGENTS
from tests.support.reports import brief, platform

TASK = {"input": {"brief": "Why was the ferry late? {{ input.brief }}"}}
PLANNER = "/v1/agents/planner/tasks"


@pytest.fixture
def bus() -> RememberingBus:
    return RememberingBus()


@pytest.fixture
async def live(database: str, bus: RememberingBus) -> AsyncIterator[Runtime]:
    # Agents can be called one at a time without workflows.
    runtime = Runtime(settings(database_url=database, orch_enabled=False), bus=bus)
    yield runtime
    await runtime.close()


@pytest.fixture
async def client(live: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(live)) as opened:
        yield opened


def dispatched(bus: RememberingBus) -> list[StepDispatched]:
    return [StepDispatched.model_validate(orjson.loads(message.data)["data"]) for message in bus.published]


# One agent


async def test_a_task_goes_to_its_agent_literally_and_ends_with_what_the_agent_answers(
    client: httpx.AsyncClient, live: Runtime, bus: RememberingBus
) -> None:
    answer = await client.post(PLANNER, json=TASK | {"budget": {"max_tokens": 5000}, "priority": 2})

    assert answer.status_code == 202, answer.text
    accepted = Accepted.model_validate_json(answer.content)
    assert answer.headers["location"] == accepted.links.self
    (message,) = dispatched(bus)
    assert (message.agent, message.step, message.input) == ("planner", "task", TASK["input"])
    assert message.remaining.max_tokens == 5000
    usage = {"model_calls": 1, "input_tokens": 7, "output_tokens": 5, "cost_microdollars": 3}
    result = {"type": "step.completed", "workflow": accepted.id, "step": "task", "attempt": 1, "output": {"questions": ["?"]}}
    await live.dispatcher("test").apply([{**result, "usage": usage}])
    shown = Workflow.model_validate_json((await client.get(accepted.links.self)).content)
    assert (shown.workflow, shown.status, shown.priority, shown.output) == ("planner", "SUCCESS", 2, {"questions": ["?"]})
    assert (shown.input, shown.usage.input_tokens) == (TASK["input"], 7)


async def test_a_task_without_a_budget_has_limits(client: httpx.AsyncClient) -> None:
    workflow = (await client.post(PLANNER, json=TASK)).json()["id"]
    budget = (await client.get(f"/v1/workflows/{workflow}")).json()["budget"]
    assert budget == {"max_steps": 50, "max_tokens": 200_000, "max_cost_microdollars": 1_000_000, "deadline_seconds": 3600}


async def test_an_agent_that_is_not_there_is_not_found_and_those_that_are_there_are_named(
    client: httpx.AsyncClient, bus: RememberingBus
) -> None:
    for name in ("planer", "gateway", "x" * 5000, "%00"):
        detail = problem_in(await client.post(f"/v1/agents/{name}/tasks", json=TASK), 404).detail
        assert detail.endswith(f"there are: {', '.join(AGENTS)}")
    assert bus.published == []


async def test_the_same_key_starts_one_task_and_belongs_to_one_request(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-4711"}
    answers = await asyncio.gather(*(client.post(PLANNER, json=TASK, headers=headers) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    for path, body in ((PLANNER, {"input": {}}), ("/v1/agents/writer/tasks", TASK)):
        problem = problem_in(await client.post(path, json=body, headers=headers), 422)
        assert problem.type == "urn:agent-team:problem:idempotency-key-reused"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": "text"}, "input"),
        ({"input": {"a": "\0"}}, "body"),
        ({"input": {}, "budget": {"max_steps": "3"}}, "budget.max_steps"),
        ({"input": {}, "priority": True}, "priority"),
        ({"input": {}, "workflow": "report"}, "workflow"),
    ],
)
async def test_what_is_no_task_is_refused(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    assert fields_of(problem_in(await client.post(PLANNER, json=body), 422)) == {field}


async def test_an_agent_works_on_its_task_while_workflows_are_switched_off(database: str, tmp_path: Any) -> None:
    async with platform(database, tmp_path, ORCH_ENABLED="false") as opened, client_of(create_app(opened.runtime)) as client:
        problem_in(await client.post("/v1/workflows", json={"workflow": "report", "input": {"brief": brief(0)}}), 503)
        accepted = (await client.post(PLANNER, json={"input": {"brief": brief(0)}})).json()
        async for _ in opened.follow(accepted["id"]):
            pass
        shown = (await client.get(accepted["links"]["self"])).json()
    assert (shown["status"], shown["error"]) == ("SUCCESS", None)
    assert shown["output"]["questions"]


# Documents


TEXT = {"content-type": "text/plain; charset=utf-8"}


async def test_a_document_is_kept_listed_found_and_forgotten(client: httpx.AsyncClient) -> None:
    path = "/v1/documents/handbook/f%C3%A4hren.md"
    outcomes = []
    for text in ("The ferry sails at 7:30.", "The ferry sails at 7:30.", "The ferry sails at 8:00."):
        put = Put.model_validate_json((await client.put(path, content=text, headers=TEXT)).content)
        outcomes.append(put.outcome)
    assert outcomes == ["added", "unchanged", "replaced"]
    (known,) = DocumentList.model_validate_json((await client.get("/v1/documents")).content).items
    assert (known.name, known.sha256, known.size_bytes) == ("handbook/f\u00e4hren.md", put.sha256, 24)
    found = (await client.get("/v1/documents/search", params={"query": "ferry", "limit": 1})).content
    assert [hit.text for hit in Passages.model_validate_json(found).items] == ["The ferry sails at 8:00."]
    assert (await client.delete(path)).status_code == 204
    assert (await client.get("/v1/documents")).json() == {"items": []}
    problem_in(await client.delete(path), 404)


@pytest.mark.parametrize(
    ("name", "content", "headers", "status"),
    [
        ("a", b"text", {}, 415),
        ("a", b"text", {"content-type": "application/json"}, 415),
        ("a", b"\xff", TEXT, 422),
        ("a", b"a\0b", TEXT, 422),
        ("a", b"  ", TEXT, 422),
        ("a", b"", TEXT, 422),
        ("a%0Ab", b"text", TEXT, 422),
        ("%20", b"text", TEXT, 422),
        ("a%E2%80%AEb", b"text", TEXT, 422),
        ("a" * 201, b"text", TEXT, 422),
        ("a", b"x" * (512 * 1024 + 1), TEXT, 413),
        ("search", b"text", TEXT, 405),
    ],
)
async def test_what_is_no_document_is_refused(
    client: httpx.AsyncClient, name: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    problem_in(await client.put(f"/v1/documents/{name}", content=content, headers=headers), status)
    assert (await client.get("/v1/documents")).json() == {"items": []}
