"""Entry points: what functions-framework finds in a function's `main`, and what the local platform asks it for.

Under functions-framework the entry point serves the push door over HTTP, and says with GET which function it is. The local platform
takes the same handlers from `Function.handlers` and joins them to its bus without HTTP in between.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from shared.bus import Handler
from shared.errors import NotFound
from shared.runtime.contract import Run
from shared.runtime.door import push
from shared.runtime.letters import addressed
from shared.runtime.pipeline import Pipeline, Work
from shared.runtime.wiring import Runtime, runtime

Handlers = Mapping[str, Handler]
"""Topic → what handles its deliveries."""
HttpFunction = Callable[[Request], Any]


@dataclass(frozen=True, slots=True)
class Function:
    """One function, before it is joined to live objects."""

    name: str
    handlers: Callable[[Runtime], Handlers]
    app: Callable[[Runtime], ASGIApp] | None = None
    """What answers its HTTP requests, when they are not pushes."""


def agent(file: str, run: Run | None = None) -> HttpFunction:
    """The entry point of the agent whose `main.py` is `file`. Without `run`, its prompt is all that it does."""
    folder = Path(file).parent

    def handlers(live: Runtime) -> Handlers:
        return {f"agent-{folder.name}": _agent_pipeline(live, folder, run)}

    return on_messages(file, handlers)


def on_messages(file: str, handlers: Callable[[Runtime], Handlers]) -> HttpFunction:
    """The entry point of a function that is set off by messages."""

    def for_this_subscription(live: Runtime) -> Handlers:
        return {topic: addressed(handler) for topic, handler in handlers(live).items()}

    return _entry(Function(Path(file).parent.name, for_this_subscription))


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
    def app() -> ASGIApp:
        assert function.app is not None
        return function.app(runtime(function.name))

    @cache
    def handlers() -> Handlers:
        return function.handlers(runtime(function.name))

    async def entry(request: Request) -> Any:
        if function.app is not None:
            return app()
        live = runtime(function.name)
        if request.method == "GET":
            # Whoever releases it asks each new revision first: with its settings whole and its prompt read, it says who it is.
            handlers()
            return JSONResponse({"status": "ok", "function": function.name})
        return await push(request, handlers(), max_bytes=live.settings.max_payload_bytes, tokens=live.push_tokens)

    # functions-framework knows a function by its name.
    entry.__name__ = entry.__qualname__ = function.name
    entry.__dict__["function"] = function
    return cast("HttpFunction", functions_framework.aio.http(entry))
