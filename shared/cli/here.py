"""The state of the settings, for verbs that look at it beside a running platform or without one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from shared.cli.loop import run_async
from shared.config import Settings
from shared.runtime import Runtime

_T = TypeVar("_T")


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


def run_here(settings: Settings, work: Callable[[Runtime], Awaitable[_T]]) -> _T:
    """What `work` comes to with that runtime."""

    async def run() -> _T:
        async with open_here(settings) as live:
            return await work(live)

    return run_async(run())
