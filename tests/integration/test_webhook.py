"""Outgoing webhooks against real receivers of this machine: what they are told, how often, and where nothing is ever sent."""

import asyncio
import logging
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvicorn
from standardwebhooks import Webhook, WebhookVerificationError

from functions.webhook import main as webhook_module
from functions.webhook.main import wait_seconds
from shared.bus import Message, Outcome
from shared.bus.memory import MemoryBus
from shared.bus.policy import backoff_seconds
from shared.clock import Clock, ManualClock, SystemClock
from shared.config import Settings, load_settings
from shared.errors import ConfigurationError, InputError
from shared.guards import open_guards
from shared.http.addresses import Gate
from shared.messages import Budget, ErrorInfo, Usage, WorkflowCancelled, WorkflowFinished
from shared.runtime import Runtime, load
from shared.runtime.joining import join
from shared.runtime.letters import noted_failure
from shared.runtime.requests import check_callback
from shared.runtime.spec import load_functions
from shared.telemetry import metrics
from tests.support.doubles import SECRET, WORKFLOW, RememberingBus, delivery, sender, signed
from tests.support.hostile import HOSTILE, NAMES, resolve
from tests.support.live import completed, definition, live, start, until
from tests.support.receivers import Receiver, answer, receiver

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
USAGE = Usage(model_calls=2, input_tokens=10, output_tokens=5, cost_microdollars=7)
SPEC = load_functions()["webhook"]


def opened(*, clock: Clock | None = None, bus: Any = None, gate: Gate | None = None, **given: Any) -> Runtime:
    """A runtime without a database: the function has none."""
    values: dict[str, Any] = {"app_env": "test", "comm_hmac_default_secret": SECRET, "webhook_secret": KEY} | given
    ticking = SystemClock() if clock is None else clock
    made = Runtime(
        Settings(**values), clock=ticking, bus=RememberingBus() if bus is None else bus, guards=open_guards("memory", ticking)
    )
    if gate is not None:
        made.__dict__["callback_gate"] = gate
    return made


def ended(url: str | None, **changes: Any) -> WorkflowFinished:
    values: dict[str, Any] = {"name": "report", "status": "SUCCESS", "output": {"text": "Überfällig 🚢"}, "usage": USAGE}
    return WorkflowFinished(**({"workflow": WORKFLOW, "callback_url": url} | values | changes))


def message(finished: WorkflowFinished, *, function: str = "orchestrator", resumed: int = 0, clock: Clock | None = None) -> Message:
    ticking = SystemClock() if clock is None else clock
    return sender(function, ticking).finished(finished, resumed=resumed, cause=None, traceparent=None)


async def handle(on: Runtime, arrived: Message, *, message_id: str = "1") -> Outcome:
    return await load("webhook").handlers(on)["workflow-results"](delivery(arrived, "webhook", message_id=message_id))


def sent(outcome: str) -> float:
    return metrics.value("webhook.sent", outcome=outcome)


@pytest.fixture
async def hook() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


# What is told


async def test_the_receiver_is_told_once_in_a_form_that_its_library_believes(hook: Receiver) -> None:
    accepted = sent("accepted")
    told = message(ended(hook.url))
    assert await handle(opened(), told) is Outcome.ACK
    (call,) = hook.calls
    assert call.path == "/hook?token=a-secret-of-the-receiver"
    assert call.headers["content-type"] == "application/json"
    assert call.headers["host"] == f"127.0.0.1:{hook.port}"
    assert call.headers["webhook-id"] == f"{WORKFLOW}/finished"
    body = call.verified(KEY)
    moment = datetime.fromisoformat(body.pop("timestamp"))
    assert abs(datetime.now(UTC) - moment) < timedelta(minutes=1)
    assert body == {
        "type": "workflow.finished",
        "data": {
            "id": WORKFLOW,
            "workflow": "report",
            "status": "SUCCESS",
            "output": {"text": "Überfällig 🚢"},
            "output_omitted": False,
            "error": None,
            "usage": USAGE.model_dump(),
        },
    }
    assert sent("accepted") == accepted + 1
    for secret, change in (("whsec_" + "A" * 32, b""), (KEY, b" ")):
        call.body += change
        with pytest.raises(WebhookVerificationError):
            call.verified(secret)


async def test_an_error_is_told_with_its_type_and_message(hook: Receiver) -> None:
    error = ErrorInfo(type="BudgetExceeded", message="the workflow passed its max_tokens")
    await handle(opened(), message(ended(hook.url, status="FAILED", output=None, error=error, output_omitted=True)))
    data = hook.calls[0].verified(KEY)["data"]
    assert (data["status"], data["error"], data["output"], data["output_omitted"]) == ("FAILED", error.model_dump(), None, True)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_what_was_accepted_is_never_sent_again_whoever_sends_the_copy(status: int) -> None:
    on = opened()
    async with receiver(answer(status), answer(500)) as hook:
        for number, function in enumerate(("orchestrator", "orchestrator", "gateway", "sweeper")):
            assert await handle(on, message(ended(hook.url), function=function), message_id=str(number)) is Outcome.ACK
        assert len(hook.calls) == 1


async def test_copies_that_arrive_at_once_are_sent_once(hook: Receiver) -> None:
    on, told = opened(), message(ended(hook.url))
    assert set(await asyncio.gather(*(handle(on, told, message_id=str(number)) for number in range(20)))) == {Outcome.ACK}
    assert len(hook.calls) == 1


async def test_a_workflow_that_was_resumed_ends_once_more(hook: Receiver) -> None:
    on = opened()
    for resumed in (0, 1):
        await handle(on, message(ended(hook.url), resumed=resumed))
    assert [call.headers["webhook-id"] for call in hook.calls] == [f"{WORKFLOW}/finished", f"{WORKFLOW}/finished.1"]
    assert all(call.verified(KEY) for call in hook.calls)


async def test_without_a_callback_nothing_is_done_and_nothing_is_needed() -> None:
    assert await handle(opened(app_env="production", webhook_secret=None), message(ended(None))) is Outcome.ACK


async def test_messages_that_are_not_the_teams_send_nothing(hook: Receiver) -> None:
    on, told = opened(), message(ended(hook.url))
    altered = Message(told.topic, told.data.replace(b"SUCCESS", b"FAILED"), told.attributes)
    unsigned = Message(told.topic, told.data, {})
    other = signed(WorkflowCancelled(workflow=WORKFLOW), "workflow-results", SystemClock(), id="x")
    for one in (altered, unsigned, other):
        assert await handle(on, one) is Outcome.ACK
    assert hook.connections == 0


# When it is not accepted


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 410, 413, 422, 451])
async def test_a_refusal_is_for_good_and_a_redirect_is_one(status: int, caplog: pytest.LogCaptureFixture) -> None:
    on, refused = opened(), sent("refused")
    async with receiver() as other, receiver(answer(status, location=other.url)) as hook:
        with caplog.at_level(logging.DEBUG):
            for number in range(3):
                assert await handle(on, message(ended(hook.url)), message_id=str(number)) is Outcome.ACK
        assert (len(hook.calls), other.connections) == (1, 0)
    assert sent("refused") == refused + 1
    (line,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (line.getMessage(), line.__dict__["answer"], line.__dict__["workflowId"]) == ("webhook refused", status, WORKFLOW)


@pytest.mark.parametrize(
    "given",
    [*(answer(status) for status in (408, 425, 429, 500, 501, 502, 503, 504, 599)), b"", b"SSH-2.0\r\n", b"HTTP/1.1 200", None],
)
async def test_anything_else_is_tried_again_until_it_is_accepted(given: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_module, "_SECONDS", 0.3 if given is None else 10.0)
    on, failed = opened(), sent("failed")
    async with receiver(given, given, answer(200)) as hook:
        told = message(ended(hook.url))
        outcomes = [await handle(on, told) for _ in range(4)]
    assert outcomes == [Outcome.RETRY, Outcome.RETRY, Outcome.ACK, Outcome.ACK]
    assert sent("failed") == failed + 2
    assert len(hook.calls) == 3
    assert {call.body for call in hook.calls} == {hook.calls[0].body}
    assert all(call.verified(KEY) for call in hook.calls)


async def test_a_body_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_module, "_SECONDS", 10.0)
    async with receiver(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 1_000_000) as hook:
        assert await handle(opened(), message(ended(hook.url))) is Outcome.ACK


async def test_a_receiver_that_is_down_for_hours_is_told_when_it_is_back() -> None:
    clock = ManualClock()
    bus = MemoryBus(clock)
    on = opened(clock=clock, bus=bus)
    await bus.subscribe(SPEC.subscriptions()[0], load("webhook").handlers(on)["workflow-results"])
    async with receiver() as gone:
        port = gone.port
    failed, hours = sent("failed"), 0.0
    await bus.publish([message(ended(gone.url), clock=clock)])
    for attempt in range(1, 21):
        # What fails is held back on the clock; only then does it go on.
        await until(lambda attempt=attempt: sent("failed") - failed == attempt and clock.sleepers > 0)  # type: ignore[misc]
        await bus_rests(bus)
        pause = backoff_seconds(SPEC.subscriptions()[0], attempt)
        hours += pause / 3600
        if attempt == 20:
            async with receiver(port=port) as back:
                await clock.advance(pause)
                await bus.idle()
                assert [call.told["data"]["id"] for call in back.calls] == [WORKFLOW]
                call = back.calls[0]
                assert call.headers["webhook-timestamp"] == str(int(clock.now().timestamp()))
                signature = Webhook(KEY).sign(call.headers["webhook-id"], clock.now(), call.body.decode())
                assert call.headers["webhook-signature"] == signature
        else:
            await clock.advance(pause)
    assert hours > 2
    await bus.close()


async def bus_rests(bus: MemoryBus) -> None:
    """Return once no delivery is in progress."""
    await until(lambda: not any(line.running for line in bus._lines.values()))


def test_it_is_tried_for_half_a_day_and_given_up_while_its_envelope_lives() -> None:
    (subscription,) = SPEC.subscriptions()
    seconds = sum(backoff_seconds(subscription, attempt) for attempt in range(1, subscription.max_attempts))
    slowest = subscription.max_attempts * SPEC.timeout_seconds
    assert 12 * 3600 < seconds < seconds + slowest < load_settings({}).comm_idempotency_ttl_sec


async def test_what_is_given_up_says_why() -> None:
    async with receiver() as gone:
        pass
    on = opened()
    assert await handle(on, message(ended(gone.url))) is Outcome.RETRY
    note = await noted_failure(on.guards.cache, f"webhook:/agent-team/state#{WORKFLOW}/finished")
    assert note is not None
    assert note["type"] == "HostUnavailable"
    assert note["message"] == "the webhook is not accepted: it cannot be reached; mend its receiver"


@pytest.mark.parametrize(("asked", "waited"), [("7", 7.0), ("86400", 60.0), ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0)])
async def test_a_receiver_that_asks_for_time_gets_it_up_to_a_minute(asked: str, waited: float) -> None:
    clock = ManualClock()
    on = opened(clock=clock)
    async with receiver(answer(429, retry_after=asked)) as hook:
        failed = sent("failed")
        handling = asyncio.create_task(handle(on, message(ended(hook.url), clock=clock)))
        await until(lambda: sent("failed") == failed + 1)
        await until(lambda: clock.sleepers > 0)
        await clock.advance(waited - 0.1)
        assert not handling.done()
        await clock.advance(0.1)
        assert await handling is Outcome.RETRY


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("", None), ("soon", None), ("-5", None), ("1.5", None), ("٣", None), ("0", 0.0), ("120", 120.0),
     ("9" * 400, 999_999_999.0), ("Wed, 31 Dec 2025 23:59:00 GMT", 0.0), ("Thu, 01 Jan 2026 00:02:00 GMT", 120.0),
     ("Thu, 01 Jan 2026 00:02:00 -0000", None)],
)  # fmt: skip
def test_a_wait_is_seconds_or_a_date_or_nothing(text: str | None, seconds: float | None) -> None:
    assert wait_seconds(text, now=datetime(2026, 1, 1, tzinfo=UTC)) == seconds


# Where nothing is sent


def test_only_where_a_name_leads_is_left_for_later_when_a_workflow_is_asked_for() -> None:
    on, later = opened(app_env="production"), set()
    for url in HOSTILE:
        try:
            check_callback(on, url.replace("{port}", "80"))
        except InputError as refusal:
            assert str(refusal).startswith("callback_url: the address cannot be called: ")  # noqa: PT017
        else:
            later.add(urlsplit(url).hostname)
    assert later <= {*NAMES, "unknown.test"}
    assert "metadata.google.internal" not in later


@pytest.mark.parametrize("env", ["production", "development"])
async def test_no_callback_leads_to_this_machine_or_its_network(env: str) -> None:
    """Past the check at the request as well, as if the message were older than the rules."""
    async with receiver() as server:
        gate = Gate(resolve=resolve, ports={80, 443, server.port}, loopback=env != "production")
        on = opened(app_env=env, gate=gate)
        refused, asked = sent("refused"), 0
        for url in HOSTILE:
            url = url.replace("{port}", str(server.port))
            if not 0 < len(url) <= 2048 or "\0" in url or _is_own(url, gate):  # no message can hold the first two
                continue
            outcome = await handle(on, message(ended(url, workflow=f"wf_01K0000000000000000000{asked:04d}")))
            # A name that is not there may be there tomorrow; everything else is refused for good.
            assert outcome is (Outcome.RETRY if "//unknown.test" in url else Outcome.ACK), url
            asked += 1
        assert asked > 100
        assert sent("refused") == refused + asked - 1
        assert server.connections == 0


def _is_own(url: str, gate: Gate) -> bool:
    """Whether it is loopback written plainly, where that is let through."""
    starts = ("http://127.0.0.1/", "http://127.0.0.1:", "https://127.0.0.1:", "http://localhost:", "http://LOCALHOST:", "http://[::1]:",
              "http://[0:0:0:0:0:0:0:1]:")  # fmt: skip
    return gate.loopback and url.startswith(starts) and not {"@", "\\", " ", "\r", "\x00"} & set(url)


async def test_loopback_is_called_outside_production_and_not_in_it(hook: Receiver) -> None:
    url = hook.url.replace("127.0.0.1", "localhost")
    check_callback(opened(), url)
    assert await handle(opened(), message(ended(url))) is Outcome.ACK
    assert len(hook.calls) == 1
    with pytest.raises(InputError, match="callback_url: the address cannot be called") as refusal:
        check_callback(opened(app_env="production"), url)
    assert "a-secret-of-the-receiver" not in str(refusal.value)
    await handle(opened(app_env="production"), message(ended(url)))
    assert hook.connections == 1


@pytest.mark.parametrize("host", [name for name, addresses in NAMES.items() if addresses and "127.0.0.1" in addresses])
async def test_a_name_that_leads_to_loopback_is_refused_everywhere(host: str, hook: Receiver) -> None:
    on = opened(gate=Gate(resolve=resolve, ports={hook.port}, loopback=True))
    assert await handle(on, message(ended(f"http://{host}:{hook.port}/"))) is Outcome.ACK
    assert hook.connections == 0


# The secret


async def test_neither_secrets_nor_the_address_nor_the_output_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with receiver(answer(500), answer(200)) as hook, receiver(answer(410)) as never:
            for one in (hook, hook, never):
                await handle(opened(), message(ended(one.url)))
        await handle(opened(), message(ended(hook.url)))  # it is gone by now
    text = "\n".join(str(record.__dict__) for record in caplog.records if record.name != "asyncio")
    assert {record.getMessage() for record in caplog.records} >= {"webhook failed", "webhook accepted", "webhook refused"}
    assert not [part for part in (KEY, KEY[6:], SECRET, "a-secret-of-the-receiver", "berf") if part in text]


async def test_in_production_a_secret_must_be_given_and_the_message_waits_for_it(caplog: pytest.LogCaptureFixture) -> None:
    url = "https://example.org/hook"
    assert await handle(opened(app_env="production", webhook_secret=None), message(ended(url))) is Outcome.RETRY
    with pytest.raises(ConfigurationError, match=r"WEBHOOK_SECRET is not set.*whsec_"):
        _ = opened(app_env="production", webhook_secret=None).webhook_secret
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_elsewhere_a_secret_is_made_once_and_is_its_owners_alone(tmp_path: Path, hook: Receiver) -> None:
    for resumed in (0, 1):
        await handle(opened(webhook_secret=None, agent_team_home=tmp_path / "home"), message(ended(hook.url), resumed=resumed))
    file = tmp_path / "home" / "webhook-secret"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len([call.verified(file.read_text()) for call in hook.calls]) == 2
    load_settings({"WEBHOOK_SECRET": file.read_text()})


# From the request to the receiver


async def test_an_end_that_is_heard_of_again_is_not_told_again(database: str, tmp_path: Path, hook: Receiver) -> None:
    async with live(database, tmp_path, WEBHOOK_SECRET=KEY) as team:
        small = definition("- {id: draft, agent: writer, input: {}}", output="{{ steps.draft.output }}")
        await team.runtime.dispatcher("intake").apply([start(small, callback_url=hook.url)])
        for _ in range(2):
            await team.runtime.dispatcher("orchestrator").apply([completed("draft", output="done")])
        await team.runtime.dispatcher("gateway").apply([{"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}])
        results = [one for one in team.bus.published if one.topic == "workflow-results"]
        assert len(results) == 3
        for number, one in enumerate(results):
            assert await handle(team.runtime, one, message_id=str(number)) is Outcome.ACK
    assert [call.told["data"]["output"] for call in hook.calls] == ["done"]


async def test_an_output_that_is_too_large_for_a_message_is_omitted_and_said_to_be(
    database: str, tmp_path: Path, hook: Receiver
) -> None:
    async with live(database, tmp_path, WEBHOOK_SECRET=KEY, MAX_PAYLOAD_BYTES="3000") as team:
        small = definition("- {id: draft, agent: writer, input: {}}", output="{{ steps.draft.output }}")
        await team.runtime.dispatcher("intake").apply([start(small, callback_url=hook.url)])
        await team.runtime.dispatcher("orchestrator").apply([completed("draft", output="x" * 5000)])
        (result,) = [one for one in team.bus.published if one.topic == "workflow-results"]
        assert await handle(team.runtime, result) is Outcome.ACK
    data = hook.calls[0].told["data"]
    assert (data["status"], data["output"], data["output_omitted"]) == ("SUCCESS", None, True)


async def test_a_sweeper_that_dies_before_it_tells_of_an_end_leaves_nobody_waiting(
    database: str, tmp_path: Path, hook: Receiver
) -> None:
    bus = MemoryBus(SystemClock())
    async with live(database, tmp_path, bus=bus, WEBHOOK_SECRET=KEY) as team:
        await join(team.runtime, ["webhook"])
        small = definition("- {id: draft, agent: writer, input: {}}")
        await team.runtime.dispatcher("intake").apply([start(small, callback_url=hook.url, budget=Budget(deadline_seconds=10))])
        await team.clock.advance(10)
        assert [one["type"] for one in await team.store.advance([{"type": "tick"}])] == ["finished"]  # and nobody carries it out
        await team.clock.advance(60)
        for _ in range(2):
            await team.runtime.dispatcher("sweeper").apply([{"type": "tick"}])
        await bus.idle()
    (call,) = hook.calls
    assert (call.told["data"]["status"], call.told["data"]["error"]["type"]) == ("FAILED", "BudgetExceeded")


async def test_an_end_that_was_told_is_not_told_again_a_minute_later(database: str, tmp_path: Path, hook: Receiver) -> None:
    bus = MemoryBus(SystemClock())
    async with live(database, tmp_path, bus=bus, WEBHOOK_SECRET=KEY) as team:
        await join(team.runtime, ["webhook"])
        small = definition("- {id: draft, agent: writer, input: {}}")
        await team.runtime.dispatcher("gateway").apply([start(small, callback_url=hook.url)])
        await team.runtime.dispatcher("orchestrator").apply([completed("draft", output=1)])
        await bus.idle()
        results = bus.published["workflow-results"]
        await team.clock.advance(60)
        await team.runtime.dispatcher("sweeper").apply([{"type": "tick"}])
        await bus.idle()
        assert bus.published["workflow-results"] == results + 1
    assert len(hook.calls) == 1


async def test_every_ending_is_told(database: str, tmp_path: Path, hook: Receiver) -> None:
    bus = MemoryBus(SystemClock())
    async with live(database, tmp_path, bus=bus, WEBHOOK_SECRET=KEY) as team:
        await join(team.runtime, ["webhook"])
        small = definition("- {id: draft, agent: writer, input: {}}")
        door = team.runtime.dispatcher("orchestrator")
        about = {"step": "draft", "attempt": 1, "permanent": True, "error": {"type": "InputError", "message": "no brief"}}
        ids = [f"{WORKFLOW[:-1]}{number}" for number in range(3)]
        for workflow in ids:
            await door.apply([start(small, workflow=workflow, callback_url=hook.url)])
        await door.apply([completed("draft", workflow=ids[0], output=1)])
        await door.apply([{"type": "step.failed", "workflow": ids[1], **about}])
        await door.apply([{"type": "workflow.cancelled", "workflow": ids[2], "reason": "enough"}])
        await bus.idle()
    told = {call.told["data"]["id"]: call.told["data"] for call in hook.calls}
    assert [told[one]["status"] for one in ids] == ["SUCCESS", "FAILED", "CANCELLED"]
    assert told[ids[1]]["error"] == {"type": "InputError", "message": "no brief"}
    assert len(hook.calls) == 3


async def test_the_receiver_that_the_readme_shows_believes_the_platform_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = [block.partition("```")[0] for block in text.split("```python\n") if "standardwebhooks" in block.partition("```")[0]]
    on = opened(webhook_secret=None, agent_team_home=tmp_path / ".agent-team")
    assert on.webhook_secret
    monkeypatch.chdir(tmp_path)
    shown: dict[str, Any] = {}
    exec(compile(code, "receiver.py", "exec"), shown)
    server = uvicorn.Server(uvicorn.Config(shown["app"], port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/hook"
    accepted, refused = sent("accepted"), sent("refused")
    assert await handle(on, message(ended(url))) is Outcome.ACK
    assert await handle(opened(), message(ended(url))) is Outcome.ACK
    assert (sent("accepted"), sent("refused")) == (accepted + 1, refused + 1)
    assert capsys.readouterr().out.startswith(f"{WORKFLOW}/finished SUCCESS {{")
    server.should_exit = True
    await serving
