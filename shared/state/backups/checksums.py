"""How many rows a table has, and a checksum over them that knows no order: the sum of 60 bits of each row's MD5.

Against accidents, not against forgers. A row is hashed as text, so everything that text depends on is set first.
"""

from typing import Any

import asyncpg

from shared.state.backups.archive import Table

SCHEMAS = ("public", "supabase_migrations")
"""What is backed up. Supabase's own schemas (auth, storage, …) are Supabase's to back up."""

SETTINGS = """
    set local timezone = 'UTC'; set local datestyle = 'ISO, MDY'; set local intervalstyle = 'postgres';
    set local extra_float_digits = 1; set local bytea_output = 'hex'; set local search_path = '';
    set local row_security = off; set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0;
"""

_TABLES = """
    select n.nspname as schema, c.relname as name
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where c.relkind = 'r' and n.nspname = any($1::text[])
        and not exists (select from pg_catalog.pg_depend as d where d.objid = c.oid and d.deptype = 'e')
    order by 1, 2
"""


def statement(schema: str, name: str) -> str:
    """A query of one row: the number of rows, and the checksum as text."""
    hashed = "('x' || left(md5(t::text), 15))::bit(60)::bigint"
    return f"select count(*) as rows, coalesce(sum({hashed}), 0)::text as checksum from only {_quoted(schema)}.{_quoted(name)} as t"


async def measure(connection: "asyncpg.Connection[asyncpg.Record]") -> tuple[Table, ...]:
    """Every table of ours, as the running transaction sees it."""
    tables = []
    for one in await connection.fetch(_TABLES, SCHEMAS):
        row: Any = await connection.fetchrow(statement(one["schema"], one["name"]))
        tables.append(Table(schema_name=one["schema"], name=one["name"], rows=row["rows"], checksum=row["checksum"]))
    return tuple(tables)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
