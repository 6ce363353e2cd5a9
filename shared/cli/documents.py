"""`agent-team documents`: the texts that agents may search."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from shared.cli.options import Json, Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.runtime import Runtime

app = typer.Typer(help="Add, list, remove and search the texts that agents may look things up in.", no_args_is_help=True)

_EXAMPLE = "For example: agent-team documents add handbook/ notes.md"


class _File(NamedTuple):
    name: str
    path: Path
    was_named: bool
    """Somebody asked for this very file: that it cannot be taken is an error. One found in a folder is passed over."""


@app.command(epilog=_EXAMPLE)
def add(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="UTF-8 text, up to 5 MB each, or folders of such files.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the document; else the file's name, or its path in the folder.")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Keep texts for search, each in place of what was added under its name before."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import say, write_json

        chosen = _chosen(files, name)
        added, passed_over = run_here(settings, lambda live: _add(live, chosen, tell=_ignore if as_json else _tell))
        for reason in passed_over:
            say(f"passed over: {reason}", style="dim")
        if as_json:
            write_json({"items": added, "passed_over": passed_over})
        elif not added:
            say("there was no text to add")


@app.command(name="list")
def list_(as_json: Json = False, verbose: Verbose = False) -> None:
    """Every document, by name."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import say, write_json, write_table

        found = run_here(settings, lambda live: live.store.list_documents())
        if as_json:
            write_json({"items": found})
        elif not found:
            say("there are none; agent-team documents add FILE adds one")
        else:
            rows = [(one["name"], f"{one['size_bytes']:,}", str(one["passages"]), one["added_at"]) for one in found]
            write_table(("name", "bytes", "passages", "added"), rows, numbers={"bytes", "passages"})


@app.command()
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The document's name, as `list` shows it.")],
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Forget a document."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import write_json

        run_here(settings, lambda live: live.store.remove_document(name))
        if as_json:
            write_json({"removed": name})
        else:
            _tell("removed", name)


@app.command(epilog='For example: agent-team documents search "late ferry" --limit 3')
def search(
    query: Annotated[str, typer.Argument(metavar="QUERY", help='Words, "a phrase", or, -not.')],
    limit: Annotated[int, typer.Option(min=1, max=50, help="How many passages.")] = 10,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """The passages that fit best, as agents find them: those with all words or, where there are none, with any of them."""
    with session(verbose=verbose) as settings:
        from shared.cli.here import run_here
        from shared.cli.output import say, write_json

        found = run_here(settings, lambda live: live.store.search_documents(query, limit))
        if as_json:
            write_json({"items": found})
        elif not found:
            say("nothing was found")
        else:
            _show(found)


async def _add(live: "Runtime", chosen: list[_File], *, tell: Callable[[str, str], None]) -> tuple[list[dict[str, Any]], list[str]]:
    from shared.errors import InputError
    from shared.state import document

    added: list[dict[str, Any]] = []
    passed_over: list[str] = []
    for file in chosen:
        try:
            known = document(file.name, _read(file.path))
        except InputError as error:
            if file.was_named:
                raise
            passed_over.append(str(error))
            continue
        outcome = await live.store.put_document(known)
        added.append({"name": known.name, "outcome": outcome, "sha256": known.sha256, "passages": len(known.passages)})
        tell(outcome, known.name)
    return added, passed_over


def _chosen(files: list[Path], name: str | None) -> list[_File]:
    """What to add, under which name. Raises InputError."""
    from shared.errors import InputError

    if name is not None and (len(files) > 1 or files[0].is_dir()):
        raise InputError("--name is for one file; without it documents are named as their files")
    chosen: dict[str, _File] = {}
    for given in files:
        for file in _files(given):
            one = file if name is None else file._replace(name=name)
            other = chosen.setdefault(one.name, one)
            if other.path.resolve() != one.path.resolve():
                raise InputError(f"{other.path} and {one.path} would both be named {one.name}; add one of them with --name")
    return list(chosen.values())


def _files(given: Path) -> Iterator[_File]:
    from shared.errors import InputError

    if given.is_dir():
        top = given.resolve()
        for path in sorted(top.rglob("*")):
            inside = path.relative_to(top)
            if path.is_file() and not any(part.startswith(".") for part in inside.parts):
                yield _File(f"{top.name}/{inside.as_posix()}", path, False)
    elif given.is_file():
        yield _File(given.name, given, True)
    else:
        raise InputError(f"there is no file {str(given)[:200]!r}; check the path")


def _read(path: Path) -> bytes:
    from shared.errors import InputError
    from shared.state.documents import MAX_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None


def _show(found: list[dict[str, Any]]) -> None:
    import sys

    from shared.cli.output import one_line, printable

    for hit in found:
        place = f"{hit['document']}:{hit['position']}"
        if sys.stdout.isatty():
            typer.echo(f"{typer.style(printable(place), bold=True)}\n{printable(hit['text']).strip()}\n")
        else:
            typer.echo(f"{printable(place)}  {one_line(hit['text'], longest=2000)}")


def _tell(outcome: str, name: str) -> None:
    from shared.cli.output import printable

    typer.echo(printable(f"{outcome}  {name}"))


def _ignore(_outcome: str, _name: str) -> None:
    """Nothing is told on the way."""
