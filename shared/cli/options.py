"""Options and arguments that several verbs take, and the settings of those that only speak HTTP."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.session import told_plainly

if TYPE_CHECKING:
    from shared.config import Settings

KEY_HINT = "The API key is read from AGENT_TEAM_API_KEY, never from an option: those are in the list of processes."
Url = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="The gateway; AGENT_TEAM_URL or http://127.0.0.1:8080 when left out.")
]
OR_HERE = "Ask the gateway there, or at AGENT_TEAM_URL; the database of the settings where neither is given."
UrlOrHere = Annotated[str | None, typer.Option("--url", metavar="URL", help=OR_HERE)]
Id = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id: wf_ and 26 letters and digits.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show the logs on standard error.")]
Source = Annotated[
    str | None,
    typer.Option(
        "--input",
        "-i",
        metavar="FILE",
        help="Text for the workflow to work on, its whole input as .json, or - for standard input.",
    ),
]
Params = Annotated[
    list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="One field of the input; may be repeated.")
]

_ID = re.compile(r"wf_[0-9A-HJKMNP-TV-Z]{26}")


@contextmanager
def remote() -> Iterator["Settings"]:
    """The settings of a process that has no data here: nothing is written, no folder made. Logs go nowhere."""
    import logging

    with told_plainly():
        from shared.config import load_settings
        from shared.telemetry import redact_values

        settings = load_settings()
        redact_values(*settings.secret_values())
        logging.getLogger().addHandler(logging.NullHandler())
        yield settings


def asks_gateway(settings: "Settings", url: str | None) -> bool:
    """Whether `UrlOrHere` leads to a gateway; else to the database of the settings."""
    return url is not None or settings.agent_team_url is not None


def me() -> str:
    """Who types."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a name for its user
        return ""


def checked_id(id: str) -> str:
    """`id`, fit to stand in a path. Raises InputError."""
    from shared.errors import InputError

    if _ID.fullmatch(id) is None:
        shown = f"{id!r} is" if id.isprintable() and len(id) <= 60 else "that is"
        raise InputError(f"{shown} no workflow's id; give wf_ and 26 letters and digits, as `agent-team list` shows them")
    return id
