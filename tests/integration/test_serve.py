"""`agent-team serve`: the platform behind one address, pushes and all, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from shared.bus import Message
from shared.cli import app as cli_app
from shared.cli.serve import _host
from shared.config import Settings
from shared.errors import ConfigurationError
from shared.ids import workflow_id
from shared.local import Platform, open_platform
from shared.local.server import bind, create_app
from shared.messages import WorkflowRequested
from tests.support.doubles import SECRET
from tests.support.pushes import raw_push

ROOT = Path(__file__).parents[2]
BRIEF = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails?"


@pytest.fixture
async def platform(database: str, tmp_path: Path) -> AsyncIterator[Platform]:
    given = {"database_url": database, "agent_team_home": tmp_path, "comm_hmac_default_secret": SECRET}
    async with open_platform(Settings.model_validate(given)) as opened:
        yield opened


@pytest.fixture
async def client(platform: Platform) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(platform.runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://local") as opened:
        yield opened


async def test_a_signed_push_to_a_function_starts_a_workflow(platform: Platform, client: httpx.AsyncClient) -> None:
    live = platform.runtime
    wanted = WorkflowRequested(workflow="report", input={"brief": BRIEF})
    message = live.sender("somebody").request(wanted, id=workflow_id(live.clock.now()))

    first = await client.post("/functions/intake", json=raw_push(message, "workflow-requests.intake"))
    copy = await client.post("/functions/intake", json=raw_push(message, "workflow-requests.intake"))
    (workflow,) = await live.store.recent()
    async for _ in platform.follow(workflow["id"]):
        pass

    assert (first.status_code, copy.status_code) == (204, 204)
    assert (await live.store.get(workflow["id"]))["status"] == "SUCCESS"


async def test_an_altered_push_changes_nothing(platform: Platform, client: httpx.AsyncClient) -> None:
    live = platform.runtime
    wanted = WorkflowRequested(workflow="report", input={"brief": BRIEF})
    message = live.sender("somebody").request(wanted, id=workflow_id(live.clock.now()))
    altered = Message(message.topic, message.data.replace(b"Monday", b"Friday"), message.attributes)

    answer = await client.post("/functions/intake", json=raw_push(altered, "workflow-requests.intake"))

    assert answer.status_code == 204
    assert await live.store.recent() == []


async def test_the_scheduler_s_call_reaches_the_sweeper(client: httpx.AsyncClient) -> None:
    assert (await client.post("/functions/sweeper")).status_code == 204


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/functions/intake"), ("POST", "/functions/a/b"), ("POST", "/functions/"), ("GET", "/nothing%0A")]
)
async def test_whatever_else_is_not_there_is_a_problem_too(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_function_that_is_not_there_is_a_problem_that_names_the_others(client: httpx.AsyncClient) -> None:
    answer = await client.post("/functions/sweper")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "'sweper'" in answer.json()["detail"]
    assert "sweeper" in answer.json()["detail"]


async def test_everything_else_is_the_gateway_s(platform: Platform, client: httpx.AsyncClient) -> None:
    accepted = await client.post("/v1/workflows", json={"workflow": "report", "input": {"brief": BRIEF}})
    workflow = accepted.json()["id"]
    async for _ in platform.follow(workflow):
        pass

    assert accepted.status_code == 202
    assert (await client.get(f"/v1/workflows/{workflow}")).json()["status"] == "SUCCESS"
    assert (await client.get("/health")).json()["status"] == "ok"
    assert (await client.get("/")).status_code == 200


async def test_without_a_gateway_the_functions_still_answer(platform: Platform) -> None:
    live = platform.runtime
    del live.functions["gateway"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=create_app(live)), base_url="http://local") as client:
        assert (await client.post("/functions/sweeper")).status_code == 204
        assert (await client.get("/")).status_code == 404


def test_a_free_port_is_found_and_a_taken_one_is_refused_with_another_to_take() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"port {port} on 127.0.0.1 is in use; .* --port "):
            bind("127.0.0.1", port)


def test_what_is_written_to_a_connection_is_sent_at_once() -> None:
    with bind("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is no address of this machine; use --host 127\.0\.0\.1"):
        bind(host, 0)


def test_a_port_that_needs_more_rights_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", denied)
    with pytest.raises(ConfigurationError, match="port 80 needs more rights"):
        bind("127.0.0.1", 80)


def test_only_an_address_that_somebody_gave_opens_the_machine() -> None:
    assert _host(Settings(), None) == "127.0.0.1"
    assert _host(Settings(host="0.0.0.0"), None) == "0.0.0.0"
    assert _host(Settings(host="0.0.0.0"), "::1") == "::1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("host", "shown", "reach"), [("127.0.0.1", "127.0.0.1", "this machine"), ("0.0.0.0", "127.0.0.1", "every network")]
)
def test_it_says_where_it_is_and_ends_in_order(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, shown: str, reach: str
) -> None:
    port = free_port()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path / "home"))
    answers: list[int] = []

    ended = threading.Event()

    def ask_and_end() -> None:
        try:
            wait_until_ready(port)
            answers.append(httpx.get(f"http://127.0.0.1:{port}/docs", timeout=5).status_code)
        finally:
            if not ended.is_set():
                os.kill(os.getpid(), signal.SIGINT)

    asking = threading.Thread(target=ask_and_end)
    asking.start()
    result = CliRunner().invoke(cli_app.app, ["serve", "--host", host, "--port", str(port)])
    ended.set()
    asking.join()

    assert (result.exit_code, answers) == (0, [200]), result.output
    url = f"http://{shown}:{port}"
    for part in (f"ready on {url}", f"{url}/docs", f"{url}/functions/NAME", "offline, extractive", str(tmp_path / "home"), reach):
        assert part in result.stdout
    assert result.stdout.splitlines()[-1].startswith("agent-team has ended")


def wait_until_ready(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except httpx.TransportError:
            assert time.monotonic() < until, "the platform does not answer"
            time.sleep(0.02)


class Served:
    """A platform in a process of its own, on the embedded database."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.home = home
        self.process = self.start("serve", "--port", self.port)

    def start(self, *arguments: object) -> "subprocess.Popen[str]":
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "AGENT_TEAM_HOME": str(self.home)}
        command = [sys.executable, "-m", "shared.cli", *map(str, arguments)]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, cwd=self.home.parent, text=True, stdout=pipe, stderr=pipe)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    running = Served(tmp_path / "home")
    try:
        yield running
    finally:
        running.process.kill()
        running.process.communicate()


def test_the_embedded_platform_serves_refuses_a_second_and_ends_within_seconds(served: Served) -> None:
    wait_until_ready(served.port)
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=10) as client:
        accepted = client.post("/v1/workflows", json={"workflow": "report", "input": {"brief": BRIEF}})
        on_its_port = served.start("serve", "--port", served.port)
        in_its_folder = served.start("run", "report", "-p", "brief=x")
        refusals = [on_its_port.communicate(timeout=30), in_its_folder.communicate(timeout=30)]
    with socket.create_connection(("127.0.0.1", served.port)) as unfinished:
        unfinished.sendall(b"POST /functions/writer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n")
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        stdout, stderr = served.process.communicate(timeout=30)
        took = time.monotonic() - began

    assert accepted.status_code == 202
    assert [on_its_port.returncode, in_its_folder.returncode] == [2, 2]
    assert refusals[0] == (
        "",
        f"error: port {served.port} on 127.0.0.1 is in use; end what uses it, or choose another: --port {served.port + 1}\n",
    )
    assert refusals[1][1].startswith(f"error: another platform (process {served.process.pid}) uses ")
    assert (served.process.returncode, stderr) == (0, "")
    assert "ready on" in stdout
    assert took < 10
    assert not (served.home / "postgres" / "postmaster.pid").exists()
    assert '"msg":"Finished server process' in (served.home / "agent-team.log").read_text()
