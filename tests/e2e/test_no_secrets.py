"""A run full of failures, with a process for each function: no secret and no payload is in a log, a metric, an error or at Sentry.

Payload is what stands in fields. Their names may be told: whoever mistypes one has to find it.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from shared.bus import Message, open_bus
from shared.clock import SystemClock
from shared.local.servers import redis_binary
from shared.local.simulator import Kind, served_models
from shared.messages import KeyRing, WorkflowRequested
from shared.runtime.sender import Sender
from shared.state.documents import Document
from shared.state.postgres import PostgresCaller
from shared.state.store import WorkflowStore
from tests.support.live import until
from tests.support.reports import database_home
from tests.support.sentry import SentryServer, sentry_server
from tests.support.servers import missing
from tests.support.serving import Served, serving
from tests.support.simulated import simulator_thread

pytestmark = pytest.mark.timeout(300)

KEY = "AIza-planted-key-of-the-model"
HMAC = "planted-signing-secret-0123456789abcdef"
DATABASE = "planted-database-password"
BEARER = "planted-token-of-a-caller"
INPUT = "Skarholm"
DOCUMENT = "Vindoya"
FORGED = "Grimsund"
SCHEDULED = "Ulvoysund"
DEAD = "Hestmona"
WEBHOOK = "planted-secret-of-webhooks"
APPROVAL = "planted-token-of-an-approval"
CALLBACK = "planted-token-of-a-callback"
PLANTED = (
    KEY,
    HMAC,
    DATABASE,
    BEARER,
    WEBHOOK,
    base64.b64encode(WEBHOOK.encode()).decode(),
    CALLBACK,
    APPROVAL,
    INPUT,
    DOCUMENT,
    FORGED,
    SCHEDULED,
    DEAD,
)
BRIEF = f"The ferry to {INPUT} was late on Monday. The crew of {INPUT} had 3 people instead of 5. Who decides when it sails?"


@pytest.fixture
def sentry() -> Iterator[SentryServer]:
    with sentry_server() as server:
        yield server


async def misuse(served: Served) -> str:
    """Wrong requests; the texts of all the answers."""
    headers = {"authorization": f"Bearer {BEARER}", "cookie": f"session={BEARER}"}
    said = ""
    for content in (f'{{"workflow": "report", "input": {{"brief": 3, "{INPUT}": 1}}}}', f"{INPUT} is no JSON", f'{{"{INPUT}": 1}}'):
        answer = await served.client.post("/v1/workflows", content=content, headers={**headers, "content-type": "application/json"})
        assert 400 <= answer.status_code < 500
        said += answer.text
    for method in ("GET", "HEAD", "POST"):
        answer = await served.client.request(method, f"/approve/{APPROVAL}")
        assert answer.status_code == 403
        said += answer.text
    said += (await served.client.get(f"/v1/{BEARER}", params={"token": BEARER}, headers=headers)).text
    return said


async def send_bad_messages(redis_url: str) -> None:
    """A forged one, one that was altered, a schedule that is none, and a dead one."""
    clock = SystemClock()
    bus = open_bus("redis", clock, max_bytes=1_000_000, redis_url=redis_url)
    sender = Sender(function="somebody", ring=KeyRing("v1", {}, default=HMAC), clock=clock, ttl_seconds=3600, max_bytes=1_000_000)
    good = sender.request(WorkflowRequested(workflow="report", input={"brief": FORGED}), id="wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD")
    forger = Sender(function="forger", ring=KeyRing("v1", {}, default="x" * 32), clock=clock, ttl_seconds=3600, max_bytes=1_000_000)
    unknown = sender.request(WorkflowRequested(workflow="unheard-of", input={"brief": FORGED}), id="wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CE")
    unfit = sender.request(WorkflowRequested(workflow="report", input={"brief": [FORGED]}), id="wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CF")
    source = {"CloudPubSubDeadLetterSourceSubscription": "agent-writer.writer", "CloudPubSubDeadLetterSourceDeliveryCount": "5"}
    try:
        await bus.publish(
            [
                forger.request(WorkflowRequested(workflow="report", input={"brief": FORGED}), id="wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CG"),
                Message(good.topic, good.data.replace(b"Grimsund", b"Grimsund!"), good.attributes),
                Message(good.topic, f"{FORGED} is no JSON".encode(), good.attributes),
                Message(good.topic, good.data, {"token": BEARER}),
                unknown,
                unfit,
                Message("workflow-schedules", f"{SCHEDULED} is no JSON".encode(), {}),
                Message("workflow-schedules", orjson.dumps({"workflow": "report", "input": {"brief": [SCHEDULED]}}), {}),
                Message("dead-letters", f"{DEAD} is no envelope".encode(), {**source, "private": DEAD}),
            ]
        )
    finally:
        await bus.close()


def logs_of(home: Path) -> str:
    """All that the processes wrote, but for the data of the servers."""
    files = [path for path in home.iterdir() if path.is_file() and path.name != "environment"]
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files)


async def test_nothing_that_is_secret_or_private_is_told_anywhere(database: str, sentry: SentryServer) -> None:
    if redis_binary() is None:
        missing("redis-server")
    dsn = database.replace("postgres:@", f"postgres:{DATABASE}@")
    assert dsn != database
    store = WorkflowStore(PostgresCaller(database), max_running=1)
    text = f"The ferry of {DOCUMENT} sails when its crew decides. Monday is late."
    await store.put_document(Document("ferry.md", "0" * 64, [text]))
    await store.close()
    variables = {
        "DATABASE_URL": dsn,
        "COMM_HMAC_DEFAULT_SECRET": HMAC,
        "WEBHOOK_SECRET": f"whsec_{base64.b64encode(WEBHOOK.encode()).decode()}",
        "GEMINI_API_KEY": KEY,
        "SENTRY_DSN": sentry.dsn,
        "SENTRY_TRACES_SAMPLE_RATE": "1.0",
        "LOG_LEVEL": "debug",
        "AI_RATE_QPS": "100",
    }
    with database_home() as home, simulator_thread(*served_models(), keys=frozenset({KEY})) as gemini:
        async with serving(home, "--bus", "redis", GEMINI_BASE_URL=gemini, **variables) as served:
            redis_url = re.search(r"^REDIS_URL=(\S+)", (home / "environment").read_text(), re.MULTILINE)
            assert redis_url is not None
            redis_password = redis_url[1].split(":")[2].split("@")[0]
            async with httpx.AsyncClient(base_url=gemini) as simulator:
                for kind in (Kind.UNAVAILABLE, Kind.NOT_JSON, Kind.DROPPED, Kind.RATE_LIMITED):
                    fault = await simulator.post("/_simulator/faults", json={"kind": kind, "next": 1})
                    assert fault.status_code == 204
            succeeding = await served.submit(BRIEF, key="one")
            await send_bad_messages(redis_url[1])
            answers = await misuse(served)
            [report] = await served.ended([succeeding], within_seconds=120)
            async with httpx.AsyncClient(base_url=gemini) as simulator:
                await simulator.post("/_simulator/faults", json={"kind": Kind.BLOCKED_ANSWER, "probability": 1.0})
            # Nobody listens there.
            wanted = {"workflow": "report", "input": {"brief": BRIEF}, "callback_url": f"http://127.0.0.1:9/hook?token={CALLBACK}"}
            accepted = (await served.client.post("/v1/workflows", json=wanted)).json()
            [failed] = await served.ended([accepted["id"]], within_seconds=120)
            await until(lambda: "webhook failed" in logs_of(home), within_seconds=30)
            await until(lambda: '"dead letter"' in logs_of(home), within_seconds=30)
            await until(lambda: logs_of(home).count('"rejected"') >= 5, within_seconds=30)
            told = {
                "metrics": (await served.client.get("/metrics")).text,
                "letters": (await served.client.get("/v1/dead-letters")).text,
                "errors": orjson.dumps([failed["error"], *(step["error"] for step in failed["steps"])]).decode(),
                "answers": answers.replace(INPUT, ""),  # a caller may be told of their own words
            }
            assert await served.end() == 0
            assert served.process.stdout is not None
            assert served.process.stderr is not None
            told["output"] = (await served.process.stdout.read() + await served.process.stderr.read()).decode()
        told["logs"] = logs_of(home)
    told["sentry"] = b"\n".join(sentry.bodies).decode()

    # It all went through the platform, and what was to go wrong did.
    assert INPUT in orjson.dumps(report).decode()
    assert (report["status"], failed["status"]) == ("SUCCESS", "FAILED")
    for expected in ("step failed", "dead letter", "is asked", "HMAC verification failed", "workflow success", "tool called"):
        assert expected in told["logs"], expected
    assert {"step failed", "dead letter"} <= {event["logentry"]["message"] for event in sentry.events()}
    assert {"planner", "orchestrator", "POST /v1/workflows"} <= {one["transaction"] for one in sentry.transactions()}
    found = {(where, marker) for where, text in told.items() for marker in (*PLANTED, redis_password) if marker in text}
    assert found == set()
