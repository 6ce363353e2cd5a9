"""`agent-team watch`: a workflow of a running platform, as it happens."""

from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import Stopped, run_async
from shared.cli.options import KEY_HINT, Id, Url, checked_id, remote
from shared.cli.session import FAILURE, SUCCESS

if TYPE_CHECKING:
    from shared.config import Settings

EPILOG = f"Broken connections are made anew, without gap or copy. {KEY_HINT}"


def watch(
    id: Id,
    url: Url = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every event as one JSON object a line.")] = False,
) -> None:
    """Follow a workflow to its end and print its result. Exits with 0 on success, 1 when it failed. Ctrl-C leaves it running."""
    with remote() as settings:
        from shared.cli.following import command
        from shared.cli.output import say

        checked_id(id)
        try:
            succeeded = run_async(_watch(settings, url, id, as_json=as_json))
        except Stopped:
            say(f"{id} goes on; come back to it with: {command(id, url)}")
            raise
        raise typer.Exit(SUCCESS if succeeded else FAILURE)


async def _watch(settings: "Settings", url: str | None, id: str, *, as_json: bool) -> bool:
    from rich.console import Console
    from rich.text import Text

    from shared.cli.client import open_gateway
    from shared.cli.following import command, follow, follow_as_json
    from shared.cli.outcome import reason, summary
    from shared.cli.output import say, say_error, write_result

    async with open_gateway(settings, url) as gateway:
        again = command(id, url)
        if as_json:
            document = await follow_as_json(gateway, id, again=again, tell=say)
        else:
            console = Console(highlight=False)
            document = await follow(gateway, id, again=again, console=console)
        with gateway.understood():
            succeeded: bool = document["status"] == "SUCCESS"
            if as_json:
                return succeeded
            console.print(Text(summary(document), style="green" if succeeded else "red"), soft_wrap=True)
            if succeeded:
                typer.echo("")
                write_result(document["output"])
            else:
                say_error(f"{reason(document)}; every step is told by: agent-team show {id}")
    return succeeded
