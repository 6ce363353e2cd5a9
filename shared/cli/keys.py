"""`agent-team keys`: the keys that sign messages (`signing_keys`), and under `api` those of the callers of the API."""

from enum import Enum
from typing import Annotated

import typer

from shared.cli import signing_keys
from shared.cli.options import Json, Verbose
from shared.cli.session import session

app = typer.Typer(help="Keys that sign messages, and under `api` those of callers.", no_args_is_help=True)
app.command(name="list")(signing_keys.list_)
app.command()(signing_keys.add)
app.command()(signing_keys.activate)
app.command()(signing_keys.retire)
app.command()(signing_keys.rotate)
api = typer.Typer(help="Add, list and revoke keys of the API.", no_args_is_help=True)
app.add_typer(api, name="api")


class ScopeOption(Enum):
    """What a caller may do; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@api.command(epilog="For example: agent-team keys api add ci --scope submit > ci.key")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is, as the log and the list show it.")],
    scope: Annotated[
        ScopeOption,
        typer.Option(help="read: look at everything but dead letters. submit: also start and stop workflows. admin: everything."),
    ] = ScopeOption.SUBMIT,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make a key and print it, once: only its hash is kept. With the first key, the API asks every caller for one."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import say, write_json

        key = run_here(settings, lambda live: live.store.keys.add(name, scope.value))
        if as_json:
            write_json({"name": name, "scope": scope.value, "key": key})
        else:
            typer.echo(key)
        say(f"keep it: it is not shown again. Callers send it as `Authorization: Bearer KEY`; it may {scope.value}", style="dim")


@api.command(name="list")
def list_(as_json: Json = False, verbose: Verbose = False) -> None:
    """Every key by name, those that were revoked too; never the keys themselves."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import say, write_json, write_table

        found = run_here(settings, lambda live: live.store.keys.listed())
        if as_json:
            write_json({"items": found})
        elif not found:
            say("there are none; agent-team keys api add NAME adds one")
        else:
            columns = ("name", "id", "scope", "created_at", "last_used_at", "revoked_at")
            rows = [tuple("-" if one[column] is None else str(one[column]) for column in columns) for one in found]
            write_table(tuple(column.removesuffix("_at").replace("_", " ") for column in columns), rows)


@api.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The key's name, as `list` shows it.")],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Refuse a key from now on; a running gateway notices within 30 seconds. The name is free for another one."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import printable, write_json

        run_here(settings, lambda live: live.store.keys.revoke(name))
        if as_json:
            write_json({"revoked": name})
        else:
            typer.echo(printable(f"revoked  {name}"))
