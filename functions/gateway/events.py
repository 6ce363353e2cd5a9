"""`/v1/workflows/{id}/events`: a workflow as it happens, as server-sent events.

The format is the HTML standard's (https://html.spec.whatwg.org/multipage/server-sent-events.html): a browser's EventSource reads
it, and goes on by itself where a broken connection left off.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, Header, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Send

from functions.gateway.approvals import Links, links_for
from functions.gateway.auth import allowed
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, documented, problem
from functions.gateway.watching import Entry, Watch, Watches
from functions.gateway.workflows import MAX_SEQ, PATH, Id, Live
from shared.errors import AgentTeamError, NotFound
from shared.runtime import Runtime
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
_PAGE = 500
_MEDIA_TYPE = "text/event-stream"
_END = b"event: end\ndata: {}\n\n"
_BEAT = b": still here\n\n"
_DOCUMENTED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The events, for as long as the workflow runs.",
        "content": {
            _MEDIA_TYPE: {
                "schema": {
                    "description": "One event.",
                    "type": "object",
                    "properties": {
                        "event": {"type": "string"},
                        "id": {"type": "string", "pattern": "^[0-9]+$"},
                        "data": {"type": "string", "contentMediaType": "application/json"},
                    },
                },
                "example": 'event: step.completed\nid: 7\ndata: {"seq":7,"type":"step.completed","step":"plan",…}\n\n',
            }
        },
    },
    **documented(BAD_REQUEST, NOT_FOUND, INVALID),
}

events = APIRouter(prefix=PATH, tags=["workflows"], dependencies=[Depends(allowed("read"))])


async def _watches(request: Request) -> Watches:
    return cast("Watches", request.app.state.watches)


class EventStream(StreamingResponse):
    """An answer that frees what its events come from, however it ends."""

    media_type = _MEDIA_TYPE

    async def stream_response(self, send: Send) -> None:
        async with aclosing(cast("AsyncGenerator[bytes, None]", self.body_iterator)):
            await super().stream_response(send)


@events.get("/{id}/events", response_class=Response, responses=_DOCUMENTED)
async def follow(
    request: Request,
    live: Live,
    watches: Annotated[Watches, Depends(_watches)],
    id: Id,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="The `seq` of the last entry that is known.")] = 0,
    last_event_id: Annotated[
        str | None,
        Header(
            description="The last `id` that was received; counts before `after`.",
            examples=["7"],
            json_schema_extra={"pattern": "^[0-9]{1,9}$"},
        ),
    ] = None,
) -> Response:
    """A workflow as it happens, as server-sent events, from entry `after` on until it has ended.

    - Each entry of the history: `event` is its type, `id` its `seq`, `data` the entry as `/history` gives it. Who may `submit` also
      gets the link to an approval with its `step.waiting`: `links`, as the step has it.
    - `progress`: `data` is `{step, attempt, text, length}`, the last 4,000 characters of what a running step has written so far and
      how many there are, as long as it is known. It has no `id`: after a broken connection only the newest comes.
    - `queue`: `data` is its place in the queue, as `queue` of the workflow, while it waits for a slot; at most every 15 seconds,
      and without an `id` as well.
    - `end`: the workflow has ended and all of it was sent.

    A comment comes every 15 seconds. What a model wrote may be anything: show it as text.
    """
    if last_event_id is not None:
        known = _seq(last_event_id)
        if known is None:
            return problem(BAD_REQUEST, "Last-Event-ID is no id of an event; send the last one that was received, or none")
        after = known
    if not await live.store.history(id, limit=1):
        raise NotFound(f"there is no workflow {id}")
    links = await links_for(request)
    return EventStream(_stream(live, watches, id, after, links), headers={"x-accel-buffering": "no"})


def _seq(text: str) -> int | None:
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_SEQ))):
        return None
    return int(text) if int(text) <= MAX_SEQ else None


async def _stream(live: Runtime, watches: Watches, id: str, after: int, link: Links | None) -> AsyncGenerator[bytes, None]:
    try:
        async with watches.watching(id) as watch, aclosing(_frames(live, watch, id, after, link)) as frames:
            async for frame in frames:
                yield frame
    except AgentTeamError as error:
        # The head is sent, so all that is left is to end. Whoever listens comes again, and goes on where this ended.
        _log.warning("a stream of events is cut off", extra={"workflowId": id, "error": describe_error(error)})


async def _frames(live: Runtime, watch: Watch, id: str, after: int, link: Links | None) -> AsyncGenerator[bytes, None]:
    beats = watch.beats
    shown: dict[str, bytes] = {}
    queue: bytes | None = None
    while True:
        changed = watch.changed
        while after < watch.seq:
            page = watch.since(after)
            if page is None:
                page = await live.store.history(id, after=after, limit=_PAGE)
            for entry in page:
                yield _frame(entry if link is None else _linked(live, id, entry, link))
            after = page[-1]["seq"] if page else watch.seq
        if watch.queue is not None and watch.queue != queue:
            yield b"event: queue\ndata: " + watch.queue + b"\n\n"
        queue = watch.queue
        for step, text in list(watch.progress.items()):
            if text != shown.get(step):
                shown[step] = text
                yield b"event: progress\ndata: " + text + b"\n\n"
        if watch.ended and after >= watch.seq:
            yield _END
            return
        if watch.beats != beats:
            beats = watch.beats
            yield _BEAT
        await changed.wait()


def _linked(live: Runtime, id: str, entry: Entry, link: Links) -> Entry:
    if entry["type"] != "step.waiting" or entry["data"]["for"] != "approval":
        return entry
    about = {"step": entry["step"], "attempt": entry["attempt"], "waiting": entry["data"]}
    return {**entry, "links": link(workflow=id, **about, now=live.clock.now())}


def _frame(entry: Entry) -> bytes:
    # JSON of one line: whatever a step has written cannot end its event.
    return f"event: {entry['type']}\nid: {entry['seq']}\ndata: ".encode() + orjson.dumps(entry) + b"\n\n"
