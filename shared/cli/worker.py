"""`agent-team worker`: consumes the Redis bus, a process of production like a function's server."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import Stopped, run_async
from shared.cli.session import told_plainly

if TYPE_CHECKING:
    from shared.runtime import Runtime
    from shared.runtime.spec import FunctionSpec


def worker(
    function: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A function to work for, several times for several; all when left out.", show_default=False
        ),
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=1, max=65535, help="Serve this worker's metrics, how far it is behind among them, on HOST."
        ),
    ] = None,
) -> None:
    """Work on the messages of functions, from the Redis bus. Logs are JSON on standard error; Ctrl-C or SIGTERM ends it."""
    with told_plainly():
        from shared.runtime.process import open_runtime
        from shared.runtime.spec import load_functions

        names = _chosen(load_functions(), function)
        live = open_runtime(serves=names)
        with told_plainly(logged=True):
            try:
                with _shown_metrics(live.settings.host, metrics_port):
                    run_async(_work(live, names))
            except Stopped:
                # The ordinary end of a worker, so not an error to whoever started it.
                typer.echo("agent-team worker has ended; what it did not finish was handed back")


@contextmanager
def _shown_metrics(host: str, port: int | None) -> Iterator[None]:
    from shared.errors import ConfigurationError
    from shared.telemetry import metrics

    with ExitStack() as stack:
        if port is not None:
            try:
                stack.callback(metrics.serve(host, port))
            except OSError as error:
                raise ConfigurationError(
                    f"metrics cannot be served on {host}:{port} ({error.strerror}); choose another --metrics-port, or another HOST"
                ) from error
        yield


def _chosen(specs: "dict[str, FunctionSpec]", wanted: Sequence[str] | None) -> list[str]:
    from shared.cli.output import listed
    from shared.errors import InputError

    consumers = [name for name, spec in specs.items() if spec.subscriptions()]
    if wanted is None:
        return consumers
    for name in wanted:
        if name not in consumers:
            why = "is not set off by messages" if name in specs else "is no function"
            raise InputError(f"{name} {why}; a worker can work for: {listed(consumers)}")
    return list(dict.fromkeys(wanted))


async def _work(live: "Runtime", names: Sequence[str]) -> None:
    import asyncio

    from shared.errors import ConfigurationError
    from shared.runtime.joining import join, tune_collector

    if live.settings.agent_bus_provider != "redis":
        raise ConfigurationError(
            f"AGENT_BUS_PROVIDER is {live.settings.agent_bus_provider}; a worker consumes the Redis bus: set it to redis"
        )
    try:
        await _check_database(live, names)
        await join(live, names)
        tune_collector()
        typer.echo(f"agent-team worker is ready for {', '.join(names)}")
        await asyncio.Event().wait()
    finally:
        await live.close()


async def _check_database(live: "Runtime", names: Sequence[str]) -> None:
    from shared.cli.output import listed
    from shared.errors import ConfigurationError
    from shared.state import migrations

    # An agent without the database lacks a tool, and works.
    stateful = [name for name in names if "DATABASE_URL" in live.functions[name].secrets and not live.functions[name].is_agent]
    if stateful and live.settings.database_url is not None:
        await migrations.require(live.database_url)
    elif stateful and live.settings.supabase_url is None:
        # The embedded database belongs to the platform in one process.
        raise ConfigurationError(f"DATABASE_URL is not set, and {listed(stateful)} cannot work without the database")
