"""Clients that send too much, or too slowly, to a real server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from functions.gateway import edge
from functions.gateway.api import create_app
from shared.config import Settings
from shared.local import server
from shared.local.server import bind, serve
from shared.runtime import Runtime
from tests.support.doubles import SECRET, RememberingBus
from tests.support.serving import Served, serving

MEGABYTE = 1024 * 1024
CHUNK = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
POST = b"POST /v1/workflows HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"


@asynccontextmanager
async def listening(live: Runtime) -> AsyncIterator[int]:
    """The gateway's port, on a real server."""
    started = asyncio.Event()
    with bind("127.0.0.1", 0) as bound:
        serving_it = asyncio.create_task(serve(create_app(live), bound, on_started=started.set))
        try:
            async with asyncio.timeout(10):
                await started.wait()
            yield bound.getsockname()[1]
        finally:
            serving_it.cancel()
            await asyncio.gather(serving_it, return_exceptions=True)


@pytest.fixture
async def live(database: str) -> AsyncIterator[Runtime]:
    runtime = Runtime(Settings(app_env="test", comm_hmac_default_secret=SECRET, database_url=database), bus=RememberingBus())
    yield runtime
    await runtime.close()


def upload(port: int, megabytes: int) -> tuple[int, bytes]:
    """Send a body in chunks for as long as they are taken. The bytes that were, and what was answered."""
    sent, answer = 0, b""
    # A socket that blocks: what has arrived can be read after a write has failed.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(POST + b"transfer-encoding: chunked\r\n\r\n")
            for _ in range(megabytes * 16):
                connection.sendall(CHUNK)
                sent += len(CHUNK)
            connection.sendall(b"0\r\n\r\n")
        except ConnectionError:
            pass
        try:
            while part := connection.recv(65_536):
                answer += part
        except ConnectionError:
            pass
    return sent, answer


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as running:
        yield running


async def test_a_chunked_upload_of_100_mb_is_cut_off_and_takes_no_memory(served: Served) -> None:
    port = int(served.url.rpartition(":")[2])
    process = psutil.Process(served.process.pid)
    for _ in range(5):  # what is allocated once is not what is looked for
        await asyncio.to_thread(upload, port, 2)
    before = process.memory_info().rss
    sent, answer = await asyncio.to_thread(upload, port, 100)
    grown = process.memory_info().rss - before
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer
    assert sent < 20 * MEGABYTE, "what the sockets hold, and no more"
    assert grown < 2 * MEGABYTE, f"{grown:,} bytes"
    assert (await served.client.get("/health")).status_code == 200


async def test_an_announced_upload_is_refused_at_once(live: Runtime) -> None:
    async with listening(live) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"content-length: 104857600\r\n\r\n")
        async with asyncio.timeout(10):
            answer = await reader.read()  # to its end: the connection is closed
        writer.close()
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_many_slow_clients_do_not_stand_in_the_way_and_are_cut_off(live: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge.BodyLimit.__init__, "__kwdefaults__", {"seconds": 3.0})

    async def all_that_comes(reader: asyncio.StreamReader) -> bytes:
        answer = b""
        with suppress(ConnectionError):  # what it was sent after its last word, the server takes amiss
            while part := await reader.read(65_536):
                answer += part
        return answer

    async def dawdle(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"content-length: 1000\r\n\r\n")
        answering = asyncio.create_task(all_that_comes(reader))
        try:
            while not answering.done():
                writer.write(b"x")
                await asyncio.wait({answering}, timeout=1)
        except ConnectionError:
            pass
        finally:
            writer.close()
        return await answering

    async with listening(live) as port, asyncio.timeout(30):
        slow = [asyncio.create_task(dawdle(port)) for _ in range(50)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            meanwhile = 0
            while not all(one.done() for one in slow):
                assert (await client.get("/health")).status_code == 200
                meanwhile += not any(one.done() for one in slow)
                await asyncio.sleep(0.05)
        answers = [await one for one in slow]
    assert meanwhile > 0
    assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 408 Request Timeout"] * 50
    assert all(b"has not arrived within 3 s" in answer for answer in answers)


async def test_a_client_that_never_says_what_it_wants_is_cut_off(live: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.3)

    async def ended(port: int, *sent: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        answers = b""
        for part in sent:
            writer.write(part)
            if part.endswith(b"\r\n\r\n"):
                answers += await reader.readuntil(b"}")
        answers += await reader.read()
        writer.close()
        return answers

    whole = b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n"
    async with listening(live) as port, asyncio.timeout(4):  # below the 5 s that an idle connection is kept
        assert await ended(port) == b""
        assert await ended(port, b"GET /health HTT") == b""
        assert (await ended(port, whole, b"GET /hea")).count(b"200 OK") == 1
        assert (await ended(port, whole, whole, b"G")).count(b"200 OK") == 2


async def test_a_connection_that_is_at_work_is_not_cut_off(live: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.2)
    async with listening(live) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        made = await client.post("/v1/workflows", json={"workflow": "report", "input": {"brief": "The ferry was late."}})
        async with client.stream("GET", f"/v1/workflows/{made.json()['id']}/events") as stream:
            lines = stream.aiter_lines()
            assert await anext(lines) == "event: workflow.requested"
            await asyncio.sleep(0.6)  # three times as long as a head may take
            await client.post(f"/v1/workflows/{made.json()['id']}/cancel", json={})
            assert "event: end" in [line async for line in lines]
