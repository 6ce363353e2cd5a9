"""The event stream through a real server: every entry once and in order, whatever breaks off, and what steps are writing."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from functions.gateway import events as routes
from functions.gateway import watching
from functions.gateway.api import create_app
from functions.gateway.models import HistoryEntry, Problem
from shared.ai import Reply, Request
from shared.ai.offline import OfflineModel
from shared.local import Platform
from shared.local.server import bind, serve
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from shared.state import WorkflowStore
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, failed, live, start, until
from tests.support.reports import brief, platform

REPORT = WorkflowRequested(workflow="report", input={"brief": brief(0)})
UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
PAIR = definition("- {id: a, agent: writer, input: {}}\n- {id: b, agent: critic, needs: [a], input: {}}")


@dataclass(frozen=True)
class Event:
    """One event as a browser would see it; a comment has no name."""

    name: str
    id: int | None
    data: Any


class Stream:
    """An open stream."""

    def __init__(self, answer: httpx.Response) -> None:
        self._lines = answer.aiter_lines()

    async def next(self) -> Event | None:
        """The next event, within half a minute; None at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(30):
            async for line in self._lines:
                if not line:
                    data = orjson.loads(fields["data"]) if "data" in fields else None
                    return Event(fields.get("event", ""), int(fields["id"]) if "id" in fields else None, data)
                name, _, value = line.partition(":")
                assert name not in fields, "an event has each field once"
                fields[name] = value.removeprefix(" ")
        return None

    async def soon(self) -> Event:
        """The next event; fails at the end of the stream."""
        event = await self.next()
        assert event is not None
        return event

    async def rest(self) -> list[Event]:
        """All that is still to come."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@dataclass
class Gateway:
    """A gateway behind a port of this machine."""

    app: FastAPI
    client: httpx.AsyncClient

    @asynccontextmanager
    async def events(self, workflow: str, *, last: str | None = None, after: int | None = None) -> AsyncIterator[Stream]:
        headers = {} if last is None else {"last-event-id": last}
        parameters = {} if after is None else {"after": str(after)}
        async with self.client.stream("GET", f"/v1/workflows/{workflow}/events", headers=headers, params=parameters) as answer:
            assert answer.status_code == 200, await answer.aread()
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            yield Stream(answer)

    async def history(self, workflow: str) -> list[dict[str, Any]]:
        answer = await self.client.get(f"/v1/workflows/{workflow}/history")
        items: list[dict[str, Any]] = answer.json()["items"]
        return items

    @property
    def watched(self) -> int:
        """How many workflows it looks at."""
        return len(self.app.state.watches)


@asynccontextmanager
async def serving(runtime: Runtime) -> AsyncIterator[Gateway]:
    app, started = create_app(runtime), asyncio.Event()
    listening = bind("127.0.0.1", 0)
    server = asyncio.create_task(serve(app, listening, on_started=started.set))
    try:
        await asyncio.wait_for(started.wait(), 30)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=30) as client:
            yield Gateway(app, client)
    finally:
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


@pytest.fixture
async def opened(database: str, tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(database, tmp_path, model=OfflineModel()) as running:
        yield running


def entries(found: list[Event]) -> list[dict[str, Any]]:
    """The history in a stream; each event says what its entry says."""
    for event in found:
        if event.id is not None:
            HistoryEntry.model_validate(event.data)
            assert (event.name, event.id) == (event.data["type"], event.data["seq"])
    return [event.data for event in found if event.id is not None]


async def test_every_entry_comes_once_and_in_order_and_then_the_end(opened: Platform) -> None:
    async with serving(opened.runtime) as gateway:
        workflow = await opened.submit(REPORT)
        async with gateway.events(workflow) as stream:
            found = await stream.rest()
        assert entries(found) == await gateway.history(workflow)
        assert [event.name for event in found][-2:] == ["workflow.succeeded", "end"]
        assert [event.name for event in found].count("end") == 1


async def test_a_stream_goes_on_where_another_broke_off(opened: Platform) -> None:
    async with serving(opened.runtime) as gateway:
        workflow = await opened.submit(REPORT)
        found: list[Event] = []
        while not found or found[-1].name != "end":
            async with gateway.events(workflow, last=str(found[-1].id) if found else None) as stream:
                for _ in range(4):
                    event = await stream.next()
                    if event is None:
                        break
                    if event.name != "progress":
                        found.append(event)
        assert entries(found) == await gateway.history(workflow)


async def test_a_finished_workflow_gives_what_was_not_delivered_and_the_end(opened: Platform) -> None:
    async with serving(opened.runtime) as gateway:
        workflow = await opened.submit(REPORT)
        async for _ in opened.follow(workflow):
            pass
        whole = await gateway.history(workflow)
        for last, after in ((None, None), ("5", None), (None, 5), ("5", 2), (str(len(whole)), None)):
            async with gateway.events(workflow, last=last, after=after) as stream:
                found = await stream.rest()
            known = int(last) if last is not None else 0 if after is None else after
            assert entries(found) == whole[known:]
            assert found[-1] == Event("end", None, {})
        assert gateway.watched == 0


@pytest.mark.parametrize("kept", [1, 3, 1000])
async def test_whoever_is_behind_reads_by_pages_and_misses_nothing(
    opened: Platform, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(watching, "_MOST_KEPT", kept)
    monkeypatch.setattr(routes, "_PAGE", 2)
    async with serving(opened.runtime) as gateway:
        workflow = await opened.submit(REPORT)

        async def follow(after: int) -> list[dict[str, Any]]:
            async with gateway.events(workflow, after=after) as stream:
                return entries(await stream.rest())

        found = await asyncio.gather(*(follow(after) for after in (0, 0, 3, 7)))
        whole = await gateway.history(workflow)
        assert found == [whole, whole, whole[3:], whole[7:]]


async def test_one_that_is_queued_tells_its_place_and_when_it_changes(database: str, tmp_path: Path) -> None:
    running, ahead, id = (WORKFLOW[:-1] + end for end in "ABC")
    async with live(database, tmp_path, MAX_CONCURRENT_PIPELINES="1") as team, serving(team.runtime) as gateway:
        await team.store.advance([start(PAIR, workflow=one) for one in (running, ahead, id)])
        async with gateway.events(id) as stream:
            assert (await stream.soon()).name == "workflow.requested"
            assert await stream.soon() == Event("queue", None, {"position": 2, "ahead": 1, "exact": True})
            await team.store.advance([{"type": "workflow.cancelled", "workflow": ahead}])
            await team.clock.advance(15)
            assert await stream.soon() == Event("queue", None, {"position": 1, "ahead": 0, "exact": True})


def counting(store: WorkflowStore, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """From which entry on the history was asked for, every time."""
    asked: list[int] = []
    inner: Callable[..., Awaitable[list[dict[str, Any]]]] = store.history

    async def history(workflow: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        asked.append(after)
        return await inner(workflow, after=after, limit=limit)

    monkeypatch.setattr(store, "history", history)
    return asked


async def test_many_streams_of_a_workflow_share_one_look_at_it(team: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = team.runtime.dispatcher("tests")
    await dispatcher.apply([start(PAIR)])
    async with serving(team.runtime) as gateway, AsyncExitStack() as open_streams:
        streams = [await open_streams.enter_async_context(gateway.events(WORKFLOW)) for _ in range(5)]
        whole = await gateway.history(WORKFLOW)
        for stream in streams:
            assert entries([await stream.soon() for _ in whole]) == whole
        asked = counting(team.store, monkeypatch)
        await dispatcher.apply([completed("a")])
        await team.clock.advance(0.25)
        assert [(await stream.soon()).name for stream in streams] == ["step.completed"] * 5
        for looks in (2, 3, 4):
            await until(lambda: team.clock.sleepers == 3)
            await team.clock.advance(0.25)
            await until(lambda looks=looks: len(asked) == looks)  # type: ignore[misc]
        assert gateway.watched == 1
        await dispatcher.apply([{"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}])
        await until(lambda: team.clock.sleepers == 3)
        await team.clock.advance(0.25)
        for stream in streams:
            assert (await stream.rest())[-1].name == "end"


async def test_a_stream_beats_every_fifteen_seconds(team: Live) -> None:
    await team.runtime.dispatcher("tests").apply([start(PAIR)])
    async with serving(team.runtime) as gateway, gateway.events(WORKFLOW, after=1000) as stream:
        await until(lambda: team.clock.sleepers == 3)
        for _ in range(3):
            await team.clock.advance(14.9)
            coming = asyncio.create_task(stream.next())
            await asyncio.sleep(0)
            assert not coming.done()
            await team.clock.advance(0.1)
            assert await coming == Event("", None, None)


async def test_who_asks_for_progress_asks_again_as_long_as_somebody_watches(team: Live) -> None:
    progress = team.runtime.progress
    await team.runtime.dispatcher("tests").apply([start(PAIR)])
    assert not await progress.watched(WORKFLOW)
    async with serving(team.runtime) as gateway:
        async with gateway.events(WORKFLOW):
            await until(lambda: team.clock.sleepers == 3)
            for _ in range(10):
                await team.clock.advance(10)
                assert await progress.watched(WORKFLOW)
        await until(lambda: gateway.watched == 0)
        await team.clock.advance(31)
        assert not await progress.watched(WORKFLOW)


async def test_whoever_goes_away_frees_everything_and_leaves_the_others_alone(team: Live) -> None:
    def looking() -> list[Any]:
        return [task for task in asyncio.all_tasks() if task.get_name() == "watch"]

    await team.runtime.dispatcher("tests").apply([start(PAIR)])
    async with serving(team.runtime) as gateway:
        async with gateway.events(WORKFLOW, after=1000) as stays:
            async with gateway.events(WORKFLOW):
                await until(lambda: len(looking()) == 3)
            await until(lambda: team.clock.sleepers == 3)
            await team.runtime.dispatcher("tests").apply([{"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}])
            await team.clock.advance(0.25)
            assert [event.name for event in await stays.rest()] == ["end"]
        await until(lambda: gateway.watched == 0 and not looking())


async def test_a_resumed_workflow_is_looked_at_anew_beside_those_who_still_read_its_end(team: Live) -> None:
    dispatcher, watches = team.runtime.dispatcher("tests"), watching.Watches(team.runtime)
    await dispatcher.apply([start(PAIR)])
    async with watches.watching(WORKFLOW) as first:
        await dispatcher.apply([failed("a", permanent=True, error={"type": "DeadLettered", "message": "no delivery succeeded"})])
        await team.clock.advance(0.25)
        await until(lambda: first.ended)
        await dispatcher.apply([{"type": "step.redriven", "workflow": WORKFLOW, "step": "a", "attempt": 1}])
        async with watches.watching(WORKFLOW) as second, watches.watching(WORKFLOW) as third:
            assert second is third
            assert not second.ended
    assert len(watches) == 0


async def test_an_end_that_was_undone_before_anybody_saw_it_is_none(team: Live) -> None:
    dispatcher, watches = team.runtime.dispatcher("tests"), watching.Watches(team.runtime)
    await dispatcher.apply([start(PAIR)])
    async with watches.watching(WORKFLOW) as watch:
        await dispatcher.apply([failed("a", permanent=True, error={"type": "DeadLettered", "message": "no delivery succeeded"})])
        await dispatcher.apply([{"type": "step.redriven", "workflow": WORKFLOW, "step": "a", "attempt": 1}])
        whole = await team.store.history(WORKFLOW)
        await team.clock.advance(0.25)
        await until(lambda: watch.seq == whole[-1]["seq"])
        assert not watch.ended
        await team.runtime.progress.write(WORKFLOW, "a", 2, "another draft")
        await until(lambda: team.clock.sleepers == 3)
        await team.clock.advance(0.25)
        await until(lambda: "a" in watch.progress)


async def test_what_a_step_wrote_is_gone_with_its_attempt(team: Live) -> None:
    dispatcher, watches = team.runtime.dispatcher("tests"), watching.Watches(team.runtime)
    await dispatcher.apply([start(PAIR)])
    await team.runtime.progress.write(WORKFLOW, "a", 1, "the draft")
    async with watches.watching(WORKFLOW) as watch:
        await team.clock.advance(0.25)
        await until(lambda: "a" in watch.progress)
        await dispatcher.apply([failed("a", retry_after_seconds=60)])
        await until(lambda: team.clock.sleepers == 3)
        await team.clock.advance(0.25)
        await until(lambda: not watch.progress)


class Typist:
    """Answers like the offline model, and writes ever longer texts while it does: a word every 10 ms, until there are enough."""

    def __init__(self) -> None:
        self._model = OfflineModel()
        self.streamed: list[bool] = []
        self.go = asyncio.Event()
        self.enough = asyncio.Event()

    async def generate(self, request: Request) -> Reply:
        self.streamed.append(request.on_text is not None)
        if request.on_text is None or len(self.streamed) > 2:
            await self.go.wait()
            return await self._model.generate(request)
        text = ""
        while not self.enough.is_set():
            text += "<b>word</b>\n\n"
            request.on_text(text)
            await asyncio.sleep(0.01)
        request.on_text(f"{text}<b>end</b>")
        await self.go.wait()
        return await self._model.generate(request)


async def test_what_a_step_is_writing_comes_at_most_five_times_a_second(database: str, tmp_path: Path) -> None:
    model = Typist()
    async with platform(database, tmp_path, model=model) as opened, serving(opened.runtime) as gateway:
        workflow = await opened.submit(REPORT)  # its planner begins while nobody watches
        await until(lambda: model.streamed == [False])
        async with gateway.events(workflow) as stream:
            while (await stream.soon()).name != "step.dispatched":
                pass
            model.go.set()
            while (event := await stream.soon()).name != "progress":
                pass
            model.go.clear()
            began, found = time.monotonic(), [event]
            while not found[-1].data["text"].endswith("<b>end</b>"):
                if (event := await stream.soon()).name == "progress":
                    found.append(event)
                if len(found) == 8:
                    model.enough.set()
            seconds = time.monotonic() - began
            model.go.set()
            after = await stream.rest()
        assert True in model.streamed
        assert len(found) <= 1 + 5 * seconds
        lengths = [one.data["length"] for one in found]
        assert lengths == sorted(set(lengths))
        last = found[-1]
        assert last.id is None
        assert len(last.data["text"]) == min(4000, last.data["length"])
        assert set(last.data) == {"step", "attempt", "text", "length"}
        ended = next(i for i, one in enumerate(after) if one.name == "step.completed" and one.data["step"] == last.data["step"])
        assert not any(one.name == "progress" and one.data["step"] == last.data["step"] for one in after[ended:])
        assert after[-1].name == "end"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (f"/v1/workflows/{UNKNOWN}/events", {}, 404),
        ("/v1/workflows/nothing/events", {}, 404),
        (f"/v1/workflows/{WORKFLOW}/events", {"last-event-id": "x"}, 400),
        (f"/v1/workflows/{WORKFLOW}/events", {"last-event-id": "-1"}, 400),
        (f"/v1/workflows/{WORKFLOW}/events", {"last-event-id": ""}, 400),
        (f"/v1/workflows/{WORKFLOW}/events", {"last-event-id": "9" * 5000}, 400),
        (f"/v1/workflows/{WORKFLOW}/events", {"last-event-id": "2147483648"}, 400),
        (f"/v1/workflows/{WORKFLOW}/events?after=x", {}, 422),
        (f"/v1/workflows/{WORKFLOW}/events?after=-1", {}, 422),
    ],
)
async def test_what_cannot_be_followed_is_a_problem(team: Live, path: str, headers: Mapping[str, str], status: int) -> None:
    await team.runtime.dispatcher("tests").apply([start(PAIR)])
    async with serving(team.runtime) as gateway:
        answer = await gateway.client.get(path, headers=headers)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert Problem.model_validate_json(answer.content).status == status
        assert gateway.watched == 0


async def test_the_stream_is_documented(team: Live) -> None:
    document = create_app(team.runtime).openapi()
    operation = document["paths"]["/v1/workflows/{id}/events"]["get"]
    assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
    assert {"400", "404", "422"} <= set(operation["responses"])
    assert {one["name"] for one in operation["parameters"]} == {"id", "after", "last-event-id"}


async def test_a_server_that_ends_cuts_off_its_open_streams_without_a_word(
    team: Live, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.local.server._GRACE_SECONDS", 120)
    await team.runtime.dispatcher("tests").apply([start(PAIR)])
    async with AsyncExitStack() as still_open:
        async with serving(team.runtime) as gateway:
            browser = await still_open.enter_async_context(httpx.AsyncClient(base_url=gateway.client.base_url, timeout=30))
            stream = await still_open.enter_async_context(Gateway(gateway.app, browser).events(WORKFLOW))
            await stream.soon()
            began = time.monotonic()
            await gateway.client.aclose()
        assert time.monotonic() - began < 60  # and not only once the server's patience is at its end
        assert "end" not in [event.name for event in await stream.rest()]
        assert gateway.watched == 0
        assert [record.name for record in caplog.records if record.name.startswith("uvicorn")] == []
