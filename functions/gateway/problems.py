"""Errors as problem documents (RFC 9457, https://www.rfc-editor.org/rfc/rfc9457).

Only errors about the request show their message. Of all others, and of what is for the operator rather than for the caller, an
answer says no more than that it went wrong; the log says why.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from functions.gateway.models import Problem
from shared.errors import AgentTeamError, Conflict, InputError, NotFound, Transient
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
_MOST_MISTAKES = 20
_LONGEST_NAME = 60
_RETRY_SECONDS = 5.0

_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

OpenApiResponses = dict[int | str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem; a kind without a name of its own means what its status means."""

    status: int
    title: str
    name: str | None = None

    @property
    def type(self) -> str:
        """The URI that identifies the kind."""
        return "about:blank" if self.name is None else f"urn:agent-team:problem:{self.name}"


BAD_REQUEST = Kind(400, "Bad Request")
UNAUTHENTICATED = Kind(401, "Unauthorized")
FORBIDDEN = Kind(403, "Forbidden")
NOT_FOUND = Kind(404, "Not Found")
METHOD_NOT_ALLOWED = Kind(405, "Method Not Allowed")
TOO_SLOW = Kind(408, "Request Timeout")
CONFLICT = Kind(409, "Conflict")
SETTLED = Kind(409, "This was settled before", "settled")
TOO_LARGE = Kind(413, "Content Too Large")
UNSUPPORTED = Kind(415, "Unsupported Media Type")
INVALID = Kind(422, "The request is not valid", "invalid-request")
KEY_REUSED = Kind(422, "The Idempotency-Key belongs to another request", "idempotency-key-reused")
TOO_MANY = Kind(429, "Too Many Requests")
FAILED = Kind(500, "Internal Server Error")
SWITCHED_OFF = Kind(503, "Workflows are switched off", "workflows-off")
UNAVAILABLE = Kind(503, "Service Unavailable", "unavailable")

_OF_STATUS = {
    kind.status: kind for kind in (BAD_REQUEST, FORBIDDEN, NOT_FOUND, METHOD_NOT_ALLOWED, TOO_SLOW, TOO_LARGE, UNSUPPORTED)
}
_DETAILS = {
    400: "the body cannot be read",
    404: "there is nothing here; /docs lists every path",
    405: "this path does not take the method; the Allow header lists those that it takes",
}


def problem(
    kind: Kind, detail: str, *, errors: Sequence[Mapping[str, str]] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that tells of a problem of this kind. `errors` are `{field, message}` each."""
    document: dict[str, Any] = {"type": kind.type, "title": kind.title, "status": kind.status, "detail": detail}
    if errors is not None:
        document["errors"] = errors
    return Response(
        orjson.dumps(document),
        status_code=kind.status,
        headers=None if headers is None else dict(headers),
        media_type="application/problem+json",
    )


def failed() -> Response:
    """The answer when something broke that is not the caller's."""
    return problem(FAILED, "something went wrong here; the log says what")


def switched_off() -> Response:
    """The answer to what would start or resume a workflow where `ORCH_ENABLED` is false."""
    return problem(SWITCHED_OFF, "workflows are switched off here; the operator can set ORCH_ENABLED=true")


def handle_errors(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document, but those that nobody expected."""
    # Starlette's types know no handlers of narrower errors: https://github.com/encode/starlette/pull/2403.
    app.add_exception_handler(RequestValidationError, _on_invalid)  # type: ignore[arg-type]
    app.add_exception_handler(HTTPException, _on_http)  # type: ignore[arg-type]
    app.add_exception_handler(AgentTeamError, _on_error)  # type: ignore[arg-type]


def documented(*kinds: Kind) -> OpenApiResponses:
    """The `responses` of a route that can answer with these."""
    return {kind.status: {"model": Problem, "description": kind.title} for kind in kinds}


async def _on_invalid(_request: Request, error: RequestValidationError) -> Response:
    found = error.errors()
    mistakes = [{"field": _field(one["loc"]), "message": _message(one)} for one in found[:_MOST_MISTAKES]]
    detail = "; ".join(f"{one['field']}: {one['message']}" for one in mistakes)
    if len(found) > _MOST_MISTAKES:
        detail += f"; and {len(found) - _MOST_MISTAKES} more"
    return problem(INVALID, detail, errors=mistakes)


async def _on_http(request: Request, error: HTTPException) -> Response:
    status = error.status_code
    kind = _OF_STATUS.get(status) or Kind(status, HTTPStatus(status).phrase)
    headers = {"allow": _allowed(request)} if kind is METHOD_NOT_ALLOWED else error.headers
    return problem(kind, _DETAILS.get(status, str(error.detail)), headers=headers)


def _allowed(request: Request) -> str:
    """What the path takes; the framework's own answer knows the methods of one of its routes."""
    routes = request.app.router.routes
    takes = (method for method in _METHODS if any(_is_full(route, {**request.scope, "method": method}) for route in routes))
    return ", ".join(takes)


def _is_full(route: BaseRoute, scope: Scope) -> bool:
    return route.matches(scope)[0] is Match.FULL


async def _on_error(request: Request, error: AgentTeamError) -> Response:
    return answer_to(error, path=request.url.path)


def answer_to(error: AgentTeamError, *, path: str) -> Response:
    """The answer to a request that an error ended; what is not for the caller goes to the log."""
    match error:
        case InputError():
            return problem(INVALID, str(error), errors=[{"field": "body", "message": str(error)}])
        case Conflict():
            return problem(KEY_REUSED, str(error), errors=[{"field": "Idempotency-Key", "message": str(error)}])
        case NotFound():
            return problem(NOT_FOUND, str(error))
        case Transient():
            _log.warning("request cannot be served now", extra={"path": path, "error": describe_error(error)})
            seconds = _RETRY_SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
            headers = {"retry-after": str(max(1, math.ceil(seconds)))}
            return problem(UNAVAILABLE, "this cannot be served now; try again after the seconds in Retry-After", headers=headers)
        case _:
            _log.error("request failed", extra={"path": path, "error": describe_error(error)})
            return failed()


def _field(location: Sequence[int | str]) -> str:
    """Where a mistake is: `budget.max_tokens` for that field of the body, `limit` for that parameter."""
    place, *names = location
    # A syntax error is located by its position in the text; a header's and a parameter's name say enough.
    names = [] if place == "body" and names and isinstance(names[0], int) else names
    return ".".join(str(name)[:_LONGEST_NAME] for name in names) if names else str(place)


def _message(mistake: Mapping[str, Any]) -> str:
    if mistake["type"] == "json_invalid":
        return f"not valid JSON: {mistake['ctx']['error']}"
    if mistake["type"] == "model_attributes_type":
        # What arrives as something else than JSON is never parsed, and then it is no object.
        return "should be a JSON object, sent as application/json"
    return str(mistake["msg"])
