"""`agent-team restore`: a backup becomes a database again."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shared.cli.loop import run_async
from shared.cli.options import Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.state.backups import Manifest, Restored


def restore(
    source: Annotated[str, typer.Argument(metavar="FROM", help="A file, a folder (the newest in it) or gs://bucket/name.")],
    database_url: Annotated[
        str | None,
        typer.Option("--database-url", metavar="URL", help="Another server; its password in PGPASSWORD or ~/.pgpass, never here."),
    ] = None,
    database: Annotated[
        str | None, typer.Option("--database", metavar="NAME", help="Another database of the server, made when missing.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Into a database that is not empty: what it has is kept beside, in schemas of another name."),
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Restore a backup into the database of DATABASE_URL, or else the embedded one: whole and compared, or not at all.

    The backup is read to its end before anything is touched. Rights are not restored but given anew, as the platform needs them.
    """
    with session(verbose=verbose) as settings:
        from shared.cli.output import counted

        where, done = run_async(_restore(settings, source, database_url, database, force=force))
        manifest = done.manifest
        tables, rows = counted(len(manifest.tables), "table"), counted(manifest.rows, "row")
        typer.echo(f"{where}: {tables} and {rows} as of {manifest.made_at:%Y-%m-%d %H:%M:%S} UTC; counts and checksums agree")
        for one in done.migrated:
            typer.echo(f"applied {one.version}_{one.name}")
        for schema in done.aside:
            typer.echo(f"what was there before is in the schema {schema}; `drop schema {schema} cascade` removes it")


async def _restore(settings: "Settings", source: str, url: str | None, name: str | None, *, force: bool) -> "tuple[str, Restored]":
    import asyncio
    import tempfile

    from shared.local.home import Home
    from shared.state.backups import bucket, readable

    _check(url)
    with tempfile.TemporaryDirectory(prefix="agent-team-restore-") as folder:
        if bucket.is_bucket(source):
            file = Path(folder) / "backup.zip"
            await asyncio.to_thread(bucket.download, source, file, project=settings.gcp_project_id)
        else:
            file = _newest(Path(source))
        manifest = await readable(file)
        if url is not None or settings.database_url is not None:
            return await _into(settings, url, name, file, manifest, force=force)
        # Not beside a running platform, whose work would go on in what is moved away.
        home = Home(settings.agent_team_home)
        try:
            return await _into(settings, url, name, file, manifest, force=force)
        finally:
            home.release()


async def _into(
    settings: "Settings", url: str | None, name: str | None, file: Path, manifest: "Manifest", *, force: bool
) -> "tuple[str, Restored]":
    import asyncio

    from shared.config import redact_url
    from shared.runtime import Runtime
    from shared.state.backups import restore
    from shared.state.backups.databases import made

    dsn = await asyncio.to_thread(lambda: Runtime(settings).database_url) if url is None else url
    embedded = url is None and settings.database_url is None
    where = f"embedded database in {settings.agent_team_home}" if embedded else redact_url(dsn)
    if name is None:
        return where, await restore(dsn, file, force=force)
    async with made(dsn, name) as dsn:
        return f"{where}, database {name}", await restore(dsn, file, force=force)


def _check(url: str | None) -> None:
    from shared.errors import InputError
    from shared.state.backups.programs import has_password

    if url is None:
        return
    if not url.startswith(("postgresql://", "postgres://")):
        raise InputError("--database-url is not a PostgreSQL connection string: postgresql://user@host:port/name")
    if has_password(url):
        raise InputError(
            "--database-url holds a password, and options are in the list of processes; put it in PGPASSWORD or ~/.pgpass, "
            "or set DATABASE_URL instead"
        )


def _newest(source: Path) -> Path:
    from shared.errors import InputError

    if not source.is_dir():
        return source
    files = sorted(source.glob("agent-team-*.zip"))
    if not files:
        raise InputError(f"there is no backup in {source}; `agent-team backup` makes one")
    return files[-1]
