"""`agent-team pause` and `resume`: a workflow of a running platform stops for a while, and goes on."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import KEY_HINT, Id, Json, Url, checked_id, me, remote

if TYPE_CHECKING:
    from shared.config import Settings

EPILOG = KEY_HINT
_Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the history.")]


def pause(id: Id, reason: _Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Start nothing more of a workflow until it is resumed. What is at work ends and counts; deadlines run on."""
    with remote() as settings:
        run_async(_tell(settings, url, checked_id(id), "pause", reason, as_json=as_json))


def resume(id: Id, reason: _Reason = "", url: Url = None, as_json: Json = False) -> None:
    """Let a paused workflow go on, at once or with the next free slot."""
    with remote() as settings:
        run_async(_tell(settings, url, checked_id(id), "resume", reason, as_json=as_json))


async def _tell(settings: "Settings", url: str | None, id: str, verb: str, reason: str, *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.output import one_line, write_json

    async with open_gateway(settings, url) as gateway:
        answer: dict[str, Any] = await gateway.ask("POST", f"/v1/workflows/{id}/{verb}", body={"reason": reason, "by": me()})
        with gateway.understood():
            if as_json:
                write_json(answer)
            elif answer["paused_at"] is None:
                typer.echo(one_line(f"{id} goes on: {answer['status']}"))
            else:
                ends = "; what is at work ends first" if answer["status"] == "RUNNING" else ""
                typer.echo(one_line(f"{id} is paused{ends}; it goes on with: agent-team resume {id}"))
