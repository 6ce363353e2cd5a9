"""HTTP: the REST API, the console, health and metrics."""

from starlette.types import ASGIApp

from shared.runtime import Runtime, on_http


def _app(live: Runtime) -> ASGIApp:
    # Whoever loads this module only to learn what the function subscribes to does not pay for FastAPI.
    from functions.gateway.api import create_app

    return create_app(live)


gateway = on_http(__file__, _app)
