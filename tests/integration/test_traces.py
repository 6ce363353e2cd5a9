"""One trace per workflow, from the HTTP request to the last step: in every envelope, on every line, and as a tree of spans."""

import io
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from shared.ai import Reply, Request
from shared.ai.offline import OfflineModel
from shared.bus import Delivery, Message, Outcome
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.errors import ModelUnavailable
from shared.local.server import create_app
from shared.messages import ErrorInfo, StepDeferred, StepFailed
from shared.runtime import load
from shared.runtime.redrive import Wanted, redrive_page
from shared.telemetry import Span, TraceContext, configure_logging, record_spans
from tests.support.doubles import WORKFLOW, delivery, signed
from tests.support.live import Live, definition, live, start
from tests.support.reports import brief, platform

CALLER = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


class WatchedBus(MemoryBus):
    """Keeps what was published."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.sent: list[Message] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        self.sent += messages
        await super().publish(messages)


class Stumbling:
    """The offline model, which fails on its first call."""

    def __init__(self) -> None:
        self._calls = 0

    async def generate(self, request: Request) -> Reply:
        self._calls += 1
        if self._calls == 1:
            raise ModelUnavailable("not yet")
        return await OfflineModel().generate(request)


@pytest.fixture
def spans() -> Iterator[list[Span]]:
    recorded: list[Span] = []
    record_spans(recorded.append)
    yield recorded
    record_spans(None)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as the cloud gets it."""
    root, stream = logging.getLogger(), io.StringIO()
    level = root.level
    handler = configure_logging("debug", stream=stream, cloud=True, project="acme")
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def traces(messages: Sequence[Message]) -> list[TraceContext | None]:
    return [TraceContext.parse(orjson.loads(message.data).get("traceparent")) for message in messages]


async def test_a_workflow_is_one_trace_from_the_request_to_its_end(
    database: str, tmp_path: Path, spans: list[Span], log: io.StringIO
) -> None:
    bus = WatchedBus()
    async with platform(database, tmp_path, bus=bus, model=Stumbling()) as opened:
        transport = httpx.ASGITransport(app=create_app(opened.runtime))
        async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
            body = {"workflow": "report", "input": {"brief": brief(0)}}
            answer = await client.post("/v1/workflows", json=body, headers={"traceparent": CALLER.header})
        workflow = answer.json()["id"]
        async for _ in opened.follow(workflow):
            pass
        found = await opened.runtime.store.get(workflow)
    assert found["status"] == "SUCCESS"
    assert max(step["attempt"] for step in found["steps"]) == 2

    sent = traces(bus.sent)
    assert len(sent) > len(found["steps"])
    assert {trace.trace_id for trace in sent if trace is not None} == {CALLER.trace_id}
    assert None not in sent

    assert {span.trace.trace_id for span in spans} == {CALLER.trace_id}
    known = {span.trace.span_id for span in spans}
    assert len(known) == len(spans)
    (request,) = [span for span in spans if span.trace.parent_id == CALLER.span_id]
    assert (request.operation, request.name) == ("http.server", "POST /v1/workflows")
    assert {span.trace.parent_id for span in spans} - {CALLER.span_id} < known
    agents = {step["agent"] for step in found["steps"] if not step["agent"].startswith("pattern:")}
    # Whoever tells of the end may still be about it.
    assert {span.name for span in spans if span is not request} - {"webhook"} == {"orchestrator", *agents}

    lines = [orjson.loads(line) for line in log.getvalue().splitlines()]
    about = [line for line in lines if line.get("workflowId") == workflow]
    assert {"workflow requested", "step completed", "step failed", "workflow success"} <= {line["msg"] for line in about}
    assert {line.get("logging.googleapis.com/trace") for line in about} == {f"projects/acme/traces/{CALLER.trace_id}"}
    assert {line["logging.googleapis.com/spanId"] for line in about} <= known
    assert all(line["logging.googleapis.com/trace_sampled"] for line in about)


# What happens later and elsewhere


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        event = start(definition("- {id: draft, agent: writer, input: {}}"), traceparent=CALLER.header)
        await opened.runtime.dispatcher("gateway").apply([event])
        yield opened


async def handle(team: Live, function: str, arrived: Delivery) -> None:
    assert await load(function).handlers(team.runtime)[arrived.topic](arrived) is Outcome.ACK


async def report(team: Live, payload: Any) -> None:
    await handle(team, "orchestrator", delivery(signed(payload, "workflow-events", team.clock, id="reply"), "orchestrator"))


async def sweep(team: Live) -> None:
    """The scheduler's call, which is in a trace of its own."""
    app = load("sweeper").app
    assert app is not None
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app(team.runtime)), base_url="http://sweeper") as client:
        assert (await client.post("/", headers={"traceparent": TraceContext.new().header})).status_code == 204


async def lose(team: Live) -> None:
    """The lease runs out."""
    await team.clock.advance(2000)
    await sweep(team)


async def defer(team: Live) -> None:
    later = team.clock.now() + timedelta(hours=1)
    await report(team, StepDeferred(workflow=WORKFLOW, step="draft", attempt=1, not_before=later))
    await team.clock.advance(3601)
    await sweep(team)


async def fail(team: Live) -> None:
    error = ErrorInfo(type="ModelUnavailable", message="no answer")
    await report(team, StepFailed(workflow=WORKFLOW, step="draft", attempt=1, permanent=True, error=error))


async def die_and_redrive(team: Live) -> None:
    source = {"CloudPubSubDeadLetterSourceSubscription": "agent-writer.writer", "CloudPubSubDeadLetterSourceDeliveryCount": "5"}
    message = team.bus.published[0]
    attributes = {**message.attributes, **source}
    await handle(team, "dead_letter", Delivery("dead-letters.dead_letter", "dead-letters", message.data, attributes, "9", 1))
    assert (await redrive_page(team.runtime, Wanted(), dry_run=False)).redriven == [1]


async def cancel(team: Live) -> None:
    event = {"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}
    await team.runtime.dispatcher("gateway").apply([event])


@pytest.mark.parametrize(
    ("what", "types"),
    [
        (lose, ["step.dispatched"]),
        (defer, ["step.dispatched"]),
        (fail, ["workflow.finished"]),
        (die_and_redrive, ["workflow.finished", "step.dispatched"]),
        (cancel, ["workflow.finished"]),
    ],
)
async def test_whoever_goes_on_with_a_workflow_goes_on_with_its_trace(team: Live, what: Any, types: list[str]) -> None:
    before = len(team.bus.published)
    await what(team)
    sent = team.bus.published[before:]
    assert [orjson.loads(message.data)["type"].split(".", 1)[1].removesuffix(".v1") for message in sent] == types
    assert [trace and trace.trace_id for trace in traces(sent)] == [CALLER.trace_id] * len(types)


async def test_a_scheduled_workflow_begins_a_trace_of_its_own(team: Live) -> None:
    before = len(team.bus.published)
    for number in range(2):
        data = orjson.dumps({"workflow": "report", "input": {"brief": brief(number)}})
        await handle(team, "intake", Delivery("workflow-schedules.intake", "workflow-schedules", data, {}, str(number), 1))
    first, second = traces(team.bus.published[before:])
    assert first is not None
    assert second is not None
    assert first.trace_id != second.trace_id
