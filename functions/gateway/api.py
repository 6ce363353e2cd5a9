"""The gateway's application: routes, limits and documentation, put together around one runtime."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import Response

from functions.gateway.dead_letters import dead_letters
from functions.gateway.edge import BodyLimit, Edge
from functions.gateway.events import events
from functions.gateway.models import Health, Ready
from functions.gateway.pages import console, documentation
from functions.gateway.problems import FAILED, UNAVAILABLE, documented, handle_errors
from functions.gateway.signals import signals
from functions.gateway.watching import Watches
from functions.gateway.workflows import workflows
from shared.errors import ConfigurationError
from shared.runtime import Runtime
from shared.runtime.health import Readiness
from shared.telemetry import METRICS_CONTENT_TYPE, metrics

_log = logging.getLogger(__name__)
_OPENAPI = "/openapi.json"
_NEVER_SENT = {"$ref": "#/components/schemas/HTTPValidationError"}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_DESCRIPTION = """\
Start workflows of the agent team, watch them and stop them.

Every error is a problem document (RFC 9457). A request with an `Idempotency-Key` can be sent again safely: after a timeout, after a
503, as often as it takes.
"""


def create_app(live: Runtime) -> FastAPI:
    """The API around `live`. Raises ConfigurationError in production: nothing would keep strangers out."""
    if live.settings.is_production:
        raise ConfigurationError("the gateway has no API keys yet and must not run in production")
    _log.warning("the API is open: there are no API keys, so whoever reaches its port can start and cancel workflows")
    app = FastAPI(
        title="Agent team",
        description=_DESCRIPTION,
        version="1",
        openapi_url=_OPENAPI,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=documented(FAILED, UNAVAILABLE),
        middleware=[Middleware(Edge), Middleware(BodyLimit, max_bytes=live.settings.max_payload_bytes)],
    )
    app.state.live = live
    app.state.watches = Watches(live)
    handle_errors(app)
    app.include_router(workflows)
    app.include_router(events)
    app.include_router(signals)
    app.include_router(dead_letters)
    _add_platform_routes(app, live)
    _show_problems_as_such(app)
    return app


def _add_platform_routes(app: FastAPI, live: Runtime) -> None:
    started = live.clock.monotonic()

    async def health() -> Response:
        """Whether this instance answers; it asks nobody else."""
        now = live.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        uptime = round(live.clock.monotonic() - started, 3)
        return Response(orjson.dumps({"status": "ok", "timestamp": now, "uptime": uptime}), media_type="application/json")

    readiness = Readiness(live)

    async def ready() -> Response:
        """Whether what the gateway stands on answers. 503 when anything does not; asked at most every five seconds."""
        report = await readiness.report()
        return Response(orjson.dumps(report.as_dict()), 200 if report.healthy else 503, media_type="application/json")

    async def show_metrics() -> Response:
        """Metrics of this instance in Prometheus' text format."""
        return Response(metrics.text(), headers={"content-type": METRICS_CONTENT_TYPE})

    async def show_console() -> Response:
        return console()

    async def show_documentation() -> Response:
        return documentation(openapi_url=_OPENAPI, title=app.title)

    app.add_api_route("/health", health, response_model=Health, tags=["platform"])
    unready: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "A check is unhealthy"}}
    app.add_api_route("/health/ready", ready, response_model=Ready, responses=unready, tags=["platform"])
    text: dict[int | str, dict[str, Any]] = {200: {"content": {METRICS_CONTENT_TYPE: {"schema": {"type": "string"}}}}}
    app.add_api_route("/metrics", show_metrics, response_class=Response, responses=text, tags=["platform"])
    pages: dict[str, Callable[[], Awaitable[Response]]] = {"/": show_console, "/docs": show_documentation}
    for path, show in pages.items():
        app.add_api_route(path, show, include_in_schema=False)


def _show_problems_as_such(app: FastAPI) -> None:
    """Document problems under their own content type, not the route's, and what FastAPI would send by itself not at all."""
    describe = app.openapi

    def described() -> dict[str, Any]:
        document = describe()
        for operation in [operation for path in document["paths"].values() for operation in path.values()]:
            answers = operation["responses"]
            for status in [status for status in answers if int(status) >= 400]:
                (shape,) = answers[status]["content"].values()
                if shape["schema"] == _NEVER_SENT:
                    del answers[status]
                elif shape["schema"] == _PROBLEM:
                    answers[status]["content"] = {"application/problem+json": shape}
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = described  # type: ignore[method-assign]  # https://fastapi.tiangolo.com/how-to/extending-openapi/
