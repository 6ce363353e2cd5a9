"""`agent-team serve`: the whole platform on one address of this machine."""

from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import Stopped, run_async
from shared.cli.session import session

if TYPE_CHECKING:
    import socket

    from shared.config import Settings

_LOCALHOST = "127.0.0.1"


def serve(
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address to listen on; HOST or 127.0.0.1 when left out.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Port to listen on, 0 for any free one; PORT or 8080 when left out."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs on standard error.")] = False,
) -> None:
    """Serve the platform here: API, console and every function's push door. Ctrl-C ends it."""
    with session(verbose=verbose) as settings:
        from shared.local.server import bind

        # Before anything else is started, so that a port in use is told at once.
        with bind(_host(settings, host), settings.port if port is None else port) as listening:
            try:
                run_async(_serve(settings, listening))
            except Stopped:
                # The ordinary end of a server, so not an error to whoever started it.
                typer.echo("agent-team has ended; what is unfinished goes on with the next start")


def _host(settings: "Settings", given: str | None) -> str:
    if given is not None:
        return given
    # The default of HOST is meant for a container; a machine that people work on is not to be opened unasked.
    return settings.host if "host" in settings.model_fields_set else _LOCALHOST


async def _serve(settings: "Settings", listening: "socket.socket") -> None:
    from shared.cli.output import counted, listed, say
    from shared.local import open_platform
    from shared.local.server import create_app, serve

    async with open_platform(settings) as platform:
        if platform.unfinished:
            say(f"resuming {counted(len(platform.unfinished), 'unfinished workflow')}: {listed(platform.unfinished)}")
        app = create_app(platform.runtime)
        await serve(app, listening, on_started=lambda: _tell_where(settings, listening))


def _tell_where(settings: "Settings", listening: "socket.socket") -> None:
    from shared.cli.output import describe_model
    from shared.local.home import LOG_FILE

    address, port = listening.getsockname()[:2]
    shown = _LOCALHOST if ip_address(address).is_unspecified else address
    url = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    reach = "this machine" if ip_address(address).is_loopback else "every network that this machine is in"
    typer.echo(
        f"agent-team is ready on {url}; Ctrl-C ends it\n"
        f"  console    {url}/\n"
        f"  API        {url}/v1/workflows, documented at {url}/docs\n"
        f"  functions  {url}/functions/NAME, where Pub/Sub would push to\n"
        f"  access     open, without API keys, to {reach}\n"
        f"  model      {describe_model(settings)}\n"
        f"  data       {settings.agent_team_home.resolve()}, logs in {LOG_FILE}"
    )
