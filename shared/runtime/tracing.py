"""What every HTTP request passes first: it becomes a span of the trace that its caller is in, or the first one of a new trace."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.telemetry import TraceContext, span

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class Traced:
    """`app`, whose requests are spans. `traceparent` counts; where it is missing or malformed, `X-Cloud-Trace-Context` does."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        parent = TraceContext.parse(headers.get("traceparent")) or TraceContext.parse_cloud(headers.get("x-cloud-trace-context"))
        # Callers choose methods and paths, so only those that mean something here become a name.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        with span("http.server", method, parent=parent) as running:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    running.status = _status(message["status"])
                await send(message)

            try:
                await self._app(scope, receive, send_and_note)
            finally:
                # The router leaves the route that it chose in the scope: its path holds no ids.
                running.name = f"{method} {getattr(scope.get('route'), 'path', 'unmatched')}"


def _status(code: int) -> str:
    """As Sentry calls it: https://develop.sentry.dev/sdk/data-model/event-payloads/span/."""
    known = {401: "unauthenticated", 403: "permission_denied", 404: "not_found", 409: "already_exists", 429: "resource_exhausted"}
    known |= {503: "unavailable", 504: "deadline_exceeded"}
    if code in known:
        return known[code]
    return "ok" if code < 400 else "invalid_argument" if code < 500 else "internal_error"
