"""The gateway's application: routes, limits and documentation, put together around one runtime."""

from typing import Any

import orjson
from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.approvals import HiddenToken, add_approvals
from functions.gateway.auth import Callers, Gate, allowed
from functions.gateway.dead_letters import dead_letters
from functions.gateway.documents import documents
from functions.gateway.edge import BodyLimit, Edge
from functions.gateway.events import events
from functions.gateway.forks import forks
from functions.gateway.limits import RateLimit
from functions.gateway.models import Health, Ready
from functions.gateway.openapi import describe
from functions.gateway.outputs import outputs
from functions.gateway.pages import console, documentation
from functions.gateway.pauses import pauses
from functions.gateway.problems import FAILED, FORBIDDEN, TOO_MANY, UNAUTHENTICATED, UNAVAILABLE, documented, handle_errors
from functions.gateway.schedules import schedules
from functions.gateway.signals import signals
from functions.gateway.tasks import tasks
from functions.gateway.watching import Watches
from functions.gateway.workflows import workflows
from shared.runtime import Runtime
from shared.runtime.health import Readiness
from shared.runtime.queue import note_queued
from shared.runtime.tracing import Traced
from shared.telemetry import METRICS_CONTENT_TYPE, metrics

_OPENAPI = "/openapi.json"
_DESCRIPTION = """\
Start workflows of the agent team, watch them and stop them.

Every error is a problem document (RFC 9457). A request with an `Idempotency-Key` can be sent again safely: after a timeout, after a
503, as often as it takes.

Callers show an API key or a Google identity token: `Authorization: Bearer …`. It may `read`, `submit` (read, and start and stop
workflows) or do everything (`admin`).
"""
_GUARDED = documented(UNAUTHENTICATED, FORBIDDEN, TOO_MANY)


def create_app(live: Runtime) -> FastAPI:
    """The API around `live`."""
    callers = Callers(live)
    app = FastAPI(
        title="Agent team",
        description=_DESCRIPTION,
        version="1",
        openapi_url=_OPENAPI,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=documented(FAILED, UNAVAILABLE),
        middleware=[
            Middleware(HiddenToken),
            Middleware(Traced),
            Middleware(RateLimit, live=live),
            Middleware(Edge),
            Middleware(Gate, callers=callers),
            Middleware(BodyLimit, max_bytes=live.settings.max_payload_bytes),
        ],
    )
    app.state.live = live
    app.state.watches = Watches(live)
    handle_errors(app)
    for router in (workflows, outputs, events, forks, signals, pauses, tasks, dead_letters, documents, schedules):
        app.include_router(router, responses=_GUARDED)
    add_approvals(app, live)
    _add_health(app, live, callers)
    _add_metrics(app, live)
    _add_pages(app)
    describe(app, live)
    return app


def _add_health(app: FastAPI, live: Runtime, callers: Callers) -> None:
    started = live.clock.monotonic()

    async def health() -> Response:
        """Whether this instance answers; it asks nobody else."""
        now = live.clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z")
        uptime = round(live.clock.monotonic() - started, 3)
        return Response(orjson.dumps({"status": "ok", "timestamp": now, "uptime": uptime}), media_type="application/json")

    readiness = Readiness(live)

    async def ready(request: Request) -> Response:
        """Whether what the gateway stands on answers. 503 when anything does not; asked at most every five seconds."""
        report = await readiness.report()
        told = report.as_dict()
        if not await callers.may_read(request.headers):
            told = {name: told[name] for name in ("status", "checks")}
        return Response(orjson.dumps(told), 200 if report.healthy else 503, media_type="application/json")

    app.add_api_route("/health", health, response_model=Health, tags=["platform"])
    unready: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "A check is unhealthy"}}
    app.add_api_route("/health/ready", ready, response_model=Ready, responses=unready, tags=["platform"])


def _add_metrics(app: FastAPI, live: Runtime) -> None:
    async def show_metrics() -> Response:
        """Metrics of this instance in Prometheus' text format."""
        await note_queued(live)
        return Response(metrics.text(), headers={"content-type": METRICS_CONTENT_TYPE})

    text: dict[int | str, dict[str, Any]] = {200: {"content": {METRICS_CONTENT_TYPE: {"schema": {"type": "string"}}}}}
    app.add_api_route(
        "/metrics",
        show_metrics,
        response_class=Response,
        responses=text | _GUARDED,
        tags=["platform"],
        dependencies=[Depends(allowed("read"))],
    )


def _add_pages(app: FastAPI) -> None:
    async def show_console() -> Response:
        return console()

    async def show_documentation() -> Response:
        return documentation(openapi_url=_OPENAPI, title=app.title)

    app.add_api_route("/", show_console, include_in_schema=False)
    app.add_api_route("/docs", show_documentation, include_in_schema=False)
