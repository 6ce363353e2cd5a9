"""`agent-team migrate`: a database gets the platform's schema."""

from typing import TYPE_CHECKING

import typer

from shared.cli.loop import run_async
from shared.cli.options import Verbose
from shared.cli.session import session

if TYPE_CHECKING:
    from shared.config import Settings
    from shared.state.migrations import Migration


def migrate(verbose: Verbose = False) -> None:
    """Bring the database of DATABASE_URL, or else the embedded one, to the platform's schema."""
    with session(verbose=verbose) as settings:
        from shared.cli.output import counted

        where, applied = run_async(_migrate(settings))
        for one in applied:
            typer.echo(f"applied {one.version}_{one.name}")
        typer.echo(f"{where}: {counted(len(applied), 'migration')} applied" if applied else f"{where}: the schema is current")


async def _migrate(settings: "Settings") -> "tuple[str, list[Migration]]":
    import asyncio

    from shared.config import redact_url
    from shared.local.home import Home
    from shared.runtime import Runtime
    from shared.state import migrations

    live = Runtime(settings)
    if settings.database_url is not None:
        return redact_url(settings.database_url), await migrations.migrate(live.database_url)
    home = Home(settings.agent_team_home)
    try:
        dsn = await asyncio.to_thread(lambda: live.database_url)
        return f"embedded database in {home.folder}", await migrations.migrate(dsn)
    finally:
        home.release()
