"""`agent-team publish`: what it puts on the bus, and what the command that it prints makes gcloud put there."""

import asyncio
import base64
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner, Result

from shared.bus import Message, Outcome
from shared.cli import app as cli_app
from shared.cli.publish import gcloud_command
from shared.clock import SystemClock
from shared.config import Settings
from shared.errors import InputError
from shared.messages import WorkflowRequested, open_envelope
from shared.runtime import Runtime, load
from tests.support.doubles import RING, SECRET, RememberingBus, delivery
from tests.support.servers import free_port

BRIEF = "The ferry was late: 3 of 5 crew, 'sick'; $HOME, `x`, æøå 🚀, \\n, a,b=c:d"
PROJECT = "the-project"
_START_SECONDS = 60.0
Run = Callable[..., Result]


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> RememberingBus:
    """What AGENT_BUS_PROVIDER=redis opens here."""
    remembering = RememberingBus()
    monkeypatch.setattr("shared.runtime.wiring.open_bus", lambda *_arguments, **_more: remembering)
    return remembering


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run `agent-team publish` in this process; `bus` says on which bus."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COMM_HMAC_DEFAULT_SECRET", SECRET)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("GUARDS_BACKEND", "memory")
    level = logging.getLogger().level

    def invoke(*arguments: object, bus: str = "redis", **environment: str) -> Result:
        monkeypatch.setenv("AGENT_BUS_PROVIDER", bus)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        words = ["publish", *(str(argument) for argument in arguments)]
        return CliRunner().invoke(cli_app.app, words, prog_name="agent-team")

    yield invoke
    logging.getLogger().setLevel(level)


def taken(database: str, home: Path, messages: list[Message]) -> list[dict[str, Any]]:
    """The workflows that intake makes of the messages, each delivered twice."""

    async def work() -> list[dict[str, Any]]:
        given = Settings(app_env="test", comm_hmac_default_secret=SECRET, database_url=database, agent_team_home=home)
        live = Runtime(given, bus=RememberingBus())
        intake = load("intake").handlers(live)["workflow-requests"]
        for message in [*messages, *messages]:
            assert await intake(delivery(message, "intake")) is Outcome.ACK
        workflows = await live.store.recent()
        shown = [await live.store.get(workflow["id"]) for workflow in workflows]
        await live.close()
        return shown

    return asyncio.run(work())


def test_a_published_request_starts_the_workflow_that_was_told(
    publish: Run, bus: RememberingBus, database: str, tmp_path: Path
) -> None:
    brief = tmp_path / "brief.md"
    brief.write_text(BRIEF, encoding="utf-8")
    told = publish("report", "--input", brief)
    assert (told.exit_code, told.stderr) == (0, "")
    (workflow,) = taken(database, tmp_path, bus.published)
    assert told.stdout == f"{workflow['id']}\n"
    assert (workflow["workflow"], workflow["input"]) == ("report", {"brief": BRIEF})


def test_an_id_that_was_published_before_starts_nothing(publish: Run, bus: RememberingBus, database: str, tmp_path: Path) -> None:
    for _ in range(2):
        assert publish("report", "-p", "brief=x", "--id", "order-4711").exit_code == 0
    assert len(taken(database, tmp_path, bus.published)) == 1
    assert "order-4711" in bus.published[0].data.decode()


def test_a_callback_travels_with_the_request(publish: Run, bus: RememberingBus, database: str, tmp_path: Path) -> None:
    url = "https://example.org/hook"
    assert publish("report", "-p", "brief=x", "--callback-url", url).exit_code == 0
    (workflow,) = taken(database, tmp_path, bus.published)
    assert asyncio.run(callback_of(database, workflow["id"])) == url


async def callback_of(database: str, workflow: str) -> str | None:
    connection = await asyncpg.connect(database)
    try:
        url: str | None = await connection.fetchval("select callback_url from workflows where id = $1", workflow)
        return url
    finally:
        await connection.close()


def test_a_thousand_are_published_in_one_call(publish: Run, bus: RememberingBus) -> None:
    result = publish("report", "-p", "brief=x", "--id", "load", "--count", 1000, "--json")
    requests = json.loads(result.stdout)["requests"]
    assert bus.batches == [1000]
    assert [requests[0]["id"], requests[-1]["id"]] == ["load-1", "load-1000"]
    assert len({request["workflow"] for request in requests}) == 1000


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("reprot",), "did you mean 'report'?"),
        (("report",), "needs 'brief'"),
        (("report", "-p", "brief=x", "--callback-url", "http://10.0.0.1/"), "callback_url: the address cannot be called"),
        (("report", "-p", "brief=x", "--callback-url", ""), "callback_url: the address cannot be called"),
        (("my.yaml",), "publish takes the name of a workflow"),
        (("report", "-p", "brief=x", "--id", "a\nb"), "id is not 1 to 1024 printable characters"),
        (("report", "-p", f"brief={'x' * 524_000}"), "over the 524288 of MAX_PAYLOAD_BYTES"),
    ],
)
def test_a_request_that_cannot_be_sent_is_refused_in_one_line(
    publish: Run, bus: RememberingBus, arguments: tuple[str, ...], part: str
) -> None:
    result = publish(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert part in result.stderr
    assert bus.published == []


def test_the_bus_of_another_process_is_not_to_be_had(publish: Run) -> None:
    result = publish("report", "-p", "brief=x", bus="memory")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "use agent-team submit, or --print" in result.stderr


def as_published(command: str) -> Message:
    """What gcloud makes of a command; https://cloud.google.com/sdk/gcloud/reference/topic/escaping."""
    name, *words = shlex.split(command)
    assert (name, words[:3]) == ("gcloud", ["pubsub", "topics", "publish"])
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--m") or word.startswith("--a"))
    _, delimiter, attributes = options["attribute"].split("^", 2)
    pairs = dict(pair.split("=", 1) for pair in attributes.split(delimiter))
    return Message(words[3], options["message"].encode(), pairs)


def test_the_printed_command_holds_the_signed_message_and_publishes_nothing(
    publish: Run, bus: RememberingBus, database: str, tmp_path: Path
) -> None:
    result = publish("report", "-p", f"brief={BRIEF}", "--print", "--count", 2, bus="memory", GCP_PROJECT_ID=PROJECT)
    assert (result.exit_code, result.stderr, bus.published) == (0, "", [])
    commands = result.stdout.splitlines()
    assert all(f"--project {PROJECT}" in command for command in commands)
    workflows = taken(database, tmp_path, [as_published(command) for command in commands])
    assert [workflow["input"] for workflow in workflows] == [{"brief": BRIEF}] * 2


def test_a_message_that_no_command_can_hold_is_not_printed(publish: Run) -> None:
    result = publish("report", "-p", f"brief={'x' * 140_000}", "--print", bus="memory")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "publish it without --print" in result.stderr
    with pytest.raises(InputError):
        gcloud_command(Message("t", b"x" * 131_072), project=None)
    assert gcloud_command(Message("t", b"x" * 131_000), project=None).startswith("gcloud pubsub topics publish t --message=x")


@contextmanager
def emulator() -> Iterator[str]:
    """The official Pub/Sub emulator with the topic and a subscription called `taken`; its address."""
    root = subprocess.run(["gcloud", "info", "--format=value(installation.sdk_root)"], capture_output=True, text=True, check=True)
    script = Path(root.stdout.strip()) / "platform/pubsub-emulator/bin/cloud-pubsub-emulator"
    if not script.exists():
        _lacks("the Pub/Sub emulator: gcloud components install pubsub-emulator")
    port = free_port()
    options = {"JAVA_OPTS": "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"}
    process = subprocess.Popen(
        [str(script), "--host=127.0.0.1", f"--port={port}"],
        env={**os.environ, **options},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}/v1/projects/{PROJECT}"
    try:
        _until_it_answers(f"{url}/topics/workflow-requests")
        ask(f"{url}/subscriptions/taken", {"topic": f"projects/{PROJECT}/topics/workflow-requests"}, method="PUT")
        yield f"http://127.0.0.1:{port}/"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # it is a script that starts the server
        process.wait()


def ask(url: str, body: dict[str, Any], *, method: str = "POST") -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        read: dict[str, Any] = json.load(answer)
    return read


def _until_it_answers(topic: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while True:
        try:
            ask(topic, {}, method="PUT")
        except OSError:
            assert time.monotonic() < end, "the emulator does not start"
            time.sleep(0.05)
        else:
            return


def _lacks(what: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(f"this test needs {what}")
    pytest.skip(f"this test needs {what}")


def test_pasting_the_printed_command_publishes_exactly_the_signed_message(publish: Run, tmp_path: Path) -> None:
    if shutil.which("gcloud") is None or shutil.which("java") is None:
        _lacks("gcloud and java")
    command = publish("report", "-p", f"brief={BRIEF}", "--print", bus="memory", GCP_PROJECT_ID=PROJECT).stdout
    with emulator() as url:
        (tmp_path / "token").write_text("no token", encoding="ascii")
        environment = {
            **{"CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": url, "CLOUDSDK_CONFIG": str(tmp_path / "gcloud")},
            **{"CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(tmp_path / "token"), "CLOUDSDK_CORE_DISABLE_PROMPTS": "1"},
        }
        subprocess.run(["sh", "-c", command], env={**os.environ, **environment}, check=True, capture_output=True, timeout=60)
        pulled = ask(f"{url}v1/projects/{PROJECT}/subscriptions/taken:pull", {"maxMessages": 5})["receivedMessages"]
    (message,) = (one["message"] for one in pulled)
    expected = as_published(command)
    assert (base64.b64decode(message["data"]), message["attributes"]) == (expected.data, expected.attributes)
    now = SystemClock().now()
    envelope = open_envelope("workflow-requests", expected.data, message["attributes"], ring=RING, now=now, max_bytes=524_288)
    assert envelope.data == WorkflowRequested(workflow="report", input={"brief": BRIEF})
