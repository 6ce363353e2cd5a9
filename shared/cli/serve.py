"""`agent-team serve`: the whole platform on one address of this machine."""

import asyncio
from contextlib import AsyncExitStack
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import Stopped, run_async
from shared.cli.options import Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping

    from shared.config import Settings

_LOCALHOST = "127.0.0.1"


class Bus(Enum):
    """What carries the messages."""

    MEMORY = "memory"
    REDIS = "redis"
    PUBSUB = "pubsub"


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; HOST or 127.0.0.1 when left out.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Port to listen on, 0 for any free one; PORT or 8080 when left out."),
    ] = None,
    bus: Annotated[
        Bus | None,
        typer.Option(
            help="memory: everything in this process. redis, pubsub: a process for each function and a real bus, as in the cloud. "
            "AGENT_BUS_PROVIDER when left out."
        ),
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="Ask a simulated Gemini, started beside the platform: real requests and quotas, made-up answers, no cost.",
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Serve the platform here: API, console and every function. Ctrl-C ends it."""
    with session(verbose=verbose) as settings:
        from shared.local.server import bind
        from shared.runtime.process import tell_sentry

        tell_sentry(settings, server_name="platform")
        provider = settings.agent_bus_provider if bus is None else bus.value
        # Before anything else is started, so that a port in use is told at once.
        with bind(_host(settings, host), settings.port if port is None else port) as listening:
            try:
                run_async(_serve_with_model(settings, listening, provider, simulate=simulate))
            except Stopped:
                # The ordinary end of a server, so not an error to whoever started it.
                typer.echo("agent-team has ended; what is unfinished goes on with the next start")


def _host(settings: "Settings", given: str | None) -> str:
    if given is not None:
        return given
    # The default of HOST is meant for a container; a machine that people work on is not to be opened unasked.
    return settings.host if "host" in settings.model_fields_set else _LOCALHOST


async def _serve_with_model(settings: "Settings", listening: "socket.socket", bus: str, *, simulate: bool) -> None:
    from shared.cli.output import describe_model, say

    async with AsyncExitStack() as stack:
        model, told = describe_model(settings), dict[str, str]()
        if simulate:
            from shared.local.simulator import open_simulation, simulation_variables

            settings = await stack.enter_async_context(open_simulation(settings))
            model = f"simulated {describe_model(settings)}: answers are taken from the input, and cost nothing"
            told = simulation_variables(settings)
            say(f"model: {model}")
        await (_serve(settings, listening, model) if bus == "memory" else _serve_fleet(settings, listening, bus, model, told))


async def _serve(settings: "Settings", listening: "socket.socket", model: str) -> None:
    from shared.cli.output import counted, listed, say
    from shared.local import open_platform
    from shared.local.platform import is_guarded
    from shared.local.server import create_app, serve

    async with open_platform(settings.model_copy(update={"agent_bus_provider": "memory"})) as platform:
        if platform.unfinished:
            say(f"resuming {counted(len(platform.unfinished), 'unfinished workflow')}: {listed(platform.unfinished)}")
        app = create_app(platform.runtime)
        functions = "/functions/NAME, where Pub/Sub would push to"
        address = listening.getsockname()[:2]
        access = _access(address[0], guarded=await is_guarded(platform.runtime))
        await serve(
            app,
            listening,
            on_started=lambda: _tell_where(settings, address, model, f"functions  {_url(*address)}{functions}", access),
        )


async def _serve_fleet(settings: "Settings", listening: "socket.socket", bus: str, model: str, told: "Mapping[str, str]") -> None:
    from shared.cli.output import say
    from shared.local.fleet import ENVIRONMENT_FILE, open_fleet

    host, port = listening.getsockname()[:2]
    listening.close()  # the gateway's own process listens there
    say(f"starting a process for each function, on {bus} ...", style="dim")
    async with open_fleet(settings, bus=bus, host=host, port=port, variables=told) as fleet:
        what = f"{len(fleet.functions)} processes on {bus}"
        served = ", ".join(f"{name} {url}" for name, url in fleet.addresses.items() if name != "gateway")
        variables = settings.agent_team_home.resolve() / ENVIRONMENT_FILE
        _tell_where(
            settings,
            (host, port),
            model,
            f"functions  {what}; over HTTP: {served}\n"
            f"  commands   set -a; . {variables}; set +a: then publish, dead-letters and worker speak with this platform",
            _access(host, guarded=fleet.guarded),
        )
        await asyncio.Event().wait()


def _url(host: str, port: int) -> str:
    shown = _LOCALHOST if ip_address(host).is_unspecified else host
    return f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"


def _access(host: str, *, guarded: bool) -> str:
    reach = "this machine" if ip_address(host).is_loopback else "every network that this machine is in"
    if guarded:
        return f"for callers with a key, from {reach}; agent-team keys api list shows whose"
    return f"open, without API keys, to {reach}; agent-team keys api add NAME closes it"


def _tell_where(settings: "Settings", address: tuple[str, int], model: str, functions: str, access: str) -> None:
    from shared.local.home import LOG_FILE

    url = _url(*address)
    typer.echo(
        f"agent-team is ready on {url}; Ctrl-C ends it\n"
        f"  console    {url}/\n"
        f"  API        {url}/v1/workflows, documented at {url}/docs\n"
        f"  {functions}\n"
        f"  access     {access}\n"
        f"  model      {model}\n"
        f"  data       {settings.agent_team_home.resolve()}, logs in {LOG_FILE}"
    )
