"""`agent-team dead-letters`: messages that nobody could handle, and sending them again."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, UrlOrHere, Verbose
from shared.cli.session import FAILURE, session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.runtime.redrive import Wanted

app = typer.Typer(help="List, show and redrive messages that used up their delivery attempts.", no_args_is_help=True)

_SHOWN = (
    "id", "state", "cause", "reason", "last_error", "function", "subscription", "topic", "message_id", "workflow", "step",
    "attempt", "attempts", "recorded_at", "redriven_at", "redrive_count", "blocked", "size_bytes", "attributes", "data"
)  # fmt: skip

_Cause = Annotated[
    str | None, typer.Option("--cause", metavar="CAUSE", help="Only this cause, or all that begin with it: store, rejected, …")
]
_Function = Annotated[str | None, typer.Option("--function", metavar="NAME", help="Only what this function gave up.")]
_Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only what was recorded since: 2026-01-31T12:00Z.")]
_Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only what was recorded before.")]


@app.command(name="list")
def list_(
    cause: _Cause = None,
    function: _Function = None,
    workflow: Annotated[str | None, typer.Option(metavar="ID", help="Only what is about this workflow.")] = None,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="Only waiting, redriven or again (dead again).")] = None,
    since: _Since = None,
    until: _Until = None,
    cursor: Annotated[int | None, typer.Option(metavar="ID", min=1, help="Only those older than this one.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many.")] = 50,
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The newest dead letters first."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import say, write_json

        given = {
            "cause": cause,
            "function": function,
            "workflow": workflow,
            "state": _state(state),
            "since": _moment("--since", since),
            "until": _moment("--until", until),
        }
        wanted = {name: value for name, value in given.items() if value is not None}
        page = run_async(_list(settings, url, wanted, cursor, limit))
        if as_json:
            write_json(page)
            return
        for letter in page["items"]:
            _write(_line(letter))
        if not page["items"]:
            say("there are none")
        if page["next_cursor"] is not None:
            say(f"there are more: --cursor {page['next_cursor']}")


@app.command()
def show(
    id: Annotated[int, typer.Argument(metavar="ID", min=1, help="The letter's number.")],
    data: Annotated[bool, typer.Option("--data", help="Show the message itself, too.")] = False,
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """One dead letter: what it was, why it failed, and whether it can be redriven."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json

        letter = run_async(_show(settings, url, id, data))
        if as_json:
            write_json(letter)
        else:
            for name in _SHOWN:
                _write(f"{name}: {_shown(name, letter[name])}")


@app.command()
def redrive(
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="The letters' numbers; else all that fit.")] = None,
    cause: _Cause = None,
    function: _Function = None,
    since: _Since = None,
    until: _Until = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Also what is dead again after a redrive; by ID even what was not heard of since."),
    ] = False,
    rate: Annotated[float | None, typer.Option(metavar="N", help="Letters per second; 10 when left out.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this only what would be done is told.")] = False,
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Send dead letters again, each to the subscription that gave it up. A dry run without --yes.

    A workflow that a letter had failed is resumed. Exits with 1 when a letter that was named is refused.
    """
    with session(verbose=verbose) as settings:
        from shared.cli.output import write_json
        from shared.errors import InputError
        from shared.runtime.redrive import DEFAULT_RATE, Wanted

        if ids and any(given is not None for given in (cause, function, since, until)):
            raise InputError("give IDs or a filter, not both")
        wanted = Wanted(
            ids=tuple(dict.fromkeys(ids)) if ids else (),
            cause=cause,
            function=function,
            since=_moment("--since", since),
            until=_moment("--until", until),
            again=again,
        )
        outcome = run_async(_redrive(settings, url, wanted, dry_run=not yes, rate=DEFAULT_RATE if rate is None else rate))
        if as_json:
            write_json(outcome)
        else:
            _tell(outcome, rate=DEFAULT_RATE if rate is None else rate)
        if ids and outcome["refused"]:
            raise typer.Exit(FAILURE)


async def _list(settings: "Settings", url: str | None, wanted: dict[str, Any], cursor: int | None, limit: int) -> dict[str, Any]:
    from shared.cli.letters import open_letters

    async with open_letters(settings, url) as letters:
        return await letters.listed(wanted, cursor=cursor, limit=limit)


async def _show(settings: "Settings", url: str | None, id: int, data: bool) -> dict[str, Any]:
    from shared.cli.letters import open_letters

    async with open_letters(settings, url) as letters:
        return await letters.one(id, data=data)


async def _redrive(settings: "Settings", url: str | None, wanted: "Wanted", *, dry_run: bool, rate: float) -> dict[str, Any]:
    from shared.cli.letters import open_letters, redrive_all

    async with open_letters(settings, url) as letters:
        return await redrive_all(letters, wanted, dry_run=dry_run, rate=rate)


def _tell(outcome: dict[str, Any], *, rate: float) -> None:
    from shared.cli.output import counted, say

    verb = "would redrive" if outcome["dry_run"] else "redriven:"
    which = f": {', '.join(map(str, outcome['ids']))}" if outcome["ids"] else ""
    _write(f"{verb} {outcome['redriven']:,} of {counted(outcome['matched'], 'dead letter')}{which}")
    for refusal in outcome["refused"]:
        _write(f"left as it is: {refusal['id']}: {refusal['reason']}")
    if outcome["dry_run"]:
        say(f"nothing was sent; the same with --yes does it, {rate:g} per second")


def _line(letter: dict[str, Any]) -> str:
    error = letter["last_error"]
    why = letter["reason"] if error is None else f"{error['type']}: {error['message']}".removesuffix(": ")
    names = ("id", "state", "recorded_at", "subscription", "message_id", "cause")
    return "  ".join([*(str(letter[name]) for name in names), why])


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "data":
        from base64 import b64decode

        return b64decode(value).decode("utf-8", "replace")
    if isinstance(value, dict):
        return ", ".join(f"{key}={text}" for key, text in value.items())
    return str(value)


def _write(text: str) -> None:
    from shared.cli.output import printable

    typer.echo(printable(text))


def _state(given: str | None) -> str | None:
    from shared.errors import InputError

    if given not in (None, "waiting", "redriven", "again"):
        raise InputError(f"--state {given[:60]!r} is no state; there are waiting, redriven and again")
    return given


def _moment(option: str, given: str | None) -> datetime | None:
    from shared.errors import InputError

    if given is None:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise InputError(f"{option} {given[:60]!r} is no time; write it like 2026-01-31T12:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
