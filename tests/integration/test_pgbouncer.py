"""The state through a real pgbouncer in transaction mode: each call may run on another of a few connections to the server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import ConfigurationError, StoreUnavailable
from shared.state import WorkflowStore
from shared.state.migrations import load, migrate, missing
from shared.state.postgres import PostgresCaller, _options, connected
from tests.conftest import Postgres
from tests.support.pooler import POOL_SIZE, Pooler, pooler
from tests.support.reports import brief, platform, write_reports

from .door import requested, step


@pytest.fixture(scope="module")
def pgbouncer(postgres: Postgres) -> Iterator[Pooler]:
    with pooler(postgres) as running:
        yield running


@pytest.mark.parametrize("query", ["?pgbouncer=true", "?statement_cache_size=0"])
async def test_more_callers_than_connections_call_different_functions_at_once(pgbouncer: Pooler, database: str, query: str) -> None:
    stores = [WorkflowStore(PostgresCaller(pgbouncer.dsn(database, query)), max_running=1000) for _ in range(10)]

    async def run(number: int) -> None:
        store = stores[number % len(stores)]
        workflow = f"wf_{number:03}"
        await store.advance([requested([step("a")], workflow)])
        assert [entry["seq"] for entry in await store.history(workflow)] == [1, 2, 3]
        assert (await store.get(workflow))["id"] == workflow
        assert (await store.snapshot(workflow, 3))["seq"] == 3
        assert len(await store.recent(limit=1)) == 1

    async with asyncio.timeout(60):
        await asyncio.gather(*(run(number) for number in range(200)))
    async with connected(database) as connection:
        backends = "select count(*) from pg_stat_activity where datname = current_database() and backend_type = 'client backend'"
        backends += " and pid <> pg_backend_pid()"
        assert 1 < await connection.fetchval(backends) <= POOL_SIZE
        assert await connection.fetchval("select count(*) from workflows") == 200
    for store in stores:
        await store.close()


async def test_with_prepared_statements_it_fails_and_says_what_to_set(pgbouncer: Pooler, database: str) -> None:
    callers = [PostgresCaller(pgbouncer.dsn(database, "?statement_cache_size=100"), connections=1) for _ in range(20)]

    async def call(caller: PostgresCaller) -> None:
        for _ in range(20):
            await caller.call("list_workflows", {})

    answers = await asyncio.gather(*(call(caller) for caller in callers), return_exceptions=True)
    errors = [answer for answer in answers if answer is not None]
    assert errors
    assert {type(error) for error in errors} == {ConfigurationError}
    assert {str(error).partition(" (")[0] for error in errors} == {
        "DATABASE_URL leads to a transaction pooler; add ?statement_cache_size=0 to it"
    }
    for caller in callers:
        await caller.close()


async def test_a_database_is_migrated_through_it(pgbouncer: Pooler, empty_database: str) -> None:
    dsn = pgbouncer.dsn(empty_database)
    assert await missing(dsn) == load()
    applied = await asyncio.gather(*(migrate(dsn) for _ in range(3)))
    # They take turns, migration by migration.
    assert sorted((one for each in applied for one in each), key=lambda one: one.version) == load()
    assert await missing(dsn) == []


async def test_what_it_cannot_lead_to_is_unavailable(pgbouncer: Pooler, postgres: Postgres) -> None:
    """Whatever the reason, it says so with one code."""
    caller = PostgresCaller(pgbouncer.dsn(postgres.dsn("nowhere")))
    with pytest.raises(StoreUnavailable, match="08P01"):
        await caller.call("list_workflows", {})
    await caller.close()


async def test_whole_reports_are_written_through_it(pgbouncer: Pooler, database: str, tmp_path: Path) -> None:
    async with platform(pgbouncer.dsn(database), tmp_path) as opened:
        workflows = await write_reports(opened, [brief(number) for number in range(3)])
    assert [workflow["status"] for workflow in workflows] == ["SUCCESS"] * 3


@pytest.mark.parametrize(
    ("dsn", "bare", "size"),
    [
        ("postgresql://u:p@h:5432/n", "postgresql://u:p@h:5432/n", None),
        ("postgresql://u:p@h:6543/n", "postgresql://u:p@h:6543/n", 0),
        ("postgresql://u:p@h1:5432,h2:6543/n?a=b", "postgresql://u:p@h1:5432,h2:6543/n?a=b", 0),
        ("postgresql://u:p@h:6543/n?statement_cache_size=50", "postgresql://u:p@h:6543/n", 50),
        ("postgresql://u:p@h/n?a=b&pgbouncer=true&c=d", "postgresql://u:p@h/n?a=b&c=d", 0),
        ("postgresql://u:p@h/n?pgbouncer=false", "postgresql://u:p@h/n", None),
        ("postgresql://u:p@h/n?pgbouncer=true&statement_cache_size=7", "postgresql://u:p@h/n", 7),
        ("postgresql://u:6543@h/n6543", "postgresql://u:6543@h/n6543", None),
    ],
)
def test_the_connection_string_says_whether_statements_are_prepared(dsn: str, bare: str, size: int | None) -> None:
    found, options = _options(dsn)
    assert found == bare
    assert options.get("statement_cache_size") == size
