"""`agent-team cancel`: stops a workflow of a running platform."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import KEY_HINT, Id, Json, Url, checked_id, me, remote

if TYPE_CHECKING:
    from shared.config import Settings

EPILOG = KEY_HINT


def cancel(
    id: Id,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with the workflow.")] = "",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Stop a workflow and everything it has begun, and say what that was. One that has ended stays as it is."""
    with remote() as settings:
        run_async(_cancel(settings, url, checked_id(id), reason, as_json=as_json))


async def _cancel(settings: "Settings", url: str | None, id: str, reason: str, *, as_json: bool) -> None:
    from shared.cli.client import open_gateway
    from shared.cli.output import one_line, write_json

    path = f"/v1/workflows/{id}"
    async with open_gateway(settings, url) as gateway:
        before = await gateway.ask("GET", path)
        answer: dict[str, Any] = await gateway.ask("POST", f"{path}/cancel", body={"reason": reason, "by": me()})
        with gateway.understood():
            # It may have ended in between: then its status says so, unless somebody else has cancelled it just then.
            had_ended = before["finished_at"] is not None or answer["status"] != "CANCELLED"
            if as_json:
                write_json({**answer, "had_ended": had_ended})
            elif had_ended:
                typer.echo(one_line(f"{id} had ended before: {answer['status']}"))
            else:
                typer.echo(f"{id} is cancelled")
                for line in _lines(answer["receipt"]):
                    typer.echo(one_line(line, longest=600))


def _lines(receipt: dict[str, Any]) -> list[str]:
    from shared.cli.output import counted, dollars

    usage = receipt["usage"]
    running = [f"{one['step']} ({one['agent']}, attempt {one['attempt']})" for one in receipt["running_steps"]]
    spent = f"{usage['input_tokens'] + usage['output_tokens']:,} tokens, {dollars(usage['cost_microdollars'])} so far"
    return [
        _line("was at work", receipt["running"], running),
        _line("stopped before", receipt["stopped"], receipt["stopped_steps"]),
        f"had ended: {counted(receipt['finished'], 'step')}",
        f"used: {spent}" + ("; calls that were under way may still add to it" if receipt["usage_may_grow"] else ""),
    ]


def _line(what: str, number: int, names: list[str]) -> str:
    from shared.cli.output import counted, listed

    shown = listed([*names, *[""] * (number - len(names))])
    return f"{what}: {counted(number, 'step')}" + (f": {shown}" if names else "")
