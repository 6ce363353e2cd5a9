"""Nobody but the server may look at the state, however generous the database was before."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import orjson
import pytest

from shared.state.migrations import migrate
from shared.state.postgres import connected
from tests.conftest import Postgres

from .door import TABLES

PUBLIC_ROLES = ("anon", "authenticated")
READS = [
    "select get_workflow('wf_1')",
    "select list_workflows()",
    "select count_queued()",
    "select cancel_receipt('wf_1')",
    "select workflow_history('wf_1')",
    "select workflow_snapshot('wf_1', 1)",
    "select advance('[]')",
    "select list_dead_letters()",
    "select count_dead_letters()",
    "select read_dead_letters('{1}')",
    "select redrive_dead_letters('{1}', '{waiting}')",
    "select return_dead_letters('{1}')",
    "select put_document('n', 'h', '[\"text\"]')",
    "select list_documents()",
    "select search_documents('text')",
    "select remove_document('n')",
    "select add_api_key('i', 'n', 'h', 'read')",
    "select list_api_keys()",
    "select find_api_key('i')",
    "select use_api_key('i')",
    "select has_api_keys()",
    "select revoke_api_key('n')",
    "select fork_plan('wf_1')",
    "select fork_workflow('{}')",
    "select rerun_workflow('wf_1')",
    "select purge(1)",
    "select purgeable(1)",
    "select read_schedules()",
    "select note_schedules('[]')",
    "select outputs_in_use('{}')",
]


@pytest.fixture
def roles(postgres: Postgres) -> Iterator[None]:
    """Supabase's roles; roles belong to the whole server."""
    postgres.execute(*(f"create role {role} nologin" for role in PUBLIC_ROLES), "create role service_role nologin bypassrls")
    yield
    postgres.execute(*(f"drop role {role}" for role in (*PUBLIC_ROLES, "service_role")))


@pytest.fixture
async def supabase(postgres: Postgres, roles: None) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A migrated database that grants everything to everybody by default, as Supabase's does."""
    dsn = postgres.create_empty()
    everybody = "anon, authenticated, service_role"
    async with connected(dsn) as connection:
        await connection.execute(f"grant usage on schema public to {everybody}")
        for things in ("tables", "functions", "sequences"):
            await connection.execute(f"alter default privileges in schema public grant all on {things} to {everybody}")
        await migrate(dsn)
        yield connection
    postgres.drop(dsn)


async def _functions(connection: "asyncpg.Connection[asyncpg.Record]") -> list[str]:
    rows = await connection.fetch("select oid::regprocedure::text as name from pg_proc where pronamespace = 'public'::regnamespace")
    return [row["name"] for row in rows]


@pytest.mark.parametrize("role", PUBLIC_ROLES)
async def test_the_public_roles_have_no_right_to_anything(supabase: "asyncpg.Connection[asyncpg.Record]", role: str) -> None:
    for table in TABLES:
        for right in ("select", "insert", "update", "delete", "truncate", "references", "trigger", "maintain"):
            assert not await supabase.fetchval("select has_table_privilege($1, $2, $3)", role, table, right), (table, right)
    for right in ("usage", "select", "update"):
        for sequence in ("dead_letters_id_seq", "turns_turn_seq"):
            assert not await supabase.fetchval("select has_sequence_privilege($1, $2, $3)", role, sequence, right)
    functions = await _functions(supabase)
    assert len(functions) > 20
    for function in functions:
        assert not await supabase.fetchval("select has_function_privilege($1, $2, 'execute')", role, function), function


@pytest.mark.parametrize("role", PUBLIC_ROLES)
async def test_the_public_roles_are_refused(supabase: "asyncpg.Connection[asyncpg.Record]", role: str) -> None:
    await supabase.execute(f"set role {role}")
    for query in (*READS, *(f"select * from {table}" for table in TABLES), "insert into edges values ('a', 'b', 'c')"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await supabase.execute(query)
    await supabase.execute("reset role")


async def test_the_server_s_role_may_do_its_work(supabase: "asyncpg.Connection[asyncpg.Record]") -> None:
    await supabase.execute("set role service_role")
    for query in READS:
        await supabase.execute(query)
    names = ("message_id", "subscription", "topic", "function", "cause", "reason", "data")
    letter = orjson.dumps({**dict.fromkeys(names, ""), "attributes": {}}).decode()
    assert await supabase.fetchval("select record_dead_letter($1::text::jsonb)", letter) == 1
    assert await supabase.fetchval("select count(*) from dead_letters") == 1
    await supabase.execute("reset role")


async def test_the_rights_given_by_mistake_later_show_no_rows(supabase: "asyncpg.Connection[asyncpg.Record]") -> None:
    await supabase.execute("insert into edges values ('a', 'b', 'c'); grant select on edges to anon; set role anon")
    assert await supabase.fetch("select * from edges") == []
    await supabase.execute("reset role")


async def test_row_level_security_is_on_for_every_table(supabase: "asyncpg.Connection[asyncpg.Record]") -> None:
    rows = await supabase.fetch(
        "select relname, relrowsecurity from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace"
    )
    assert {row["relname"]: row["relrowsecurity"] for row in rows} == dict.fromkeys(TABLES, True)


async def test_a_plain_database_without_these_roles_migrates_too(empty_database: str) -> None:
    async with connected(empty_database) as connection:
        assert not await connection.fetchval("select exists (select from pg_roles where rolname = any($1))", list(PUBLIC_ROLES))
        await migrate(empty_database)
        for function in await _functions(connection):
            assert not await connection.fetchval("select has_function_privilege('public', $1, 'execute')", function), function
