"""The local platform over HTTP: the gateway at `/`, and every function where Pub/Sub would push to it, at `/functions/NAME`."""

import asyncio
import errno
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import cast

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from shared.errors import ConfigurationError
from shared.runtime import Runtime, load
from shared.runtime.door import push

_GATEWAY = "gateway"
_GRACE_SECONDS = 3
"""How long requests in progress may take once the server is told to end."""
HEAD_SECONDS = 30.0
"""How long a client may take to say what it wants, from when it has connected or begun to."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port`, 0 for any free one. Raises ConfigurationError when it is not to be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server(address[:2], family=family)
        # Connections have it from here. asyncio sets it only on sockets of its own making, and without it an answer whose head and
        # body are written one after the other waits 40 ms for the caller's delayed acknowledgement.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except socket.gaierror as error:
        raise ConfigurationError(f"{host!r} is no address of this machine; use --host 127.0.0.1 or 0.0.0.0") from error
    except PermissionError as error:
        raise ConfigurationError(f"port {port} needs more rights; choose one above 1023: --port 8080") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else 8080
            message = f"port {port} on {host} is in use; end what uses it, or choose another: --port {other}"
        else:
            message = f"{host} is no address of this machine; use --host 127.0.0.1 or 0.0.0.0"
        raise ConfigurationError(message) from error


def create_app(live: Runtime) -> ASGIApp:
    """What answers: `/functions/NAME` takes what Pub/Sub or the scheduler would send there, the gateway takes all the rest."""
    functions = {name: load(name) for name in live.functions}
    apps = {name: function.app(live) for name, function in functions.items() if function.app is not None}
    handlers = {name: function.handlers(live) for name, function in functions.items() if function.app is None}

    async def call(request: Request) -> Response:
        name = request.path_params["name"]
        if name in apps:
            return cast("Response", _AtItsRoot(apps[name]))
        if name in handlers:
            return await push(request, handlers[name], max_bytes=live.settings.max_payload_bytes, tokens=live.push_tokens)
        detail = f"there is no function {name!r}; there are: {', '.join(functions)}"
        problem = {"type": "about:blank", "title": "Not Found", "status": 404, "detail": detail}
        return JSONResponse(problem, status_code=404, media_type="application/problem+json")

    return _Doors(Starlette(routes=[Route("/functions/{name}", call, methods=["POST"])]), apps.get(_GATEWAY))


async def serve(
    app: ASGIApp, listening: socket.socket, *, on_started: Callable[[], None], protocol: type[asyncio.Protocol] | None = None
) -> None:
    """Answer requests until cancelled; those in progress then get 3 s to end, and streams without end are cut off.

    `protocol` reads the requests in uvicorn's stead.
    """
    ending = asyncio.Event()
    config = uvicorn.Config(
        _CutOff(app, ending),
        http=Impatient if protocol is None else protocol,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    await _Server(config, on_started, ending).serve_until_cancelled(listening)


class Impatient(H11Protocol):
    """Cuts off clients that don't get to the end of a request's head: each would hold a connection for ever."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _Doors:
    """Functions take what is posted to `/functions/NAME`; the gateway, if there is one, answers all the rest."""

    def __init__(self, functions: ASGIApp, gateway: ASGIApp | None) -> None:
        self._functions = functions
        self._gateway = functions if gateway is None else gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._functions if _is_for_a_function(scope) else self._gateway)(scope, receive, send)


def _is_for_a_function(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    folder, _, name = str(scope["path"]).rpartition("/")
    return folder == "/functions" and name != ""


class _AtItsRoot:
    """A function's app, which in the cloud has an address of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "path": "/", "raw_path": b"/", "root_path": ""}, receive, send)


class _CutOff:
    """`app`, which once the server is `ending` hears of every client whose request it has read that it went away."""

    def __init__(self, app: ASGIApp, ending: asyncio.Event) -> None:
        self._app = app
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_read = is_open = False

        async def send_and_note(message: Message) -> None:
            nonlocal is_open
            is_open = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        async def receive_or_end() -> Message:
            nonlocal is_read
            if not is_read:
                message = await receive()
                is_read = not message.get("more_body", False)
                return message
            waiting = {asyncio.ensure_future(receive()), asyncio.ensure_future(self._ended())}
            try:
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for one in waiting:
                    one.cancel()
            return done.pop().result()

        await self._app(scope, receive_or_end, send_and_note)
        if is_open:  # it gave up, and its client is still there
            await send({"type": "http.response.body", "body": b""})

    async def _ended(self) -> Message:
        await self._ending.wait()
        return {"type": "http.disconnect"}


class _Server(uvicorn.Server):
    """Ends when its task is cancelled: signals belong to the command line."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None], ending: asyncio.Event) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._ending = ending

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    async def serve_until_cancelled(self, listening: socket.socket) -> None:
        serving = asyncio.create_task(self.serve(sockets=[listening]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self.should_exit = True
            self._ending.set()
            await serving
            raise
