"""Entry points: what functions-framework finds in a function's `main`, and what the local platform asks it for.

Under functions-framework the entry point serves the push door over HTTP, and says with GET which function it is. The local platform
takes the same handlers from `Function.handlers` and joins them to its bus without HTTP in between.
"""

import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from shared.bus import Delivery, Handler, Outcome
from shared.errors import AgentTeamError, NotFound
from shared.runtime.contract import Run
from shared.runtime.door import push
from shared.runtime.letters import addressed
from shared.runtime.pipeline import Pipeline, Work
from shared.runtime.starting import started
from shared.runtime.wiring import Runtime
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)

Handlers = Mapping[str, Handler]
"""Topic → what handles its deliveries."""
HttpFunction = Callable[[Request], Any]
_SCHEDULER = "x-cloudscheduler"
"""A header of Cloud Scheduler's calls. It proves nothing: IAM says who may call, and a timer goes on with what is due, no more."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function, before it is joined to live objects."""

    name: str
    handlers: Callable[[Runtime], Handlers]
    app: Callable[[Runtime], ASGIApp] | None = None
    """What answers its HTTP requests, when they are not pushes."""
    timer: Callable[[Runtime], Awaitable[None]] | None = None
    """What the scheduler's calls do, where messages set it off besides."""


def agent(file: str, run: Run | None = None) -> HttpFunction:
    """The entry point of the agent whose `main.py` is `file`. Without `run`, its prompt is all that it does."""
    folder = Path(file).parent

    def handlers(live: Runtime) -> Handlers:
        return {f"agent-{folder.name}": _agent_pipeline(live, folder, run)}

    return on_messages(file, handlers)


def on_messages(
    file: str, handlers: Callable[[Runtime], Handlers], *, timer: Callable[[Runtime], Awaitable[None]] | None = None
) -> HttpFunction:
    """The entry point of a function that is set off by messages, and with `timer` by the scheduler too."""

    def for_this_subscription(live: Runtime) -> Handlers:
        return {topic: addressed(_with_fresh_keys(live, handler)) for topic, handler in handlers(live).items()}

    return _entry(Function(Path(file).parent.name, for_this_subscription, timer=timer))


def on_http(file: str, app: Callable[[Runtime], ASGIApp]) -> HttpFunction:
    """The entry point of a function that answers HTTP requests."""
    return _entry(Function(Path(file).parent.name, lambda _live: {}, app))


def worker(live: Runtime, function: str, work: Work) -> Pipeline:
    """A pipeline for work that can be repeated: nothing is kept but the mark that it is done."""
    return Pipeline(live.link, function, work, longest_seconds=live.functions[function].ack_deadline_seconds, keeps_reply=False)


def load(name: str) -> Function:
    """The function called `name`. Raises NotFound."""
    try:
        module = importlib.import_module(f"functions.{name}.main")
    except ModuleNotFoundError as error:
        if error.name is not None and f"functions.{name}.main".startswith(error.name):
            raise NotFound(f"there is no function {name}; every folder of functions/ is one") from error
        raise
    return cast("Function", getattr(module, name).function)


def _with_fresh_keys(live: Runtime, handler: Handler) -> Handler:
    async def handle(delivery: Delivery) -> Outcome:
        await live.ring.fresh()
        return await handler(delivery)

    return handle


async def _timed(timer: Callable[[Runtime], Awaitable[None]], live: Runtime) -> Response:
    try:
        await timer(live)
    except AgentTeamError as error:
        _log.error("what was due is left to the next time", extra={"error": describe_error(error)})
        return Response(status_code=503)
    return Response(status_code=204)


async def _kept_up(live: Runtime) -> None:
    """Have the keys fresh before a request is answered that may sign. Without any, only what signs fails."""
    try:
        await live.ring.fresh()
    except AgentTeamError as error:
        _log.error("the signing keys cannot be read", extra={"error": describe_error(error)})


def _agent_pipeline(live: Runtime, folder: Path, run: Run | None) -> Pipeline:
    from shared.ai import load_prompt
    from shared.runtime.spec import load_function
    from shared.runtime.team import AgentWork, ModelSettings, answer_prompt

    spec = load_function(folder)
    prompt_file = folder / "prompt.md"
    work = AgentWork(
        folder.name,
        answer_prompt if run is None else run,
        prompt=load_prompt(prompt_file) if prompt_file.exists() else None,
        model=live.model,
        settings=ModelSettings(
            temperature=live.settings.ai_temperature,
            max_tokens=live.settings.ai_max_tokens,
            tool_seconds=live.settings.default_tool_timeout_ms / 1000,
        ),
        sender=live.sender(folder.name),
        clock=live.clock,
        limiter=live.guards.limiter,
        cancellations=live.cancellations,
        progress=live.progress,
        outputs=live.outputs,
        longest_seconds=spec.timeout_seconds,
        tools=live.tools,
    )
    return Pipeline(live.link, folder.name, work, longest_seconds=spec.ack_deadline_seconds, keeps_reply=True)


def _entry(function: Function) -> HttpFunction:
    import functions_framework.aio

    # Made with the first request, inside the event loop that clients are bound to.
    @cache
    def app(live: Runtime) -> ASGIApp:
        assert function.app is not None
        return function.app(live)

    @cache
    def handlers(live: Runtime) -> Handlers:
        return function.handlers(live)

    async def entry(request: Request) -> Any:
        try:
            live = await started(function.name)
        except AgentTeamError as error:
            # Somebody will put it right: until then messages wait on the bus. The log is not set up yet, and has no fields.
            _log.error("%s cannot start: %s", function.name, error)
            return Response(status_code=503)
        if function.app is not None:
            await _kept_up(live)
            return app(live)
        if request.method == "GET":
            # Whoever releases it asks each new revision first: with its settings whole and its prompt read, it says who it is.
            handlers(live)
            return JSONResponse({"status": "ok", "function": function.name})
        if function.timer is not None and _SCHEDULER in request.headers:
            return await _timed(function.timer, live)
        return await push(request, handlers(live), max_bytes=live.settings.max_payload_bytes, tokens=live.push_tokens)

    # functions-framework knows a function by its name.
    entry.__name__ = entry.__qualname__ = function.name
    entry.__dict__["function"] = function
    return cast("HttpFunction", functions_framework.aio.http(entry))
