"""What every request passes before it reaches a route: limits, headers, and the answer of last resort."""

import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.gateway.problems import TOO_LARGE, failed, problem
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""On every answer, unless the route says otherwise: https://owasp.org/www-project-secure-headers/."""


class Edge:
    """Adds the security headers, and answers with a problem when something broke that nobody expected."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if started:
                raise
            _log.error("request failed", extra={"path": scope["path"], "error": describe_error(error)})
            await failed()(scope, receive, send_with_headers)


class BodyLimit:
    """Refuses bodies over `max_bytes`: announced ones before they are read, others as soon as they pass it."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
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

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                # Reaches whoever reads the body, and through it the handler that answers with a problem.
                raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, receive_within_limit, send)
