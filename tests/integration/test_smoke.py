"""`agent-team smoke`: what was deployed is asked, and what is wrong with it is told."""

import asyncio
import os
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from functions_framework.aio import create_asgi_app
from typer.testing import CliRunner

from shared.cli.app import app
from shared.cli.revisions import Revisions, token_of_this_job
from shared.errors import ConfigurationError
from shared.runtime import process
from shared.runtime.spec import load_functions
from tests.support.doubles import SECRET
from tests.support.serving import serving

ROOT = Path(__file__).parents[2]
REVISIONS = Revisions("c-abc1234", "123456789", "us-central1")


async def token(audience: str) -> str:
    return f"token for {audience}"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that was told little, and has no runtime yet."""
    monkeypatch.setenv("COMM_HMAC_DEFAULT_SECRET", SECRET)
    monkeypatch.setenv("AGENT_TEAM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setattr(process, "_runtime", None)
    monkeypatch.setattr(process, "configure_logging", lambda *_args, **_options: None)
    monkeypatch.setattr(process, "redact_values", lambda *_values: None)


class Deployed(httpx.AsyncBaseTransport):
    """The real functions, each at the address of its tagged revision; `wrong` are other functions at an address, or none."""

    def __init__(self, wrong: dict[str, str | None]) -> None:
        self.audiences: set[str] = set()
        self._targets: dict[str, str | None] = {**dict(zip(load_functions(), load_functions(), strict=True)), **wrong}
        self._one_at_a_time = asyncio.Lock()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        tag, _, rest = request.url.host.partition("---")
        service = rest.removesuffix("-123456789.us-central1.run.app")
        assert (tag, request.headers["authorization"]) == ("c-abc1234", f"Bearer token for https://{rest}")
        self.audiences.add(service)
        target = self._targets[service.replace("-", "_")]
        if target is None:
            raise httpx.ConnectError("nobody there")
        # A process has one runtime, for the function that it serves: here each is loaded anew, as a process of its own.
        async with self._one_at_a_time:
            sys.modules.pop(f"functions.{target}.main", None)
            process._runtime = None
            try:
                served = create_asgi_app(target, str(ROOT / "main.py"))  # type: ignore[no-untyped-call]
                return await httpx.ASGITransport(app=served).handle_async_request(request)
            finally:
                sys.modules.pop(f"functions.{target}.main", None)
                process._runtime = None


@asynccontextmanager
async def deployed(**wrong: str | None) -> AsyncIterator[tuple[Deployed, dict[str, str | None]]]:
    transport = Deployed(wrong)
    async with httpx.AsyncClient(transport=transport) as http:
        yield transport, {name: problem async for name, problem in REVISIONS.ask(http, token)}


async def test_every_function_answers_as_itself_under_its_tag() -> None:
    async with deployed() as (transport, answers):
        assert answers == dict.fromkeys(load_functions())
        assert transport.audiences == {name.replace("_", "-") for name in load_functions()}


async def test_a_revision_that_is_another_function_or_not_there_is_told_of() -> None:
    async with deployed(writer="critic", judge=None) as (_, answers):
        told = {name: problem for name, problem in answers.items() if problem is not None}
    assert told == {
        "writer": "does not answer as itself; is FUNCTION_TARGET right?",
        "judge": "no answer (ConnectError)",
    }


async def test_a_revision_without_its_settings_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE_ENV", "production")
    monkeypatch.delenv("COMM_HMAC_DEFAULT_SECRET")
    async with deployed() as (_, answers):
        assert answers["writer"] == "answers with 503; its log says why"


async def test_tokens_come_from_the_metadata_server(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Metadata(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Metadata-Flavor", "Google")
            is_token = "/identity" in self.path
            self.send_header("Content-Type", "text/html" if is_token else "application/json")
            self.end_headers()
            # A token of no account: {"alg":"none"}.{"exp":4102444800}.
            token, account = b"eyJhbGciOiJub25lIn0.eyJleHAiOjQxMDI0NDQ4MDB9.c2ln", b'{"email": "smoke@p", "scopes": []}'
            self.wfile.write(token if is_token else account)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    host = f"127.0.0.1:{server.server_port}"
    for name in ("GCE_METADATA_HOST", "GCE_METADATA_IP"):
        monkeypatch.setenv(name, host)
    # The library reads them when it is imported, which another test may have had it do.
    monkeypatch.setattr("google.auth.compute_engine._metadata._METADATA_ROOT", f"http://{host}/computeMetadata/v1/", raising=False)
    monkeypatch.setattr("google.auth.compute_engine._metadata._METADATA_IP_ROOT", f"http://{host}", raising=False)
    try:
        assert (await token_of_this_job("https://writer.example")).startswith("eyJ")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert any("audience=https" in path for path in asked)


async def test_where_there_is_no_account_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "nothing.json"))
    with pytest.raises(ConfigurationError, match="run it as a job inside the project"):
        await token_of_this_job("https://writer.example")


async def smoke(url: str, folder: Path) -> tuple[int | None, list[str]]:
    """`agent-team smoke` as a process: its exit code and what it said."""
    environment = {**os.environ, "AGENT_TEAM_URL": url, "AGENT_TEAM_HOME": str(folder / "elsewhere"), "PYTHONPATH": str(ROOT)}
    command = (sys.executable, "-m", "shared.cli", "smoke")
    started = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE)
    out, _ = await asyncio.wait_for(started.communicate(), 120)
    return started.returncode, out.decode().splitlines()


async def test_a_running_platform_is_asked_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    async with serving(tmp_path) as platform:
        code, lines = await smoke(platform.url, tmp_path)
        assert [line.partition(":")[0] for line in lines] == ["ok  health", "ok  readiness", "ok  one task"]
        assert code == 0
        await platform.end()
        code, lines = await smoke(platform.url, tmp_path)
    assert code == 1
    assert [line.partition(":")[0] for line in lines] == ["BAD health", "BAD readiness", "BAD one task"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--env", "prod"], "there is no environment 'prod'; there are production, staging"),
        (["--revisions", "c-1"], "--revisions needs --project-number"),
    ],
)
def test_what_is_missing_is_told_in_one_line(arguments: list[str], reason: str) -> None:
    done = CliRunner().invoke(app, ["smoke", *arguments])
    assert done.exit_code == 2
    assert reason in done.stderr
