from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from shared.clock import ManualClock
from shared.state import Caller, WorkflowStore
from shared.state.postgres import PostgresCaller, connected
from shared.state.supabase import SupabaseCaller
from tests.conftest import Postgres
from tests.integration.door import TABLES
from tests.support.pooler import Pooler, pooler
from tests.support.postgrest import Project, key, project, project_database

from .harness import BUSES, GUARDS, BusBackend, BusRig, GuardsBackend, GuardsRig

START = datetime(2026, 5, 1, 12, tzinfo=UTC)
"""When the store's clock begins."""


@pytest.fixture(scope="session", params=BUSES, ids=lambda backend: backend.abilities.name)
def bus_backend(request: pytest.FixtureRequest) -> Iterator[BusBackend]:
    assert isinstance(request.param, BusBackend)
    with request.param.serving():
        yield request.param


@pytest.fixture(scope="session", params=GUARDS, ids=lambda backend: backend.abilities.name)
def guards_backend(request: pytest.FixtureRequest) -> Iterator[GuardsBackend]:
    assert isinstance(request.param, GuardsBackend)
    with request.param.serving():
        yield request.param


@pytest.fixture
async def bus_rig(bus_backend: BusBackend) -> AsyncIterator[BusRig]:
    async with bus_backend.rig() as rig:
        yield rig


@pytest.fixture
async def guards_rig(guards_backend: GuardsBackend) -> AsyncIterator[GuardsRig]:
    async with guards_backend.rig() as rig:
        yield rig


@pytest.fixture(scope="module")
def direct(postgres: Postgres) -> Iterator[str]:
    """The database, without anything in between."""
    with project_database(postgres) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[Pooler]:
    with pooler(postgres) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def supabase(direct: str) -> AsyncIterator[Project]:
    async with project(direct) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module", params=["connection", "pooler", "http"])
async def caller(request: pytest.FixtureRequest, direct: str, supabase: Project) -> AsyncIterator[Caller]:
    async with connected(direct) as connection:
        await connection.execute(f"truncate {', '.join(TABLES)} restart identity")
    opened: Caller
    match request.param:
        case "http":
            opened = SupabaseCaller(supabase.url, key())
        case "pooler":
            opened = PostgresCaller(request.getfixturevalue("pgbouncer").dsn(direct))
        case _:
            opened = PostgresCaller(direct)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def store(caller: Caller, clock: ManualClock) -> WorkflowStore:
    return WorkflowStore(caller, max_running=5, clock=clock)
