"""`agent-team rerun`: a workflow that failed goes on from the step that failed it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Id, Json, UrlOrHere, Verbose, checked_id
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings


def rerun(
    id: Id,
    step: Annotated[str | None, typer.Option("--step", metavar="STEP", help="To be sure: the step that failed it.")] = None,
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Let a workflow that failed go on from the step that failed it, with all its retries."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json

        resumed = run_async(_rerun(settings, url, id, step))
        if as_json:
            write_json(resumed)
        else:
            typer.echo(f"{resumed['id']} goes on: {resumed['status']}")


async def _rerun(settings: "Settings", url: str | None, id: str, step: str | None) -> dict[str, Any]:
    from shared.cli.travel import open_workflows

    async with open_workflows(settings, url) as workflows:
        return await workflows.rerun(checked_id(id), step)
