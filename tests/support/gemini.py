"""A local server that speaks Gemini's wire format, one answer to a connection. No model is ever called."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from shared.ai import Request
from shared.ai.gemini import GeminiModel
from shared.errors import AgentTeamError

KEY = "AIza-a-key-that-is-secret"
SCHEMA = {
    "type": "object",
    "required": ["title"],
    "properties": {
        "title": {"type": "string", "minLength": 1, "maxLength": 9},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
SENT_SCHEMA = {
    "type": "object",
    "required": ["title"],
    "properties": {"title": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}},
}
"""SCHEMA without the keywords that Gemini does not take."""
REQUEST = Request(prompt="the payload", schema=SCHEMA, temperature=0.3, max_tokens=77, timeout_seconds=5)

Writes = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class GeminiServer:
    """Answers every request with what `answer` writes."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Writes | None = None
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a client has closed its end."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.received.append(Received(first.split()[1], headers, json.loads(body)))
            assert self.answer is not None
            watched = asyncio.ensure_future(self._watch(reader))
            try:
                await self.answer(writer)
            finally:
                watched.cancel()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _watch(self, reader: asyncio.StreamReader) -> None:
        try:
            await reader.read()
        finally:
            if reader.at_eof():
                self.left.set()


def answers(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Writes:
    """A whole response: `body` as JSON, or as it is when it is bytes."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        fixed = f"content-type: application/json\r\ncontent-length: {len(data)}\r\nconnection: close\r\n"
        writer.write(f"HTTP/1.1 {status} Whatever\r\n{fixed}{extra}\r\n".encode() + data)
        await writer.drain()

    return answer


def streams(*chunks: Any, complete: bool = True, then: Writes | None = None) -> Writes:
    """Server-sent events, one for each of `chunks`. Unless `complete` the connection drops after them."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for chunk in chunks:
            event = b"data: " + (chunk if isinstance(chunk, bytes) else json.dumps(chunk).encode()) + b"\r\n\r\n"
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            await writer.drain()
        if then is not None:
            await then(writer)
        if complete:
            writer.write(b"0\r\n\r\n")
        await writer.drain()

    return answer


async def drops(writer: asyncio.StreamWriter) -> None:
    """Cut the connection without a word."""
    writer.transport.abort()


def candidate(*parts: Mapping[str, Any], finish: str | None = "STOP") -> dict[str, Any]:
    """A response, or a chunk of one, with these parts."""
    one: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}}
    return {"candidates": [one if finish is None else {**one, "finishReason": finish}]}


USED = {"promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 30, "cachedContentTokenCount": 40}


def said(text: str, finish: str | None = "STOP") -> dict[str, Any]:
    """A response with text, and what it used."""
    return {**candidate({"text": text}, finish=finish), "usageMetadata": USED}


def called(name: str, arguments: Mapping[str, Any], *, id: str | None = None, signature: bytes | None = None) -> dict[str, Any]:
    """A part that asks for a function."""
    call = {"name": name, "args": arguments} if id is None else {"name": name, "args": arguments, "id": id}
    return {"functionCall": call} if signature is None else {"functionCall": call, "thoughtSignature": encoded(signature)}


def encoded(signature: bytes) -> str:
    """`signature` as JSON carries it."""
    return base64.urlsafe_b64encode(signature).decode()


def failed(code: int, status: str, *details: Mapping[str, Any], message: str = "the payload is bad") -> dict[str, Any]:
    return {"error": {"code": code, "status": status, "message": message, "details": list(details)}}


async def error(model: GeminiModel, request: Request = REQUEST) -> AgentTeamError:
    """The error that `generate` raises, after a look at its message."""
    with pytest.raises(AgentTeamError) as caught:
        async with asyncio.timeout(10):
            await model.generate(request)
    check_message(caught.value)
    return caught.value


def check_message(problem: AgentTeamError) -> None:
    message = str(problem)
    assert KEY not in message
    assert "payload" not in message
    assert "\n" not in message
    assert "gemini-2.5-pro" in message
