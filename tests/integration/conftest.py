"""`door` is for modules that run in one event loop: `pytestmark = pytest.mark.asyncio(loop_scope="module")`."""

from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio

from .door import TABLES, Door


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connection(module_database: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connected = await asyncpg.connect(module_database)
    yield connected
    await connected.close()


@pytest_asyncio.fixture(loop_scope="module")
async def door(connection: "asyncpg.Connection[asyncpg.Record]") -> Door:
    """An empty state behind a connection that the module shares: planning every statement anew would be most of a test's time."""
    await connection.execute(f"truncate {', '.join(TABLES)} restart identity")
    return Door(connection)
