"""Every minute, by the scheduler: due timers, expired leases, deadlines, queue, schedules → advance → publish; then retention."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from shared.errors import Transient
from shared.runtime import Runtime, on_http
from shared.runtime.queue import note_queued
from shared.runtime.retention import purge_old
from shared.runtime.schedules import start_due
from shared.runtime.tracing import Traced

_PURGES = 20
"""Batches of retention at most, so that a call takes less than a second even where much is left to be deleted."""


def _app(live: Runtime) -> ASGIApp:
    dispatcher = live.dispatcher("sweeper")

    async def tick(_request: Request) -> Response:
        try:
            await dispatcher.apply([{"type": "tick"}])
            await start_due(live, dispatcher)
            await purge_old(live, max_batches=_PURGES)
        except Transient:
            return Response(status_code=503)
        await note_queued(live)
        return Response(status_code=204)

    return Starlette(routes=[Route("/", tick, methods=["POST"])], middleware=[Middleware(Traced)])


sweeper = on_http(__file__, _app)
