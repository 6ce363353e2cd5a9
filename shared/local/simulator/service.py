"""The paths of the Gemini API, and the simulator's own under `/_simulator/`, by which a test in another process drives it."""

import re
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from shared.errors import ConfigurationError
from shared.local.simulator.asked import Asked, Refused, invalid, read
from shared.local.simulator.call import Call, send_whole
from shared.local.simulator.calls import check
from shared.local.simulator.connections import Connections
from shared.local.simulator.faults import fault_from
from shared.local.simulator.replies import unknown_model, wrong_key
from shared.local.simulator.state import State

_METADATA: Final = re.compile(r"/(v1|v1beta)/models/([^/:]+)")
_PATH: Final = re.compile(r"/(v1|v1beta)/models/([^/:]+):(generateContent|streamGenerateContent|countTokens)")
_MOST_BYTES: Final = 20 * 1024 * 1024


def create_service(state: State, connections: Connections) -> ASGIApp:
    """What answers over HTTP."""

    async def ledger(_: Request) -> Response:
        return JSONResponse(state.ledger.as_json())

    async def faults(request: Request) -> Response:
        try:
            given = orjson.loads(await request.body())
            if not isinstance(given, dict):
                raise ConfigurationError("a fault is a JSON object")
            model = given.pop("model", None)
            if model is not None and model not in state.quotas:
                raise ConfigurationError(f"there is no model {model!r}; there are: {', '.join(state.quotas)}")
            state.faults.add(fault_from(given), model=model)
        except (ConfigurationError, orjson.JSONDecodeError) as error:
            return JSONResponse({"error": {"code": 400, "message": str(error), "status": "INVALID_ARGUMENT"}}, status_code=400)
        return Response(status_code=204)

    async def reset(_: Request) -> Response:
        state.reset()
        return Response(status_code=204)

    own = [
        Route("/ledger", ledger, methods=["GET"]),
        Route("/faults", faults, methods=["POST"]),
        Route("/reset", reset, methods=["POST"]),
    ]
    return Starlette(routes=[Mount("/_simulator", routes=own), Mount("/", app=_Api(state, connections))])


class _Api:
    """Google's paths."""

    def __init__(self, state: State, connections: Connections) -> None:
        self._state = state
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            return
        try:
            if scope["method"] == "GET":
                await send_whole(send, 200, orjson.dumps(self._metadata(scope)))
                return
            model, method = self._route(scope)
            asked = _read(body, model)
        except Refused as refused:
            self._state.ledger.refused[refused.code] += 1
            await send_whole(send, refused.code, orjson.dumps(refused.body))
            return
        if method == "countTokens":
            self._state.ledger[model].counted += 1
            counted = {"totalTokens": asked.input_tokens}
            await send_whole(send, 200, orjson.dumps(counted))
            return
        streamed = method == "streamGenerateContent"
        as_events = streamed and parse_qs(scope["query_string"].decode("latin-1")).get("alt") == ["sse"]
        call = Call(self._state, model, asked, streamed=streamed, as_events=as_events, connections=self._connections)
        try:
            await call.answer(scope, receive, send)
        except Refused as refused:
            # A stream that is no stream of events is an array, in failure too.
            said = [refused.body] if streamed and not as_events else refused.body
            await send_whole(send, refused.code, orjson.dumps(said))

    def _route(self, scope: Scope) -> tuple[str, str]:
        """The model and the method. Raises Refused for a path, a key or a model that there is not."""
        path = _PATH.fullmatch(scope["path"])
        if path is None or scope["method"] != "POST":
            raise Refused(404, "NOT_FOUND", "Requested entity was not found.")
        version, model, method = path[1], unquote(path[2]), path[3]
        self._check(scope, version, model, method)
        return model, method

    def _metadata(self, scope: Scope) -> dict[str, Any]:
        """What is told of a model, which uses up no quota. Raises Refused like `_route`."""
        path = _METADATA.fullmatch(scope["path"])
        if path is None:
            raise Refused(404, "NOT_FOUND", "Requested entity was not found.")
        version, model = path[1], unquote(path[2])
        self._check(scope, version, model, "getModel")
        methods = ["generateContent", "countTokens"]
        return {"name": f"models/{model}", "displayName": model, "supportedGenerationMethods": methods}

    def _check(self, scope: Scope, version: str, model: str, method: str) -> None:
        key = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-goog-api-key"), None)
        accepted = self._state.settings.keys
        if not key or (accepted is not None and key not in accepted):
            raise wrong_key(key)
        if model not in self._state.quotas:
            raise unknown_model(version, model, method)


def _read(body: bytearray, model: str) -> Asked:
    if len(body) > _MOST_BYTES:
        raise invalid(f"Request payload size exceeds the limit: {_MOST_BYTES} bytes.")
    asked = read(bytes(body), model)
    check(asked, model)
    return asked


async def _body(receive: Receive) -> bytearray | None:
    """The body, of one that is too long its beginning; None when the caller went before its end."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        if len(body) <= _MOST_BYTES:
            body += message.get("body", b"")
        if not message.get("more_body", False):
            return body
