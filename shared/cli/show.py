"""`agent-team show`: one workflow, its steps, and what they used."""

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import OR_HERE, Id, checked_id
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings

_STEP_HEADS = ("step", "agent", "status", "attempts", "tokens", "cost", "time")
_MODEL_HEADS = ("model", "calls", "input tokens", "output tokens", "cost")


def show(
    id: Id,
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help=OR_HERE)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole workflow as one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs on standard error.")] = False,
) -> None:
    """One workflow: the attempts, tokens, cost and time of each step, and what each model was asked."""
    with session(verbose=verbose) as settings:
        run_async(_show(settings, url, checked_id(id), as_json=as_json))


async def _show(settings: "Settings", url: str | None, id: str, *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.here import open_here

    if url is not None or settings.agent_team_url is not None:
        async with open_gateway(settings, url) as gateway:
            document = await gateway.ask("GET", f"/v1/workflows/{id}")
            with gateway.understood():
                _tell(document, as_json=as_json)
    else:
        async with open_here(settings) as live:
            _tell(await live.store.get(id), as_json=as_json)


def _tell(document: dict[str, Any], *, as_json: bool) -> None:
    from shared.cli.output import in_queue, one_line, printable, write_json, write_table
    from shared.cli.progress import what_it_waits_for

    if as_json:
        write_json(document)
        return
    typer.echo(printable(f"{document['workflow']} v{document['version']} · {document['id']} · {document['status']}"))
    if document["queue"] is not None:
        typer.echo(in_queue(document["queue"]))
    if document["paused_at"] is not None:
        by = f" by {document['paused_by']}" if document["paused_by"] else ""
        typer.echo(one_line(f"paused at {document['paused_at']}{by}; it goes on with: agent-team resume {document['id']}"))
    if document["forked_from"] is not None:
        typer.echo(f"forked from {document['forked_from']} at entry {document['forked_at']}")
    if document["error"] is not None:
        typer.echo(one_line(f"{document['error']['type']}: {document['error']['message']}", longest=600))
    typer.echo("")
    write_table(_STEP_HEADS, [_step(step) for step in document["steps"]], numbers=_STEP_HEADS[3:])
    for step in document["steps"]:
        if step["waiting"] is not None:
            typer.echo("")
            typer.echo(printable(f"{step['id']} waits {what_it_waits_for(document['id'], step['waiting'])}"))
    typer.echo("")
    usages = [*sorted(document["models"].items()), ("total", document["usage"])]
    write_table(_MODEL_HEADS, [_usage(name, usage) for name, usage in usages], numbers=_MODEL_HEADS[1:])


def _step(step: dict[str, Any]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    usage = step["usage"]
    tokens = usage["input_tokens"] + usage["output_tokens"]
    what = (step["id"], step["agent"], step["status"], "reused" if step["reused"] else str(step["attempt"]))
    return (*what, f"{tokens:,}", dollars(usage["cost_microdollars"]), _time(step["started_at"], step["finished_at"]))


def _usage(name: str, usage: dict[str, int]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    counts = (f"{usage[key]:,}" for key in ("model_calls", "input_tokens", "output_tokens"))
    return (name, *counts, dollars(usage["cost_microdollars"]))


def _time(started: str | None, finished: str | None) -> str:
    if started is None or finished is None:
        return "-"
    return f"{(datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds():.1f} s"
