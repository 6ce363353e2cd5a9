"""The state of the settings, for verbs that look at it beside a running platform or without one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shared.config import Settings
from shared.runtime import Runtime


@asynccontextmanager
async def open_here(settings: Settings) -> AsyncIterator[Runtime]:
    """A runtime whose store is open: Supabase, DATABASE_URL's database, or the embedded one, which is brought to the schema."""
    from shared.state import migrations, over_http

    live = Runtime(settings, serves=("cli",))
    try:
        _ = await asyncio.to_thread(lambda: live.store)  # the embedded database takes a while to start
        if settings.database_url is None and not over_http(settings, live.serves):
            await migrations.migrate(live.database_url)
        yield live
    finally:
        await live.close()
