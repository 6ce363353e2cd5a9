"""The gateway's HTTP API over a real database, spoken to as any client would."""

import asyncio
import base64
import hashlib
import logging
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import functions_framework.aio
import httpx
import orjson
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.gateway.api import create_app
from functions.gateway.control_models import Cancelled, Pause
from functions.gateway.dead_letter_models import DeadLetterPage, DeadLetterWhole, RedriveAnswer
from functions.gateway.edge import Edge
from functions.gateway.models import Accepted, Health, HistoryPage, Problem, Snapshot, Workflow, WorkflowPage
from functions.gateway.strict import MAX_DEPTH
from shared.bus import Delivery
from shared.bus import Message as BusMessage
from shared.clock import ManualClock
from shared.config import Settings
from shared.errors import BusUnavailable, ConfigurationError, StoreUnavailable
from shared.messages import StepCompleted
from shared.runtime import Runtime, entry, process
from shared.state import WorkflowStore
from tests.support.doubles import SECRET, RememberingBus, SabotagedBus, Saboteur, signed

ROOT = Path(__file__).parents[2]
UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
BRIEF = {"workflow": "report", "input": {"brief": "Why was the ferry late?"}}
HOOK = {"callback_url": "https://example.org/hook"}
PRIVATE = "very-private-value"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def settings(**given: Any) -> Settings:
    return Settings(app_env="test", comm_hmac_default_secret=SECRET, **given)


def client_of(app: ASGIApp) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway")


@pytest.fixture
def bus() -> RememberingBus:
    return RememberingBus()


@pytest.fixture
async def live(database: str, bus: RememberingBus) -> AsyncIterator[Runtime]:
    runtime = Runtime(settings(database_url=database), bus=bus)
    yield runtime
    await runtime.close()


@pytest.fixture
async def client(live: Runtime) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(create_app(live)) as opened:
        yield opened


class BrokenCaller:
    """A database that answers every call with one error, but whether there are API keys and how many workflows wait: none."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        if function in ("has_api_keys", "count_queued"):
            return 0
        raise self._error

    async def close(self) -> None:
        pass


def broken(error: Exception) -> httpx.AsyncClient:
    return client_of(create_app(without_state(error)))


def without_state(error: Exception | None = None, *, bus: RememberingBus | None = None, **given: Any) -> Runtime:
    """A runtime whose state must not be asked, or answers with an error."""
    caller = BrokenCaller(AssertionError("the state was asked") if error is None else error)
    return Runtime(settings(**given), bus=RememberingBus() if bus is None else bus, store=WorkflowStore(caller, max_running=1))


@pytest.fixture
async def stateless() -> AsyncIterator[httpx.AsyncClient]:
    """For requests that are answered without asking the state."""
    async with client_of(create_app(without_state())) as opened:
        yield opened


async def submitted(client: httpx.AsyncClient, **changes: Any) -> str:
    answer = await client.post("/v1/workflows", json=BRIEF | changes)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def problem_in(answer: httpx.Response, status: int) -> Problem:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert "\n" not in problem.detail
    assert (problem.errors is not None) == (status == 422)
    return problem


def fields_of(problem: Problem) -> set[str]:
    assert problem.errors is not None
    return {mistake.field for mistake in problem.errors}


def traces_of(bus: RememberingBus) -> list[str]:
    return [orjson.loads(message.data)["traceparent"] for message in bus.published]


# Submitting


async def test_a_submitted_workflow_is_accepted_started_and_found_at_its_links(
    client: httpx.AsyncClient, bus: RememberingBus
) -> None:
    answer = await client.post("/v1/workflows", json=BRIEF | {"budget": {"max_cost_usd": 0.5}, "priority": 3})

    assert answer.status_code == 202
    accepted = Accepted.model_validate_json(answer.content)
    assert answer.headers["location"] == accepted.links.self == f"/v1/workflows/{accepted.id}"
    assert [message.topic for message in bus.published] == ["agent-planner"]
    shown = Workflow.model_validate_json((await client.get(accepted.links.self)).content)
    assert (shown.id, shown.workflow, shown.status, shown.priority) == (accepted.id, "report", "RUNNING", 3)
    assert shown.input == BRIEF["input"]
    assert shown.budget.max_cost_microdollars == 500_000
    assert shown.budget.max_tokens == 200_000
    assert (await client.get(accepted.links.history)).status_code == 200
    assert accepted.links.events == f"/v1/workflows/{accepted.id}/events"


async def test_a_callback_is_kept_for_the_end_and_shown_to_nobody(client: httpx.AsyncClient, bus: RememberingBus) -> None:
    url = f"https://example.org/hook?token={PRIVATE}"
    id = await submitted(client, callback_url=url)
    await client.post(f"/v1/workflows/{id}/cancel")

    told = [orjson.loads(message.data)["data"] for message in bus.published if message.topic == "workflow-results"]
    assert [(one["status"], one["callback_url"]) for one in told] == [("CANCELLED", url)]
    for path in ("", f"/{id}", f"/{id}/history"):
        assert PRIVATE not in (await client.get(f"/v1/workflows{path}")).text


async def test_a_callback_that_may_not_be_called_is_refused_at_once(stateless: httpx.AsyncClient) -> None:
    for url in (
        "http://10.0.0.1:9000/hook",
        f"https://user:{PRIVATE}@example.org/",
        "https://example.org:8443/",
        "ftp://example.org/",
    ):
        answer = await stateless.post("/v1/workflows", json=BRIEF | {"callback_url": url})
        assert problem_in(answer, 422).detail.startswith("callback_url: the address cannot be called: ")
        assert PRIVATE not in answer.text


async def test_without_a_key_the_same_body_starts_another_workflow(client: httpx.AsyncClient) -> None:
    assert await submitted(client) != await submitted(client)


async def test_the_same_key_and_body_give_the_same_answer_and_start_one_workflow(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "order-4711", "content-type": "application/json"}
    answers = [
        await client.post("/v1/workflows", content=orjson.dumps(BRIEF, option=option), headers=headers)
        for option in (0, orjson.OPT_INDENT_2)
    ]

    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].headers["location"] == answers[1].headers["location"]
    assert len((await client.get("/v1/workflows")).json()["items"]) == 1


async def test_the_same_key_with_another_body_is_refused(client: httpx.AsyncClient, bus: RememberingBus) -> None:
    headers = {"Idempotency-Key": "order-4711"}
    await client.post("/v1/workflows", json=BRIEF, headers=headers)
    published = len(bus.published)

    for other in (
        BRIEF | {"input": {"brief": PRIVATE}},
        BRIEF | {"priority": 1},
        BRIEF | {"budget": {"max_steps": 3}},
        BRIEF | HOOK,
    ):
        answer = await client.post("/v1/workflows", json=other, headers=headers)
        problem = problem_in(answer, 422)
        assert problem.type == "urn:agent-team:problem:idempotency-key-reused"
        assert fields_of(problem) == {"Idempotency-Key"}
        assert PRIVATE not in answer.text
    assert len(bus.published) == published


async def test_one_key_sent_fifty_times_at_once_starts_one_workflow(client: httpx.AsyncClient, bus: RememberingBus) -> None:
    headers = {"Idempotency-Key": "all-at-once"}

    answers = await asyncio.gather(*(client.post("/v1/workflows", json=BRIEF, headers=headers) for _ in range(50)))

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await client.get("/v1/workflows")).json()["items"]) == 1
    # Copies carry one id, by which the agents know them as one.
    assert len({orjson.loads(message.data)["id"] for message in bus.published}) == 1


@pytest.mark.parametrize("key", ["x" * 255, "!", '"8e03978e-40d5-43dd-bc93-6894a57f9324"', "~"])
async def test_a_key_of_visible_ascii_is_taken(client: httpx.AsyncClient, key: str) -> None:
    assert (await client.post("/v1/workflows", json=BRIEF, headers={"Idempotency-Key": key})).status_code == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "caf\u00e9", "\x7f"])
async def test_any_other_key_is_refused(stateless: httpx.AsyncClient, key: str) -> None:
    answer = await stateless.post("/v1/workflows", json=BRIEF, headers={b"Idempotency-Key": key.encode("latin-1")})
    assert fields_of(problem_in(answer, 422)) == {"idempotency-key"}


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"workflow"}),
        ([], {"body"}),
        ("text", {"body"}),
        ({"workflow": PRIVATE + "!", "input": PRIVATE, "extra": PRIVATE}, {"workflow", "input", "extra"}),
        (
            BRIEF | {"budget": {"max_tokens": -1, "max_steps": PRIVATE, "unknown": 1}},
            {f"budget.{name}" for name in ("max_tokens", "max_steps", "unknown")},
        ),
        (BRIEF | {"priority": 101}, {"priority"}),
        (BRIEF | {"input": {str(number): PRIVATE for number in range(1001)}}, {"input"}),
        (BRIEF | {"budget": {"max_steps": 10**9}}, {"budget.max_steps"}),
    ],
)
async def test_a_body_that_is_not_a_request_is_refused_with_every_mistake_and_without_its_values(
    stateless: httpx.AsyncClient, body: Any, fields: set[str]
) -> None:
    answer = await stateless.post("/v1/workflows", json=body)

    problem = problem_in(answer, 422)
    assert problem.type == "urn:agent-team:problem:invalid-request"
    assert fields_of(problem) == fields
    assert problem.errors is not None
    assert all(mistake.message in problem.detail for mistake in problem.errors)
    assert PRIVATE not in answer.text


async def test_a_request_with_very_many_mistakes_gets_a_short_answer(stateless: httpx.AsyncClient) -> None:
    answer = await stateless.post("/v1/workflows", json=BRIEF | {f"{number}" * 100: 1 for number in range(1000, 1500)})
    problem = problem_in(answer, 422)
    assert problem.detail.endswith("; and 480 more")
    assert len(answer.content) < 10_000


async def test_an_unknown_workflow_is_refused_with_those_that_there_are(stateless: httpx.AsyncClient) -> None:
    problem = problem_in(await stateless.post("/v1/workflows", json={"workflow": "raport"}), 422)
    assert "'raport'" in problem.detail
    assert "report" in problem.detail


async def test_an_input_that_the_workflow_does_not_take_is_refused_with_all_mistakes(stateless: httpx.AsyncClient) -> None:
    answer = await stateless.post("/v1/workflows", json=BRIEF | {"input": {"breef": PRIVATE}})
    problem = problem_in(answer, 422)
    assert "'breef' is unknown" in problem.detail
    assert "'brief' is missing" in problem.detail
    assert PRIVATE not in answer.text


def nested(levels: int) -> bytes:
    return b'{"workflow":"report","input":{"brief":' + b"[" * (levels - 2) + b"]" * (levels - 2) + b"}}"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"workflow": "report"', "not valid JSON"),
        (b'{"workflow": "report", "input": {"brief": NaN}}', "not valid JSON"),
        (b'{"workflow": "report", "input": {"brief": "\\ud800"}}', "not valid JSON"),
        (b'{"workflow": "report", "input": {"brief": "\xff"}}', "not valid JSON"),
        (nested(MAX_DEPTH + 1), "levels"),
        (nested(5000), "not valid JSON"),
        (nested(MAX_DEPTH), "must be of type string"),
        (b'{"workflow": "report", "input": {"brief": "a\\u0000b"}}', "NUL"),
        (b'{"workflow": "report\\u0000", "input": {"brief": "b"}}', "pattern"),
        (b"", "Field required"),
    ],
)
async def test_a_body_that_is_no_json_or_cannot_be_stored_is_refused(
    stateless: httpx.AsyncClient, content: bytes, says: str
) -> None:
    answer = await stateless.post("/v1/workflows", content=content, headers={"content-type": "application/json"})
    assert says in problem_in(answer, 422).detail


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_a_body_that_does_not_say_it_is_json_is_refused_since_other_sites_can_send_it(
    stateless: httpx.AsyncClient, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await stateless.post("/v1/workflows", content=orjson.dumps(BRIEF), headers=headers)
    assert "application/json" in problem_in(answer, 415).detail


async def test_nothing_is_started_while_workflows_are_switched_off(bus: RememberingBus) -> None:
    async with client_of(create_app(without_state(orch_enabled=False, bus=bus))) as client:
        problem = problem_in(await client.post("/v1/workflows", json=BRIEF), 503)
    assert problem.type == "urn:agent-team:problem:workflows-off"
    assert "ORCH_ENABLED" in problem.detail
    assert bus.published == []


CLOUD_TRACE = TRACE[3:35] + "/17179869185;o=1"


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": TRACE},
        {"traceparent": TRACE, "x-cloud-trace-context": "f" * 32 + "/1;o=1"},
        {"x-cloud-trace-context": CLOUD_TRACE},
        {"traceparent": "nonsense", "x-cloud-trace-context": CLOUD_TRACE},
    ],
)
async def test_the_trace_of_a_request_is_carried_on(
    client: httpx.AsyncClient, bus: RememberingBus, headers: dict[str, str]
) -> None:
    await client.post("/v1/workflows", json=BRIEF, headers=headers)
    (carried,) = traces_of(bus)
    # The same trace; the span above is the request itself, and no longer its caller.
    assert carried[:35] == TRACE[:35]
    assert carried[36:52] not in (TRACE[36:52], f"{17179869185:016x}")
    assert carried.endswith("-01")


@pytest.mark.parametrize("given", [None, "nonsense", TRACE.replace("4", "g")])
async def test_without_a_valid_traceparent_a_new_trace_begins(
    client: httpx.AsyncClient, bus: RememberingBus, given: str | None
) -> None:
    for _ in range(2):
        await client.post("/v1/workflows", json=BRIEF, headers={} if given is None else {"traceparent": given})
    first, second = traces_of(bus)
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", first)
    assert first[:35] != second[:35]


# Reading


async def test_the_list_is_read_page_by_page_newest_first(client: httpx.AsyncClient) -> None:
    ids = sorted([await submitted(client) for _ in range(5)], reverse=True)
    seen: list[str] = []
    cursor: str | None = None
    sizes = []
    while True:
        parameters = {"limit": "2"} | ({} if cursor is None else {"cursor": cursor})
        page = WorkflowPage.model_validate_json((await client.get("/v1/workflows", params=parameters)).content)
        sizes.append(len(page.items))
        seen += [one.id for one in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert (seen, sizes) == (ids, [2, 2, 1])


async def test_a_last_page_that_is_full_has_no_cursor(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await submitted(client)
    assert (await client.get("/v1/workflows", params={"limit": 2})).json()["next_cursor"] is None


async def test_the_list_is_narrowed_by_status_and_definition(client: httpx.AsyncClient) -> None:
    running, cancelled = await submitted(client), await submitted(client)
    await client.post(f"/v1/workflows/{cancelled}/cancel")

    async def listed(**parameters: str) -> list[str]:
        return [one["id"] for one in (await client.get("/v1/workflows", params=parameters)).json()["items"]]

    assert await listed(status="RUNNING") == [running]
    assert await listed(status="CANCELLED", workflow="report") == [cancelled]
    assert await listed(workflow="other") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=DONE", "status"),
        ("workflow=No%20Name", "workflow"),
        ("workflow=a%00", "workflow"),
        ("cursor=wf_1", "cursor"),
        ("cursor=", "cursor"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=many", "limit"),
    ],
)
async def test_a_query_that_means_nothing_is_refused(stateless: httpx.AsyncClient, query: str, field: str) -> None:
    assert fields_of(problem_in(await stateless.get(f"/v1/workflows?{query}"), 422)) == {field}


async def test_pages_go_on_where_they_were_while_workflows_are_added(client: httpx.AsyncClient) -> None:
    async def read_all() -> list[str]:
        seen: list[str] = []
        cursor: str | None = None
        while True:
            parameters = {"limit": "3"} | ({} if cursor is None else {"cursor": cursor})
            page = (await client.get("/v1/workflows", params=parameters)).json()
            seen += [one["id"] for one in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return seen
            await asyncio.gather(*(submitted(client) for _ in range(4)))  # between two pages, and at once

    before = sorted([await submitted(client) for _ in range(10)], reverse=True)
    for seen in await asyncio.gather(read_all(), read_all()):
        assert seen == sorted(set(seen), reverse=True)
        assert [id for id in seen if id in before] == before


ON_ONE_WORKFLOW = [("GET", ""), ("GET", "/snapshots/1"), ("GET", "/history"), ("GET", "/history?after=7"), ("POST", "/cancel")]
ON_ONE_WORKFLOW += [("POST", "/pause"), ("POST", "/resume")]


async def test_a_workflow_that_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    for method, rest in ON_ONE_WORKFLOW:
        problem = problem_in(await client.request(method, f"/v1/workflows/{UNKNOWN}{rest}"), 404)
        assert problem.detail == f"there is no workflow {UNKNOWN}"


@pytest.mark.parametrize("id", [UNKNOWN.lower(), "wf_1", "x", "%00", UNKNOWN + "%0A", "..%2f..", "a" * 5000])
async def test_what_cannot_be_an_id_is_not_found(stateless: httpx.AsyncClient, id: str) -> None:
    for method, rest in ON_ONE_WORKFLOW:
        problem_in(await stateless.request(method, f"/v1/workflows/{id}{rest}"), 404)


async def test_the_history_is_read_on_from_where_one_was(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)

    async def read(**parameters: int) -> HistoryPage:
        answer = await client.get(f"/v1/workflows/{workflow}/history", params=parameters)
        return HistoryPage.model_validate_json(answer.content)

    whole = await read()
    assert [entry.seq for entry in whole.items] == list(range(1, len(whole.items) + 1))
    assert whole.items[0].type == "workflow.requested"
    assert whole.next_after is None
    first = await read(limit=1)
    assert (first.items, first.next_after) == (whole.items[:1], 1)
    assert (await read(after=1)).items == whole.items[1:]
    assert (await read(after=2**31 - 1)).items == []


@pytest.mark.parametrize("after", ["-1", "x", str(2**31)])
async def test_a_history_entry_that_cannot_be_is_refused(stateless: httpx.AsyncClient, after: str) -> None:
    answer = await stateless.get(f"/v1/workflows/{UNKNOWN}/history", params={"after": after})
    assert fields_of(problem_in(answer, 422)) == {"after"}


async def test_what_is_documented_is_what_is_answered_in_every_state(client: httpx.AsyncClient, live: Runtime) -> None:
    dispatcher = live.dispatcher("test")
    failed, going = await submitted(client), await submitted(client)
    error = {"type": "ModelRefused", "message": "no"}
    await dispatcher.apply(
        [{"type": "step.failed", "workflow": failed, "step": "plan", "attempt": 1, "permanent": True, "error": error}]
    )
    output = {"questions": ["why?"]}
    usage = {"model_calls": 1, "input_tokens": 7, "output_tokens": 5, "cost_microdollars": 3}
    await dispatcher.apply(
        [{"type": "step.completed", "workflow": going, "step": "plan", "attempt": 1, "output": output, "usage": usage}]
    )

    ended = Workflow.model_validate_json((await client.get(f"/v1/workflows/{failed}")).content)
    assert ended.status == "FAILED"
    assert ended.error is not None
    assert ended.error.step == "plan"
    running = Workflow.model_validate_json((await client.get(f"/v1/workflows/{going}")).content)
    steps = {step.id: step for step in running.steps}
    assert steps["plan"].output == output
    assert steps["research/0"].parent == "research"
    assert running.usage.model_dump() == usage
    for workflow in (failed, going):
        HistoryPage.model_validate_json((await client.get(f"/v1/workflows/{workflow}/history")).content)
    assert len(WorkflowPage.model_validate_json((await client.get("/v1/workflows")).content).items) == 2


async def test_a_snapshot_shows_the_workflow_after_an_entry_and_no_other(client: httpx.AsyncClient, live: Runtime) -> None:
    workflow = await submitted(client)
    result = {"type": "step.completed", "workflow": workflow, "step": "plan", "attempt": 1, "output": {"questions": []}}
    usage = {"model_calls": 1, "input_tokens": 7, "output_tokens": 5, "cost_microdollars": 3}
    await live.dispatcher("test").apply([{**result, "usage": usage}])
    entries = (await client.get(f"/v1/workflows/{workflow}/history")).json()["items"]

    def path(seq: int) -> str:
        return f"/v1/workflows/{workflow}/snapshots/{seq}"

    shown = [Snapshot.model_validate_json((await client.get(path(entry["seq"]))).content) for entry in entries]
    assert [one.seq for one in shown] == [entry["seq"] for entry in entries]
    assert (shown[0].status, shown[1].status) == ("QUEUED", "RUNNING")
    plans = [next(step for step in one.steps if step.id == "plan") for one in shown]
    assert (plans[0].status, plans[0].output) == ("PENDING", None)
    assert (plans[-1].status, plans[-1].output) == ("SUCCESS", {"questions": []})
    problem = problem_in(await client.get(path(len(entries) + 1)), 404)
    assert problem.detail == f"{workflow} has no history entry {len(entries) + 1}; its last one is {len(entries)}"
    for seq in (0, -1, 2**31):
        assert fields_of(problem_in(await client.get(path(seq)), 422)) == {"seq"}


# Cancelling


async def test_a_cancelled_workflow_ends_with_the_reason(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)

    answer = await client.post(f"/v1/workflows/{workflow}/cancel", json={"reason": "asked for twice"})

    assert answer.status_code == 202
    assert Cancelled.model_validate_json(answer.content).status == "CANCELLED"
    shown = (await client.get(answer.headers["location"])).json()
    assert (shown["status"], shown["error"]["message"]) == ("CANCELLED", "asked for twice")


async def test_cancelling_needs_no_body_and_can_be_repeated(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)
    answers = [await client.post(f"/v1/workflows/{workflow}/cancel") for _ in range(2)]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(202, "CANCELLED")] * 2


async def test_a_cancellation_is_answered_with_a_receipt_that_stays_the_same(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)
    first, again = [
        Cancelled.model_validate_json((await client.post(f"/v1/workflows/{workflow}/cancel", json=body)).content)
        for body in ({"reason": "asked for twice", "by": "ann"}, {"by": "eve"})
    ]
    assert first.receipt is not None
    assert (first.receipt.by, first.receipt.reason, first.receipt.was) == ("ann", "asked for twice", "RUNNING")
    assert [one.step for one in first.receipt.running_steps] == ["plan"]
    assert first.receipt.usage_may_grow
    assert again == first


# Pausing


async def test_a_paused_workflow_says_so_until_it_is_resumed(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)
    first, again = [await client.post(f"/v1/workflows/{workflow}/pause", json={"by": "ann"}) for _ in range(2)]
    assert (first.status_code, first.json()) == (202, again.json())
    told = Pause.model_validate_json(first.content)
    shown = Workflow.model_validate_json((await client.get(first.headers["location"])).content)
    assert (told.paused_by, shown.paused_by, shown.paused_at) == ("ann", "ann", told.paused_at)
    for _ in range(2):
        gone_on = Pause.model_validate_json((await client.post(f"/v1/workflows/{workflow}/resume")).content)
        assert (gone_on.status, gone_on.paused_at, gone_on.paused_by) == ("RUNNING", None, None)
    assert (await client.get(f"/v1/workflows/{workflow}")).json()["paused_at"] is None


async def test_a_workflow_that_has_ended_is_neither_paused_nor_resumed(client: httpx.AsyncClient) -> None:
    workflow = await submitted(client)
    await client.post(f"/v1/workflows/{workflow}/cancel")
    for verb in ("pause", "resume"):
        refusal = problem_in(await client.post(f"/v1/workflows/{workflow}/{verb}"), 409)
        assert refusal.detail == "the workflow has ended (CANCELLED), so it can be neither paused nor resumed"


@pytest.mark.parametrize("body", [{"reason": "x" * 501}, {"reason": "a\0b"}, {"reason": 1}, {"why": "x"}])
async def test_a_reason_that_cannot_be_kept_is_refused(client: httpx.AsyncClient, body: Mapping[str, Any]) -> None:
    workflow = await submitted(client)
    problem_in(await client.post(f"/v1/workflows/{workflow}/cancel", json=body), 422)
    assert (await client.get(f"/v1/workflows/{workflow}")).json()["status"] == "RUNNING"


# Dead letters


async def dead_letters(live: Runtime) -> None:
    """A lost reply, and a message that nobody signed."""
    message = signed(StepCompleted(workflow=UNKNOWN, step="plan", attempt=1), "workflow-events", live.clock, id="reply")
    for number, attributes in enumerate((message.attributes, {})):
        source = {"CloudPubSubDeadLetterSourceSubscription": "workflow-events.orchestrator"}
        delivery = Delivery("dead-letters.dead_letter", "dead-letters", message.data, {**attributes, **source}, str(number), 1)
        await entry.load("dead_letter").handlers(live)["dead-letters"](delivery)


async def test_dead_letters_are_listed_filtered_and_shown(client: httpx.AsyncClient, live: Runtime) -> None:
    assert (await client.get("/v1/dead-letters")).json() == {"items": [], "next_cursor": None}
    await dead_letters(live)
    page = DeadLetterPage.model_validate_json((await client.get("/v1/dead-letters", params={"limit": 1})).content)
    assert ([letter.id for letter in page.items], page.next_cursor) == ([2], 2)
    rest = DeadLetterPage.model_validate_json((await client.get("/v1/dead-letters", params={"cursor": 2})).content)
    assert ([letter.id for letter in rest.items], rest.next_cursor) == ([1], None)
    for filter, ids in (
        ({"cause": "rejected"}, [2]),
        ({"function": "orchestrator"}, [2, 1]),
        ({"workflow": UNKNOWN}, [1]),
        ({"state": "again"}, []),
        ({"until": "2026-01-01T00:00:00Z"}, []),
        ({"since": "2026-01-01T00:00:00Z"}, [2, 1]),
    ):
        found = (await client.get("/v1/dead-letters", params=filter)).json()["items"]
        assert [letter["id"] for letter in found] == ids, filter
    shown = DeadLetterWhole.model_validate_json((await client.get("/v1/dead-letters/1")).content)
    assert (shown.message_id, shown.cause, shown.data) == ("reply", "timeout", None)
    whole = DeadLetterWhole.model_validate_json((await client.get("/v1/dead-letters/1", params={"data": True})).content)
    assert whole.data is not None
    assert orjson.loads(base64.b64decode(whole.data))["id"] == "reply"
    problem_in(await client.get("/v1/dead-letters/3"), 404)


async def test_a_redrive_is_a_dry_run_unless_asked_otherwise(client: httpx.AsyncClient, live: Runtime, bus: RememberingBus) -> None:
    await dead_letters(live)
    for body in ({}, {"dry_run": True}, {"ids": [1, 2]}):
        answer = RedriveAnswer.model_validate_json((await client.post("/v1/dead-letters/redrive", json=body)).content)
        assert (answer.dry_run, answer.matched, answer.redriven, answer.ids) == (True, 2, 1, [1])
        assert [refusal.id for refusal in answer.refused] == [2]
        assert bus.published == []
    done = (await client.post("/v1/dead-letters/redrive", json={"dry_run": False})).json()
    assert (done["dry_run"], done["redriven"], done["ids"], [one["id"] for one in done["refused"]]) == (False, 1, [1], [2])
    assert [message.topic for message in bus.published] == ["workflow-events"]
    states = [letter["state"] for letter in (await client.get("/v1/dead-letters")).json()["items"]]
    assert states == ["waiting", "redriven"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ids": [1], "cause": "store"}, "body"),
        ({"ids": [0]}, "ids.0"),
        ({"ids": [1] * 1001}, "ids"),
        ({"rate": 0}, "rate"),
        ({"rate": 101}, "rate"),
        ({"limit": 501}, "limit"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": 1767225600}, "since"),
        ({"dry_run": 0}, "dry_run"),
        ({"rate": "10"}, "rate"),
        ({"dryrun": False}, "dryrun"),
    ],
)
async def test_a_redrive_that_is_not_clear_is_refused(stateless: httpx.AsyncClient, body: Mapping[str, Any], field: str) -> None:
    assert fields_of(problem_in(await stateless.post("/v1/dead-letters/redrive", json=body), 422)) == {field}


async def test_a_redrive_without_a_bus_can_be_sent_again(client: httpx.AsyncClient, live: Runtime) -> None:
    await dead_letters(live)
    live.bus = SabotagedBus(RememberingBus(), Saboteur("publish", error=BusUnavailable("down")))
    assert problem_in(await client.post("/v1/dead-letters/redrive", json={"dry_run": False}), 503)
    assert (await client.post("/v1/dead-letters/redrive", json={"dry_run": False})).json()["redriven"] == 1


# Health, metrics, pages


async def test_health_tells_the_time_and_how_long_the_instance_answers_and_needs_no_database() -> None:
    clock = ManualClock()
    async with client_of(create_app(Runtime(settings(), clock=clock))) as client:
        await clock.advance(12.5)
        answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "timestamp": "2026-01-01T00:00:12.500Z", "uptime": 12.5}
    assert Health.model_validate_json(answer.content).timestamp.utcoffset() == timedelta(0)


async def test_metrics_are_shown_in_prometheus_form() -> None:
    async with client_of(create_app(without_state())) as client:
        answer = await client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE task_success_total counter" in answer.text


def policy_of(answer: httpx.Response) -> dict[str, list[str]]:
    directives = answer.headers["content-security-policy"].split("; ")
    return {name: sources for name, *sources in (directive.split() for directive in directives)}


@pytest.mark.parametrize("path", ["/", "/docs"])
async def test_a_page_runs_its_own_scripts_and_no_others(path: str) -> None:
    async with client_of(create_app(without_state())) as client:
        answer = await client.get(path)
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = policy_of(answer)
    assert policy["default-src"] == policy["frame-ancestors"] == ["'none'"]
    inline = re.findall("<script>(.*?)</script>", answer.text, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline]
    assert [f"'sha256-{digest}'" for digest in digests] == [source for source in policy["script-src"] if "sha256" in source]
    assert digests
    assert "'unsafe-inline'" not in policy["script-src"]
    assert "'unsafe-eval'" not in policy["script-src"]


async def test_the_console_loads_nothing_and_writes_no_markup() -> None:
    async with client_of(create_app(without_state())) as client:
        answer = await client.get("/")
    assert not re.search(r"https?://|innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b| on\w+=\"| style=\"", answer.text)
    assert {name for name, sources in policy_of(answer).items() if sources != ["'none'"]} == {
        "connect-src",
        "img-src",
        "script-src",
        "style-src",
    }


# Errors


async def test_a_path_that_is_not_there_is_a_problem(stateless: httpx.AsyncClient) -> None:
    for path in ("/nothing", "/v1/workflows/", "/v1", "/health/"):
        assert problem_in(await stateless.get(path), 404).type == "about:blank"


async def test_a_method_that_a_path_does_not_take_is_a_problem_that_names_those_that_it_takes(stateless: httpx.AsyncClient) -> None:
    for path, takes in (
        ("/health", "GET"),
        ("/v1/workflows", "GET, POST"),
        ("/v1/dead-letters/redrive", "POST"),
        ("/v1/documents/a", "PUT, DELETE"),
        ("/v1/documents/search", "GET"),
    ):
        answer = await stateless.request("PATCH", path)
        problem_in(answer, 405)
        assert answer.headers["allow"] == takes


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    app = create_app(without_state(max_payload_bytes=1000))
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"content-length", b"1001")]
    scope = {"type": "http", "method": "POST", "path": "/v1/workflows", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert orjson.loads(sent[1]["body"])["detail"] == "the body is larger than 1000 bytes; send less"


@pytest.mark.parametrize("length", [None, "7", "nonsense"])
async def test_a_body_of_many_chunks_is_refused_as_soon_as_it_passes_the_limit(length: str | None) -> None:
    app = create_app(without_state(max_payload_bytes=10_000))
    handed = 0
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal handed
        handed += 1
        return {"type": "http.request", "body": b"x" * 1024, "more_body": handed < 1000}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")] + ([] if length is None else [(b"content-length", length.encode())])
    scope = {"type": "http", "method": "POST", "path": "/v1/workflows", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert sent[0]["status"] == 413
    assert (b"content-type", b"application/problem+json") in sent[0]["headers"]
    assert handed == 10


async def test_a_body_of_exactly_the_limit_is_taken(database: str, bus: RememberingBus) -> None:
    body = orjson.dumps(BRIEF).ljust(5000)
    live = Runtime(settings(database_url=database, max_payload_bytes=5000), bus=bus)
    async with client_of(create_app(live)) as client:
        answer = await client.post("/v1/workflows", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 202
    await live.close()


async def test_a_client_that_goes_away_within_its_body_breaks_nothing() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/workflows", "query_string": b"", "headers": headers}
    await create_app(without_state())(scope, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (StoreUnavailable("the database at 10.0.0.1 is down"), "5"),
        (StoreUnavailable("the database at 10.0.0.1 is down", retry_after_seconds=7.2), "8"),
        (StoreUnavailable("the database at 10.0.0.1 is down", retry_after_seconds=0.0), "1"),
    ],
)
async def test_what_may_work_later_says_when_to_try_again(error: Exception, seconds: str) -> None:
    async with broken(error) as client:
        for answer in (await client.post("/v1/workflows", json=BRIEF), await client.get("/v1/workflows")):
            assert problem_in(answer, 503).type == "urn:agent-team:problem:unavailable"
            assert answer.headers["retry-after"] == seconds
            assert "10.0.0.1" not in answer.text


@pytest.mark.parametrize("error", [RuntimeError(PRIVATE), KeyError(PRIVATE), ConfigurationError(f"the password of {PRIVATE}")])
async def test_what_broke_is_told_to_the_log_and_not_to_the_caller(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async with broken(error) as client:
        answer = await client.get("/v1/workflows")
    assert problem_in(answer, 500).type == "about:blank"
    assert PRIVATE not in answer.text
    assert "Traceback" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.__dict__["path"] == "/v1/workflows"
    assert record.__dict__["error"]["type"] == type(error).__name__


async def test_a_request_whose_messages_could_not_be_sent_can_be_sent_again_under_its_key(database: str) -> None:
    class DownAtFirst(RememberingBus):
        async def publish(self, messages: Sequence[BusMessage]) -> None:
            tried.append(list(messages))
            if len(tried) == 1:
                raise BusUnavailable("the bus is down")

    tried: list[list[BusMessage]] = []
    live = Runtime(settings(database_url=database), bus=DownAtFirst())
    async with client_of(create_app(live)) as client:
        headers = {"Idempotency-Key": "again"}
        problem_in(await client.post("/v1/workflows", json=BRIEF, headers=headers), 503)
        assert (await client.post("/v1/workflows", json=BRIEF, headers=headers)).status_code == 202
        assert len((await client.get("/v1/workflows")).json()["items"]) == 1
    first, second = ([orjson.loads(message.data)["id"] for message in messages] for messages in tried)
    assert first == second
    await live.close()


async def test_an_answer_that_breaks_off_is_not_continued_as_a_problem() -> None:
    async def breaks_off(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError

    async with client_of(Edge(breaks_off)) as client:
        with pytest.raises(RuntimeError):
            await client.get("/")


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/health", "/health/ready", "/metrics", "/openapi.json", "/v1/workflows", "/nothing", "/v1/workflows/x"]
)
async def test_every_answer_has_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers.get_list("content-security-policy") == [headers["content-security-policy"]]


# Starting


async def test_it_says_once_that_it_is_open(stateless: httpx.AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        await stateless.get("/metrics")
    (record,) = caplog.records
    assert (record.levelname, "open" in record.getMessage()) == ("WARNING", True)


async def test_a_server_can_start_and_end_it() -> None:
    incoming = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(incoming)

    async def send(message: Message) -> None:
        sent.append(message)

    await create_app(without_state())({"type": "lifespan", "state": {}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_functions_framework_serves_it(live: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_runtime", live)
    # The module keeps the application that it made first.
    monkeypatch.delitem(sys.modules, "functions.gateway.main", raising=False)
    app = functions_framework.aio.create_asgi_app(target="gateway", source=str(ROOT / "main.py"))  # type: ignore[no-untyped-call]
    async with client_of(app) as client:
        workflow = await submitted(client)
        assert (await client.get(f"/v1/workflows/{workflow}")).json()["status"] == "RUNNING"
        assert (await client.get("/health")).json()["status"] == "ok"
        assert (await client.get("/")).headers["content-type"].startswith("text/html")
        problem_in(await client.get("/nothing"), 404)
        problem_in(await client.post("/v1/workflows", json={}), 422)
