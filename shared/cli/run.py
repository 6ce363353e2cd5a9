"""`agent-team run`: a workflow here and now, on the embedded platform."""

from typing import Annotated

import typer

from shared.cli.options import Params, Source, Verbose
from shared.cli.session import session
from shared.cli.workflows import complete_name


def run(
    workflow: Annotated[
        str,
        typer.Argument(metavar="WORKFLOW", help="A workflow's name, or the path of its .yaml file.", autocompletion=complete_name),
    ],
    source: Source = None,
    param: Params = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the finished workflow as one JSON object.")] = False,
    verbose: Verbose = False,
) -> None:
    """Run a workflow here and print its result. Exits with 0 on success, 1 when the workflow failed, 2 when it could not start."""
    with session(verbose=verbose) as settings:
        from shared.cli.inputs import find_definition, read_input
        from shared.cli.running import LocalRun
        from shared.runtime import Runtime

        live = Runtime(settings)
        definition = find_definition(live, workflow)
        given = read_input(
            definition, source=source, params=param if param is not None else (), max_bytes=settings.max_payload_bytes
        )
        raise typer.Exit(LocalRun(live, definition, given, as_json=as_json, verbose=verbose).execute())
