"""What a server in Sentry's place is told by the real client: errors and a share of the traces, and nothing that is private."""

import asyncio
import gc
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from shared.ai import Reply, Request
from shared.bus import Outcome
from shared.errors import ModelUnavailable
from shared.runtime import load
from shared.telemetry import TraceContext, open_sentry, redact_values, span
from tests.support.doubles import Stage, delivery
from tests.support.live import Live, live
from tests.support.sentry import SentryServer, sentry_server
from tests.support.servers import free_port

SECRET = "planted-secret-0123456789"
PAYLOAD = "the ferry is late and nobody may know"
log = logging.getLogger("shared.tests")


@contextmanager
def told(dsn: str, *, rate: float = 1.0) -> Iterator[None]:
    """Sentry is told within the block, and everything is sent when it ends."""
    close = open_sentry(dsn, environment="staging", release="agent-team@1.2.3", server_name="writer", traces_sample_rate=rate)
    try:
        yield
    finally:
        close()


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with sentry_server() as server:
        yield server


class Scripted:
    """A model that fails as the test says."""

    def __init__(self, answer: Callable[[], Exception]) -> None:
        self._answer = answer

    async def generate(self, request: Request) -> Reply:
        private = request.prompt  # a local variable, on the way of the exception
        raise self._answer() from ValueError(private)


async def work(opened: Live, **changes: Any) -> Outcome:
    """The planner on one step whose input is private."""
    stage = Stage(clock=opened.clock)
    message = opened.runtime.sender("orchestrator").dispatch(
        stage.order(agent="planner", input={"brief": PAYLOAD}, **changes), cause="cause-1", traceparent=TRACE.header
    )
    handler = load("planner").handlers(opened.runtime)["agent-planner"]
    return await asyncio.create_task(_as_coroutine(handler(delivery(message, "planner"))))


async def _as_coroutine(handled: Any) -> Outcome:
    outcome: Outcome = await handled
    return outcome


TRACE = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


async def test_an_error_in_an_agent_arrives_without_anything_private(database: str, tmp_path: Path, sentry: SentryServer) -> None:
    redact_values(SECRET)
    model = Scripted(lambda: RuntimeError(f"{PAYLOAD} {SECRET}"))
    async with live(database, tmp_path, model=model) as opened:
        with told(sentry.dsn):
            await work(opened)

    (event,) = sentry.events()
    assert (event["environment"], event["release"], event["server_name"]) == ("staging", "agent-team@1.2.3", "writer")
    assert (event["level"], event["logentry"]["message"]) == ("error", "step failed")
    cause, error = event["exception"]["values"]
    assert (cause["type"], error["type"]) == ("ValueError", "RuntimeError")
    assert error["stacktrace"]["frames"][-1]["function"].endswith("Scripted.generate")
    assert {"workflowId", "step", "attempt", "agent", "status"} <= event["tags"].keys()
    assert event["contexts"]["trace"]["trace_id"] == TRACE.trace_id
    assert not {"breadcrumbs", "request", "user", "extra", "modules"} & event.keys()
    sent = b"".join(sentry.bodies).decode()
    for private in (PAYLOAD, SECRET, "public-key", '"vars"', "context_line"):
        assert private not in sent


async def test_the_platforms_own_errors_say_what_is_wrong(sentry: SentryServer) -> None:
    redact_values(SECRET)
    with told(sentry.dsn):
        try:
            raise ModelUnavailable(f"no answer from https://user:{SECRET}@host/")
        except ModelUnavailable:
            log.exception("call of %s failed with Bearer abc.def", "gemini-x", extra={"authorization": "private", "path": SECRET})
    (event,) = sentry.events()
    assert event["exception"]["values"][0]["value"] == "no answer from https://[redacted]@host/"
    assert event["logentry"]["formatted"] == "call of gemini-x failed with Bearer [redacted]"
    assert event["tags"] == {"path": "[redacted]"}
    assert SECRET not in b"".join(sentry.bodies).decode()


async def test_of_what_others_log_only_the_beginning_is_told(sentry: SentryServer) -> None:
    async def fail() -> None:
        raise ValueError(PAYLOAD)

    with told(sentry.dsn):
        task = asyncio.create_task(fail())
        await asyncio.wait([task])
        del task  # nobody asks for its result: asyncio logs it, message and all
        gc.collect()
        log.warning("not an error")
        logging.getLogger("urllib3.connectionpool").error("would go round and round")
    (event,) = sentry.events()
    assert event["logentry"]["formatted"] == "Task exception was never retrieved"
    assert PAYLOAD not in b"".join(sentry.bodies).decode()


async def test_each_delivery_and_each_request_is_a_transaction_of_our_trace(
    database: str, tmp_path: Path, sentry: SentryServer
) -> None:
    async with live(database, tmp_path) as opened:
        with told(sentry.dsn):
            await work(opened)
            transport = httpx.ASGITransport(app=create_app(opened.runtime))
            headers = {"traceparent": TRACE.header, "authorization": f"Bearer {SECRET}", "cookie": SECRET}
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway", headers=headers) as client:
                await client.get(f"/v1/workflows/wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD?x={SECRET}")
                await client.request("BREW", f"/{SECRET}")
    found = {one["transaction"]: one["contexts"]["trace"] for one in sentry.transactions()}
    assert found.keys() == {"planner", "GET /v1/workflows/{id}", "other unmatched"}
    assert {(trace["trace_id"], trace["parent_span_id"]) for trace in found.values()} == {(TRACE.trace_id, TRACE.span_id)}
    assert len({trace["span_id"] for trace in found.values()}) == 3
    assert [trace["status"] for trace in found.values()] == ["ok", "not_found", "not_found"]
    assert SECRET not in b"".join(sentry.bodies).decode()


def test_of_a_trace_all_spans_are_sent_or_none_and_as_many_traces_as_wanted(sentry: SentryServer) -> None:
    traces = [TraceContext.new() for _ in range(60)]
    with told(sentry.dsn, rate=0.5):
        for trace in traces:
            for name in ("one", "two"):
                with span("queue.process", name, parent=trace):
                    pass
            # The client's queue is bounded, and what does not fit is dropped.
            logging.getLogger().handlers[-1]._client.flush(timeout=5)  # type: ignore[attr-defined]
    sent = [one["contexts"]["trace"]["trace_id"] for one in sentry.transactions()]
    assert sorted(sent) == sorted(2 * list({*sent}))
    assert 10 < len({*sent}) < 50  # chances of less than one in a million


def test_without_a_share_no_transaction_is_sent_and_errors_still_are(sentry: SentryServer) -> None:
    with told(sentry.dsn, rate=0.0), span("queue.process", "writer", parent=TraceContext("f" * 32, "f" * 16)):
        log.error("broken")
    assert (len(sentry.events()), sentry.transactions()) == (1, [])


@pytest.mark.parametrize("hangs", [True, False])
def test_a_dead_sentry_slows_nothing(hangs: bool) -> None:
    with sentry_server(hangs=hangs) as server:
        dsn = server.dsn if hangs else f"http://key@127.0.0.1:{free_port()}/1"
        close = open_sentry(dsn, environment="x", release="x", server_name="x", traces_sample_rate=1.0)
        begun = time.monotonic()
        for _ in range(200):
            with span("queue.process", "writer", parent=None):
                log.error("broken")
        busy = time.monotonic() - begun
        close()
        closed = time.monotonic() - begun - busy
    # Measured at 0.1 s; a request that is waited for would take seconds each.
    assert busy < 2
    assert closed < 5


def test_a_dsn_that_is_none_is_one_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with told("https://nothing-to-see"):
        log.error("broken")
    assert "SENTRY_DSN is no Sentry DSN" in caplog.text


def test_a_process_of_production_tells_sentry_where_it_knows_one_and_else_loads_no_client(
    sentry: SentryServer,
) -> None:
    code = (
        "import logging, sys; from shared.runtime.process import open_runtime; open_runtime(serves=('judge',));"
        "logging.getLogger('shared.tests').error('broken'); print('sentry_sdk' in sys.modules)"
    )
    given = {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code]
    without = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=True)
    assert (without.stdout, sentry.items) == ("False\n", [])
    variables = {"SENTRY_DSN": sentry.dsn, "SENTRY_ENVIRONMENT": "staging", "SENTRY_TRACES_SAMPLE_RATE": "0.5"}
    told_it = subprocess.run(command, env={**given, **variables}, capture_output=True, text=True, timeout=60, check=True)
    assert told_it.stdout == "True\n"
    (event,) = sentry.events()
    assert (event["environment"], event["server_name"]) == ("staging", "judge")
    assert event["release"].startswith("agent-team")
