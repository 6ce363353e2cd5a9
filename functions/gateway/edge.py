"""What every request passes before it reaches a route: limits, headers, and the answer of last resort."""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.gateway.problems import TOO_LARGE, TOO_SLOW, failed, problem
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
BODY_SECONDS = 30.0
"""How long a client may take for a body. Many that send a byte now and then would hold as many connections for ever."""

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer, unless the route says otherwise: https://owasp.org/www-project-secure-headers/."""


class Edge:
    """Adds the security headers, and answers with a problem when something broke that nobody expected.

    A request that is answered before its body was read is the last one of its connection: what comes of it is not waited for.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        is_read = not _has_body(scope)

        async def receive_and_note() -> Message:
            nonlocal is_read
            message = await receive()
            is_read = is_read or not message.get("more_body", False)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if not is_read:
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive_and_note, send_with_headers)
        except Exception as error:
            if started:
                raise
            _log.error("request failed", extra={"path": scope["path"], "error": describe_error(error)})
            await failed()(scope, receive_and_note, send_with_headers)


class BodyLimit:
    """Refuses bodies over `max_bytes`: announced ones before they are read, others as soon as they pass it.

    One that has not arrived within `seconds` is not waited for.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._refusal = f"the body is larger than {max_bytes} bytes; send less"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdecimal() and int(announced[:18]) > self._max_bytes:
            await problem(TOO_LARGE, self._refusal)(scope, receive, send)
            return
        received = 0
        is_read = False
        due = asyncio.get_running_loop().time() + self._seconds

        async def receive_within_limits() -> Message:
            nonlocal received, is_read
            if is_read:  # what comes now is that the client has gone away
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                # These reach whoever reads the body, and through it the handler that answers with a problem.
                raise HTTPException(
                    TOO_SLOW.status, f"the body has not arrived within {self._seconds:g} s; send it again"
                ) from None
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(TOO_LARGE.status, self._refusal)
            is_read = not message.get("more_body", False)
            return message

        await self._app(scope, receive_within_limits, send)


def _has_body(scope: Scope) -> bool:
    """Whether a request announces a body: https://www.rfc-editor.org/rfc/rfc9112#section-6.3."""
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
