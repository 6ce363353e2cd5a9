"""`agent-team fork`: another run of a workflow, from any point of its history."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.loop import run_async
from shared.cli.options import Json, UrlOrHere, Verbose, checked_id
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.workflows import InputField


def fork(
    id: Annotated[str, typer.Argument(metavar="ID", help="The workflow to start from: wf_ and 26 letters and digits.")],
    at: Annotated[
        int | None, typer.Option("--at", metavar="SEQ", min=1, help="A history entry: what was finished by then is reused.")
    ] = None,
    param: Annotated[
        list[str] | None,
        typer.Option("--param", "-p", metavar="NAME=VALUE", help="An input field that changes; may be repeated."),
    ] = None,
    url: UrlOrHere = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Start a workflow that reuses what another had finished, by its end or by --at SEQ.

    Of a changed input only what it had a part in runs again. Prints the new workflow's id.
    """
    with session(verbose=verbose) as settings:
        from shared.cli.output import say, write_json

        started = run_async(_fork(settings, url, id, at, [] if param is None else param))
        if as_json:
            write_json(started)
        else:
            typer.echo(started["id"])
            say(f"forked from {id}: {started['status']}; agent-team diff {id} {started['id']} compares them", style="dim")


async def _fork(settings: "Settings", url: str | None, id: str, at: int | None, params: Sequence[str]) -> dict[str, Any]:
    from shared.cli.travel import open_workflows
    from shared.runtime.travel import Fork

    async with open_workflows(settings, url) as workflows:
        changes = _changes(settings, await workflows.get(id), params) if params and checked_id(id) else {}
        return await workflows.fork(Fork(checked_id(id), at, changes))


def _changes(settings: "Settings", original: dict[str, Any], params: Sequence[str]) -> dict[str, Any]:
    from shared.errors import InputError
    from shared.runtime import Runtime

    definition = Runtime(settings).definitions.get(original["workflow"])
    changes = {}
    for param in params:
        name, equals, text = param.partition("=")
        if not name or not equals:
            raise InputError(f"--param {param[:60]!r} is not NAME=VALUE")
        field = None if definition is None else definition.input.get(name)
        changes[name] = _value(name, text, field, original["input"].get(name))
    return changes


def _value(name: str, text: str, field: "InputField | None", known: Any) -> Any:
    """Text for a field of text, JSON for any other; where the definition is not known here the original's value tells."""
    import orjson

    from shared.errors import InputError

    if (field is not None and field.type == "string") or (field is None and (known is None or isinstance(known, str))):
        return text
    try:
        return orjson.loads(text)
    except (orjson.JSONDecodeError, UnicodeEncodeError):
        raise InputError(f"--param {name}: {text[:60]!r} is not of the field's type; write it as JSON") from None
