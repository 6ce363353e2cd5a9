"""`/v1/workflows/{id}/fork` and `/rerun`, as any client would ask."""

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from functions.gateway.models import Accepted, Problem, Workflow
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, failed, live, start

UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
PAIR = definition(
    """
    - {id: a, agent: planner, input: "{{ input.brief }}"}
    - {id: b, agent: writer, needs: [a], input: "{{ input.tone }}"}
    """,
    input="{brief: {type: string, required: true}, tone: {type: string, default: dry}}",
)


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        opened.runtime.definitions["small"] = PAIR
        yield opened


@pytest.fixture
async def client(team: Live) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(team.runtime)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as opened:
        yield opened


async def tell(team: Live, *events: dict[str, Any]) -> None:
    for event in events:
        await team.runtime.dispatcher("orchestrator").apply([event])


async def finish(team: Live) -> None:
    await tell(team, start(PAIR, input={"brief": "x"}), completed("a", output="A"), completed("b", output="B"))


def accepted(answer: httpx.Response) -> Accepted:
    assert answer.status_code == 202, answer.text
    told = Accepted.model_validate_json(answer.content)
    assert answer.headers["location"] == told.links.self == f"/v1/workflows/{told.id}"
    return told


def problem_in(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return Problem.model_validate_json(answer.content)


async def test_a_fork_needs_no_body_and_is_found_at_its_links(team: Live, client: httpx.AsyncClient) -> None:
    await finish(team)
    told = accepted(await client.post(f"/v1/workflows/{WORKFLOW}/fork"))
    shown = Workflow.model_validate_json((await client.get(told.links.self)).content)
    assert (shown.status, shown.forked_from, shown.output) == ("SUCCESS", WORKFLOW, "B")
    assert all(step.reused and step.usage.model_calls == 0 for step in shown.steps)


async def test_a_fork_may_begin_earlier_and_with_other_input(team: Live, client: httpx.AsyncClient) -> None:
    await finish(team)
    body = {"at": (await team.store.get(WORKFLOW))["seq"], "params": {"tone": "warm"}}
    told = accepted(await client.post(f"/v1/workflows/{WORKFLOW}/fork", json=body))
    shown = await team.store.get(told.id)
    assert {step["id"]: step["status"] for step in shown["steps"]} == {"a": "SUCCESS", "b": "RUNNING"}
    first = accepted(await client.post(f"/v1/workflows/{WORKFLOW}/fork", json={"at": 1}))
    assert {step["status"] for step in (await team.store.get(first.id))["steps"]} == {"RUNNING", "PENDING"}


async def test_the_same_key_forks_once_and_for_another_body_is_refused(team: Live, client: httpx.AsyncClient) -> None:
    await finish(team)
    headers, path = {"idempotency-key": "k"}, f"/v1/workflows/{WORKFLOW}/fork"
    ids = {accepted(await client.post(path, headers=headers, json={"at": 1})).id for _ in range(3)}
    assert len(ids) == 1
    assert len(await team.store.recent()) == 2
    assert problem_in(await client.post(path, headers=headers), 422).type.endswith("idempotency-key-reused")


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ({"at": 0}, "at"),
        ({"at": 1000}, "no history entry 1000"),
        ({"at": "x"}, "at"),
        ({"params": {"tone": 1}}, "'tone' must be of type string"),
        ({"params": {"tune": "x"}}, "did you mean 'tone'"),
        ({"params": {"tone": "a\0b"}}, "NUL"),
        ({"until": 3}, "until"),
    ],
)
async def test_a_fork_that_cannot_be_made_is_refused(
    team: Live, client: httpx.AsyncClient, body: Mapping[str, Any], part: str
) -> None:
    await finish(team)
    assert part in problem_in(await client.post(f"/v1/workflows/{WORKFLOW}/fork", json=body), 422).detail
    assert len(await team.store.recent()) == 1


@pytest.mark.parametrize("verb", ["fork", "rerun"])
@pytest.mark.parametrize("id", [UNKNOWN, "wf_1", "x"])
async def test_a_workflow_that_is_not_there_is_told(client: httpx.AsyncClient, verb: str, id: str) -> None:
    problem_in(await client.post(f"/v1/workflows/{id}/{verb}"), 404)


async def test_a_failed_workflow_goes_on_once_however_often_that_is_asked(team: Live, client: httpx.AsyncClient) -> None:
    await tell(team, start(PAIR, input={"brief": "x"}), failed("a", permanent=True))
    headers, path = {"idempotency-key": "k"}, f"/v1/workflows/{WORKFLOW}/rerun"
    assert accepted(await client.post(path, headers=headers, json={"step": "a"})).status == "RUNNING"
    await tell(team, completed("a", attempt=2, output="A"), completed("b", output="B"))
    assert accepted(await client.post(path, headers=headers)).status == "SUCCESS"
    assert [one.attempt for one in Workflow.model_validate(await team.store.get(WORKFLOW)).steps] == [2, 1]


async def test_what_cannot_go_on_is_a_conflict_that_says_why(team: Live, client: httpx.AsyncClient) -> None:
    await finish(team)
    problem = problem_in(await client.post(f"/v1/workflows/{WORKFLOW}/rerun"), 409)
    assert f"workflow {WORKFLOW} cannot be rerun: it is SUCCESS" in problem.detail


@pytest.mark.parametrize("verb", ["fork", "rerun"])
async def test_nothing_is_started_while_workflows_are_switched_off(database: str, tmp_path: Path, verb: str) -> None:
    async with live(database, tmp_path, ORCH_ENABLED="false") as off:
        await tell(off, start(PAIR, input={"brief": "x"}))
        app = create_app(off.runtime)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client:
            assert problem_in(await client.post(f"/v1/workflows/{WORKFLOW}/{verb}"), 503).type.endswith("workflows-off")
        assert len(await off.store.recent()) == 1
