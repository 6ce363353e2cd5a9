"""`agent-team diff`: what differs between two runs."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, UrlOrHere, Verbose, checked_id
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings

_HEADS = ("step", "status", "status there", "calls", "calls there", "cost", "cost there")


def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A workflow's id.")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Two workflows side by side: the steps that differ, where their outputs do, and what each run used."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json

        difference = run_async(_compare(settings, url, first, second))
        if as_json:
            write_json(difference)
        else:
            _tell(difference)


async def _compare(settings: "Settings", url: str | None, first: str, second: str) -> dict[str, Any]:
    from shared.cli.travel import open_workflows
    from shared.workflows import compare

    ids = [checked_id(first), checked_id(second)]
    async with open_workflows(settings, url) as workflows:
        return compare(*[await workflows.get(id) for id in ids])


def _tell(difference: dict[str, Any]) -> None:
    from shared.cli.output import counted, printable, write_table

    for mark, head in zip("AB", difference["workflows"], strict=True):
        origin = "" if head["forked_from"] is None else f" · forked from {head['forked_from']} at {head['forked_at']}"
        typer.echo(printable(f"{mark}: {head['workflow']} v{head['version']} · {head['id']} · {head['status']}{origin}"))
    typer.echo("")
    rows = [_row(step["id"], step["statuses"], step["usages"]) for step in difference["steps"]]
    heads = difference["workflows"]
    rows.append(_row("total", [head["status"] for head in heads], [head["usage"] for head in heads]))
    write_table(_HEADS, rows, numbers=_HEADS[3:])
    typer.echo("")
    for name in ("input", "error"):
        _tell_changes(name, difference[name])
    for step in difference["steps"]:
        _tell_prompts(step["id"], step["prompts"])
        _tell_changes(step["id"], step["output"])
    _tell_changes("output", difference["output"])
    typer.echo(f"{counted(difference['same_steps'], 'step')} the same")


def _row(name: str, statuses: list[str | None], usages: list[dict[str, int] | None]) -> tuple[str, ...]:
    from shared.cli.output import dollars

    calls = ("-" if usage is None else f"{usage['model_calls']:,}" for usage in usages)
    costs = ("-" if usage is None else dollars(usage["cost_microdollars"]) for usage in usages)
    return (name, *("-" if status is None else status for status in statuses), *calls, *costs)


def _tell_prompts(name: str, prompts: list[list[dict[str, Any]] | None]) -> None:
    from shared.cli.output import described_prompt, one_line

    ours, theirs = prompts
    if ours is not None and theirs is not None and ours != theirs:
        typer.echo(one_line(f"{name}: asked with another prompt"))
        for mark, one in zip("-+", prompts, strict=True):
            typer.echo(f"  {mark} {one_line(', '.join(described_prompt(prompt) for prompt in one or ()) or 'none')}")


def _tell_changes(name: str, found: dict[str, Any]) -> None:
    from shared.cli.output import one_line

    for change in found["changes"]:
        place = f"{name}: {change['path']}" if change["path"] else name
        typer.echo(one_line(place))
        for mark, value in zip("-+", change["values"], strict=True):
            typer.echo(f"  {mark} {one_line(_text(value))}")
    if found["more"]:
        typer.echo(one_line(f"{name}: {found['more']} more places"))


def _text(value: Any) -> str:
    import orjson

    return value if isinstance(value, str) else orjson.dumps(value).decode()
