"""`agent-team purge`: delete what is old."""

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings

_AGE = re.compile(r"([0-9]{1,5})([dhm])")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


def purge(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="How long ago it ended: 30d, 12h or 45m.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it. Without this only what would be deleted is told.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Delete workflows that ended, with their steps and histories, and dead letters. A dry run without --yes.

    What has not ended is never touched. The sweeper does the same by itself after RETENTION_DAYS.
    """
    with session(verbose=verbose) as settings:
        from shared.cli.output import counted, say, write_json

        gone = run_async(_purge(settings, _age(older_than), yes=yes))
        if as_json:
            write_json({**gone, "dry_run": not yes})
            return
        verb = "deleted" if yes else "would delete"
        typer.echo(f"{verb} {counted(gone['workflows'], 'workflow')} and {counted(gone['dead_letters'], 'dead letter')}")
        if not yes:
            say("nothing was deleted; the same with --yes does it")


async def _purge(settings: "Settings", older_than: timedelta, *, yes: bool) -> dict[str, int]:
    from shared.cli.here import open_here
    from shared.runtime import retention

    async with open_here(settings) as live:
        if not yes:
            return await live.store.purgeable(older_than)
        gone = await retention.purge(live, older_than)
        await retention.purge_outputs(live, older_than)
        return gone


def _age(given: str) -> timedelta:
    from shared.errors import InputError

    found = _AGE.fullmatch(given)
    if found is None:
        raise InputError(f"--older-than {given[:60]!r} is no age; write it like 30d, 12h or 45m")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
