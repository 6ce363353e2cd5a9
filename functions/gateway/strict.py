"""JSON bodies as RFC 8259 has them (https://www.rfc-editor.org/rfc/rfc8259).

Refused are NaN and infinity, lone surrogates, other encodings than UTF-8, and what is nested without end.
"""

from collections.abc import Awaitable, Callable, Iterable
from json import JSONDecodeError
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

MAX_DEPTH = 64
"""Levels of lists and objects in a body. What is stored and sent wraps it in some more, and 254 are all that can be written."""


class StrictRoute(APIRoute):
    """A route whose body is read strictly."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # an Awaitable is all that is needed
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            _require_json(request.headers)
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


def _require_json(headers: Headers) -> None:
    """Another site's page can make a browser send a body of any other type without asking first."""
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if has_body and kind != "application/json":
        raise HTTPException(415, "the body should be JSON, sent with Content-Type: application/json")


class _StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        document = orjson.loads(body)
        if is_deeper(document, MAX_DEPTH):
            raise JSONDecodeError(f"more than {MAX_DEPTH} levels of lists and objects", "", 0)
        return document


def is_deeper(document: Any, levels: int) -> bool:
    """Whether `document` has more levels of lists and objects than that."""
    layer = [document]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
    return any(isinstance(outer, dict | list) for outer in layer)


def _inside(outer: Any) -> Iterable[Any]:
    if isinstance(outer, dict):
        return outer.values()
    return outer if isinstance(outer, list) else ()
