"""One call for content: let in by the quota, answered or failed on purpose, noted in the ledger."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

import orjson
from starlette.types import Receive, Scope, Send

from shared.local.simulator.asked import Asked, Refused
from shared.local.simulator.connections import Connections
from shared.local.simulator.faults import STATUSES, Fault, Kind
from shared.local.simulator.ledger import Entry
from shared.local.simulator.quota import Excess
from shared.local.simulator.replies import Answer, over_quota, retry_info
from shared.local.simulator.state import State
from shared.local.simulator.thinking import spoilt, think

_INLINE_CHARACTERS: Final = 20_000
_JSON: Final = b"application/json; charset=UTF-8"
_HTML: Final = b"<!DOCTYPE html>\n<html><title>Error</title><p>The server encountered a temporary error.</html>\n"


class Call:
    """Carries out one call. `streamed` asks for the answer in chunks, `as_events` for them as server-sent events."""

    def __init__(
        self, state: State, model: str, asked: Asked, *, streamed: bool, as_events: bool, connections: Connections
    ) -> None:
        self._state = state
        self._model = model
        self._asked = asked
        self._streamed = streamed
        self._as_events = as_events
        self._connections = connections
        self._entry: Entry = state.ledger[model]

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refused, noted in the ledger, for what is answered with an error status."""
        self._entry.began(self._state.clock.monotonic())
        try:
            await self._answer(scope, receive, send)
        finally:
            self._entry.in_flight -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        minute = self._admit()
        fault = self._fault()
        kind = None if fault is None else fault.kind
        if kind is Kind.HANGING:
            await self._state.unless_closing(_gone(receive))
        if kind in (Kind.HANGING, Kind.DROPPED):
            await self._drop(scope, receive, at_once=True)
            return
        if fault is not None and kind is Kind.SLOW:
            await self._state.pause(fault.seconds)
        answer = spoilt(await self._think(), kind)
        self._charge(answer, minute)
        if kind in (Kind.BROKEN_OFF, Kind.TRUNCATED_JSON, Kind.NOT_JSON):
            await self._pause(answer)
            await self._break(kind, answer, scope, receive, send)
        elif self._streamed:
            await self._stream(answer, send)
        else:
            await self._pause(answer)
            self._entry.answered += 1
            await send_whole(send, 200, orjson.dumps(answer.document()))

    def _admit(self) -> str:
        """The minute that the call counts for."""
        clock = self._state.clock
        taken = self._state.quotas[self._model].take(
            monotonic=clock.monotonic(), now=clock.now(), input_tokens=self._asked.input_tokens
        )
        if isinstance(taken, Excess):
            self._entry.violations += 1
            raise over_quota(self._model, taken)
        return taken

    def _fault(self) -> Fault | None:
        fault = self._state.faults.draw(self._model)
        if fault is None:
            return None
        self._entry.faults[str(fault.kind)] += 1
        if fault.kind in STATUSES:
            code, status, message = STATUSES[fault.kind]
            details = [retry_info(fault.retry_after_seconds)] if fault.kind is Kind.RATE_LIMITED else []
            raise Refused(code, status, message, *details)
        return fault

    async def _think(self) -> Answer:
        state, asked, model = self._state, self._asked, self._model
        script, id = state.scripts.get(model), f"simulated-{next(state.numbers)}"
        if len(asked.prompt) <= _INLINE_CHARACTERS:
            return think(state.settings, model, asked, script, id=id)
        # Long prompts take tens of milliseconds, in which others are served.
        return await asyncio.to_thread(think, state.settings, model, asked, script, id=id)

    def _charge(self, answer: Answer, minute: str) -> None:
        self._entry.input_tokens += answer.input_tokens
        self._entry.output_tokens += answer.output_tokens
        self._entry.thinking_tokens += answer.thinking_tokens
        self._entry.cached_tokens += answer.cached_tokens
        self._state.quotas[self._model].used(minute, answer.output_tokens + answer.thinking_tokens)

    async def _pause(self, answer: Answer) -> None:
        """As long as it takes to write the whole answer."""
        settings = self._state.settings
        tokens = answer.output_tokens + answer.thinking_tokens
        await self._state.pause(settings.base_seconds + tokens * settings.seconds_per_token)

    async def _stream(self, answer: Answer, send: Send) -> None:
        settings = self._state.settings
        pieces = list(self._pieces(answer))
        await self._state.pause(settings.base_seconds + answer.thinking_tokens * settings.seconds_per_token)
        await _start(send, 200, self._content_type)
        for number, piece in enumerate(pieces, 1):
            await self._state.pause(answer.output_tokens / len(pieces) * settings.seconds_per_token)
            last = number == len(pieces)
            self._entry.answered += last
            await send({"type": "http.response.body", "body": piece, "more_body": not last})

    async def _break(self, kind: Kind, answer: Answer, scope: Scope, receive: Receive, send: Send) -> None:
        body = b"".join(self._pieces(answer)) if self._streamed else orjson.dumps(answer.document())
        half = body[: len(body) // 2]
        if kind is Kind.NOT_JSON:
            await send_whole(send, 200, _HTML, b"text/html")
        elif kind is Kind.TRUNCATED_JSON:
            await send_whole(send, 200, half, self._content_type)
        else:
            await _start(send, 200, self._content_type, size=None if self._streamed else len(body))
            await send({"type": "http.response.body", "body": half, "more_body": True})
            await self._drop(scope, receive, at_once=False)

    async def _drop(self, scope: Scope, receive: Receive, *, at_once: bool) -> None:
        self._connections.drop(scope["client"], at_once=at_once)
        await _gone(receive)

    @property
    def _content_type(self) -> bytes:
        return b"text/event-stream" if self._as_events else _JSON

    def _pieces(self, answer: Answer) -> Iterator[bytes]:
        """The stream: server-sent events, or the elements of a JSON array."""
        chunks = answer.chunks()
        for number, chunk in enumerate(chunks, 1):
            written = orjson.dumps(chunk)
            if self._as_events:
                yield b"data: " + written + b"\r\n\r\n"
            else:
                yield (b"[" if number == 1 else b"") + written + (b"]" if number == len(chunks) else b",\r\n")


async def send_whole(send: Send, status: int, body: bytes, content_type: bytes = _JSON) -> None:
    """A whole response."""
    await _start(send, status, content_type, size=len(body))
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, content_type: bytes, *, size: int | None = None) -> None:
    headers: Sequence[tuple[bytes, bytes]] = [(b"content-type", content_type)]
    if size is not None:
        headers = [*headers, (b"content-length", str(size).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _gone(receive: Receive) -> None:
    """Return when the caller has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
