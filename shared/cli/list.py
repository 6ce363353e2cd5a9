"""`agent-team list`: the workflows of a running platform."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import KEY_HINT, Json, Url, remote

if TYPE_CHECKING:
    from shared.config import Settings

_HEADS = ("id", "workflow", "status", "steps", "tokens", "cost", "created")

EPILOG = KEY_HINT


def list_(
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help="Only those in it: queued, running, waiting, success, failed or cancelled."),
    ] = None,
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this definition.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 20,
    cursor: Annotated[str | None, typer.Option(metavar="ID", help="Only those older than this one.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """The newest workflows first."""
    with remote() as settings:
        given = {"status": None if status is None else status.upper(), "workflow": workflow, "cursor": cursor}
        wanted = {name: value for name, value in given.items() if value is not None}
        run_async(_list(settings, url, {**wanted, "limit": limit}, as_json=as_json))


async def _list(settings: "Settings", url: str | None, params: dict[str, Any], *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.output import say, write_json, write_table

    async with open_gateway(settings, url) as gateway:
        page = await gateway.ask("GET", "/v1/workflows", params=params)
        with gateway.understood():
            rows = [_row(one) for one in page["items"]]
            more = page["next_cursor"]
            if as_json:
                write_json(page)
                return
            if rows:
                write_table(_HEADS, rows, numbers=_HEADS[3:6])
            else:
                say("there are none; agent-team submit starts one")
            if more is not None:
                say(f"there are more: --cursor {more}", style="dim")


def _status(one: dict[str, Any]) -> str:
    if one["paused_at"] is not None:
        return f"{one['status']} (paused)"
    return one["status"] if one["queue"] is None else f"{one['status']} ({one['queue']['position']:,})"


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    usage = one["usage"]
    steps = f"{one['steps_total'] - one['steps_open']}/{one['steps_total']}"
    tokens = f"{usage['input_tokens'] + usage['output_tokens']:,}"
    what = (one["id"], one["workflow"], _status(one), steps)
    return (*what, tokens, dollars(usage["cost_microdollars"]), f"{one['created_at'][:19].replace('T', ' ')}Z")
