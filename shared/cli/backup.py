"""`agent-team backup`: the database in one file that is known to be whole."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from shared.cli.loop import run_async
from shared.cli.options import Verbose
from shared.cli.session import session, told_plainly

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.state.backups import Manifest

_log = logging.getLogger(__name__)
_NAME: Final = "agent-team-%Y%m%dT%H%M%SZ.zip"
_NAMED: Final = re.compile(r"agent-team-\d{8}T\d{6}Z\.zip")
_KEPT: Final = timedelta(days=7)


def backup(
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="PLACE", help="gs://bucket/prefix, a folder or a file; backups/ in AGENT_TEAM_HOME when left out."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Back up the database of DATABASE_URL, or else the embedded one, while it works: one snapshot, read back and compared.

    In AGENT_TEAM_HOME backups are kept for 7 days; anywhere else you say how long.
    """
    with _job_or_session(verbose=verbose) as settings:
        from shared.cli.output import counted

        where, manifest, size = run_async(_backup(settings, to))
        about = f"{counted(len(manifest.tables), 'table')}, {counted(manifest.rows, 'row')}, {counted(size, 'byte')}"
        if not _in_a_job():
            typer.echo(f"{where}: {about}, read back and whole")


async def _backup(settings: "Settings", to: str | None) -> "tuple[str, Manifest, int]":
    import asyncio
    import tempfile

    from shared.runtime import Runtime
    from shared.state.backups import back_up, bucket

    now = datetime.now(UTC)
    dsn = await asyncio.to_thread(lambda: Runtime(settings).database_url)
    if to is not None and bucket.is_bucket(to):
        place = bucket.object_in(to, now.strftime(_NAME))
        with tempfile.TemporaryDirectory(prefix="agent-team-backup-") as folder:
            file = Path(folder) / "backup.zip"
            manifest = await back_up(dsn, file)
            size = _size(file)
            await asyncio.to_thread(bucket.upload, file, place, project=settings.gcp_project_id)
        return _done(now, place, manifest, size)
    home = settings.agent_team_home / "backups"
    file = _local(home, to, now)
    part = file.with_name(f".{file.name}.part")
    try:
        manifest = await back_up(dsn, part)
        # Unlike a rename, a link never replaces what somebody else has put there meanwhile.
        _publish(part, file)
    finally:
        _remove(part)
    if to is None:
        _forget_old(home, now)
    return _done(now, str(file), manifest, _size(file))


def _done(began: datetime, place: str, manifest: "Manifest", size: int) -> "tuple[str, Manifest, int]":
    took = (datetime.now(UTC) - began).total_seconds() * 1000
    about = {
        "to": place,
        "sizeBytes": size,
        "tables": len(manifest.tables),
        "rows": manifest.rows,
        "schema": manifest.schema_version,
    }
    _log.info("backup done", extra={**about, "duration": round(took)})
    return place, manifest, size


def _local(home: Path, to: str | None, now: datetime) -> Path:
    from shared.errors import ConfigurationError, InputError

    folder = home if to is None else Path(to)
    file = folder / now.strftime(_NAME) if to is None or to.endswith("/") or folder.is_dir() else folder
    if file.exists():
        raise InputError(f"{file} is there already; backups are never overwritten")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{file.parent} cannot be made ({error.strerror}); give another place with --to") from error
    return file


def _publish(part: Path, file: Path) -> None:
    from shared.errors import ConfigurationError

    try:
        os.link(part, file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be made ({error.strerror}); give another place with --to") from error


def _forget_old(home: Path, now: datetime) -> None:
    for file in home.iterdir():
        if _NAMED.fullmatch(file.name) and now - datetime.strptime(file.name, _NAME).replace(tzinfo=UTC) > _KEPT:
            file.unlink(missing_ok=True)


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)


def _size(file: Path) -> int:
    return file.stat().st_size


def _in_a_job() -> bool:
    return "CLOUD_RUN_JOB" in os.environ or "K_SERVICE" in os.environ


@contextmanager
def _job_or_session(*, verbose: bool) -> Iterator["Settings"]:
    """In a job of Cloud Run there is no home folder to write to, and standard output is what Cloud Logging reads."""
    if not _in_a_job():
        with session(verbose=verbose) as settings:
            yield settings
        return
    with told_plainly():
        from shared.config import load_settings
        from shared.telemetry import configure_logging, redact_values

        settings = load_settings()
        redact_values(*settings.secret_values())
        handler = configure_logging(settings.log_level, stream=sys.stdout, cloud=True, project=settings.gcp_project_id)
        try:
            with told_plainly(logged=True):
                yield settings
        finally:
            logging.getLogger().removeHandler(handler)
