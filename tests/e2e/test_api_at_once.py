"""The API under many clients at once, over real HTTP: 200 event streams, and one key from 50 clients."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx
import orjson
import psutil

from tests.support.reports import brief, database_home
from tests.support.serving import Served, serving

WORKFLOWS = 50
STREAMS_OF_EACH = 4
MOST_BYTES = 400 * 2**20


async def events(
    client: httpx.AsyncClient, workflow: str, *, last: int | None
) -> AsyncGenerator[tuple[str, int | None, Any], None]:
    """The events of one connection: name, id and data."""
    headers = {} if last is None else {"last-event-id": str(last)}
    async with client.stream("GET", f"/v1/workflows/{workflow}/events", headers=headers) as answer:
        assert answer.status_code == 200
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "event" in fields:
                yield fields["event"], int(fields["id"]) if "id" in fields else None, orjson.loads(fields["data"])
            fields = {}


async def follow(client: httpx.AsyncClient, workflow: str, *, leave_after: int) -> list[Any]:
    """The entries that a browser sees which loses its connection once, after `leave_after` of them."""
    seen: list[Any] = []
    for connection in range(2):
        last = seen[-1]["seq"] if seen else None
        stream = events(client, workflow, last=last)
        async for name, id, data in stream:
            if name == "end":
                return seen
            if id is not None:
                assert (name, id) == (data["type"], data["seq"])
                seen.append(data)
                if connection == 0 and len(seen) == leave_after:
                    break
        await stream.aclose()
    raise AssertionError("the stream ended without an end")


async def watch_memory(process: psutil.Process, peak: list[int]) -> None:
    while True:
        peak.append(process.memory_info().rss)
        await asyncio.sleep(0.1)


async def test_two_hundred_streams_see_every_event_once_and_in_order_across_a_reconnect() -> None:
    with database_home() as home:
        async with serving(home) as platform:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(base_url=platform.url, timeout=60, limits=limits) as client:
                peak: list[int] = []
                watching = asyncio.create_task(watch_memory(psutil.Process(platform.process.pid), peak))
                ids = [await platform.submit(brief(number), key=f"stream-{number}") for number in range(WORKFLOWS)]
                followed = [(id, number) for id in ids for number in range(STREAMS_OF_EACH)]
                async with asyncio.timeout(120):
                    seen = await asyncio.gather(*(follow(client, id, leave_after=3 + 4 * number) for id, number in followed))
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            whole = {id: (await platform.client.get(f"/v1/workflows/{id}/history")).json()["items"] for id in ids}
    assert len(seen) == WORKFLOWS * STREAMS_OF_EACH
    for (id, _), entries in zip(followed, seen, strict=True):
        assert entries == whole[id]
        assert [entry["seq"] for entry in entries] == list(range(1, len(entries) + 1))
        assert entries[-1]["type"] == "workflow.succeeded"
    assert max(peak) < MOST_BYTES


async def send_at_once(platform: Served, bodies: list[dict[str, Any]], *, key: str) -> list[httpx.Response]:
    """Each body from a client with a connection of its own, all at the same moment."""
    clients = [httpx.AsyncClient(base_url=platform.url, timeout=30) for _ in bodies]
    try:
        await asyncio.gather(*(client.get("/health") for client in clients))  # connected
        headers = {"idempotency-key": key}
        posts = (client.post("/v1/workflows", json=body, headers=headers) for client, body in zip(clients, bodies, strict=True))
        return await asyncio.gather(*posts)
    finally:
        await asyncio.gather(*(client.aclose() for client in clients))


async def test_one_key_from_fifty_clients_at_once_starts_one_workflow_and_another_body_is_refused() -> None:
    body = {"workflow": "report", "input": {"brief": brief(0)}}
    other = {"workflow": "report", "input": {"brief": brief(1)}}
    with database_home() as home:
        async with serving(home) as platform:
            answers = await send_at_once(platform, [body] * 50, key="order-4711")
            mixed = await send_at_once(platform, [body, other] * 25, key="order-4712")
            late = await send_at_once(platform, [other], key="order-4711")
            started = (await platform.client.get("/v1/workflows")).json()["items"]
    assert [answer.status_code for answer in answers] == [202] * 50
    assert len({answer.json()["id"] for answer in answers}) == 1
    accepted = [answer for answer in mixed if answer.status_code == 202]
    refused = [answer for answer in mixed if answer.status_code == 422]
    assert (len(accepted), len(refused)) == (25, 25)  # whichever body came first
    assert len({answer.json()["id"] for answer in accepted}) == 1
    for answer in [*refused, *late]:
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:agent-team:problem:idempotency-key-reused"
    assert len(started) == 2
