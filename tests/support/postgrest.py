"""A double of a Supabase project's Data API: what PostgREST does with a call of a function, over the real SQL as the real role.

Authentication, functions, transactions and errors are as https://docs.postgrest.org/en/stable has them. The gateway wants a key.
"""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import jwt
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.local.server import bind, serve
from shared.state.migrations import migrate
from shared.state.postgres import connected
from tests.conftest import Postgres

SECRET = "the JWT secret of the tests' project, long enough for HS256"
ROLES = ("anon", "authenticated", "service_role")
_STATUSES = {
    **{"08": 503, "09": 500, "0L": 403, "0P": 403, "23503": 409, "23505": 409, "25006": 405, "25": 500, "28": 403, "2D": 500},
    **{"38": 500, "39": 500, "3B": 500, "40": 500, "53400": 500, "53": 503, "54": 500, "55": 500, "57P01": 503, "57": 500},
    **{"58": 500, "F0": 500, "HV": 500, "P0001": 400, "P0": 500, "42883": 404, "42P01": 404, "42P17": 500},
}
_FUNCTIONS = """
    select p.proname as name, p.provolatile <> 'v' as reads_only, p.pronargdefaults as defaults,
        coalesce(p.proargnames[:p.pronargs], '{}') as names,
        array(select format_type(type, null) from unnest(p.proargtypes) with ordinality as t(type, n) order by n) as types
    from pg_proc as p
    where p.pronamespace = 'public'::regnamespace
"""


def key(role: str = "service_role", *, secret: str = SECRET, lives_seconds: float = 3600) -> str:
    """An API key of the project, as Supabase makes them: a JWT that names a role."""
    claims = {"role": role, "iss": "supabase", "exp": int(time.time() + lives_seconds)}
    return jwt.encode(claims, secret, algorithm="HS256")


@contextmanager
def supabase_roles(postgres: Postgres) -> Iterator[None]:
    """Supabase's roles, which belong to the whole server; databases that grant them rights must be gone by the end."""
    postgres.execute(*(f"create role {role} nologin{' bypassrls' * (role == 'service_role')}" for role in ROLES))
    try:
        yield
    finally:
        postgres.execute(*(f"drop role {role}" for role in ROLES))


async def grant_as_supabase_does(dsn: str) -> None:
    """Everything to everybody, whatever is made later."""
    async with connected(dsn) as connection:
        await connection.execute(f"grant usage on schema public to {', '.join(ROLES)}")
        for things in ("tables", "functions", "sequences"):
            await connection.execute(f"alter default privileges in schema public grant all on {things} to {', '.join(ROLES)}")


@contextmanager
def project_database(postgres: Postgres) -> Iterator[str]:
    """A migrated database of a Supabase project's; returns its connection string."""
    with supabase_roles(postgres):
        dsn = postgres.create_empty()
        try:
            with ThreadPoolExecutor(1) as aside:  # a test's event loop may be running here
                aside.submit(asyncio.run, _prepare(dsn)).result()
            yield dsn
        finally:
            postgres.drop(dsn)


async def _prepare(dsn: str) -> None:
    await grant_as_supabase_does(dsn)
    await migrate(dsn)


@dataclass(frozen=True)
class _Function:
    reads_only: bool
    types: dict[str, str]
    required: frozenset[str]

    def takes(self, names: set[str]) -> bool:
        return self.required <= names <= self.types.keys()


@dataclass
class Project:
    """A running project. `answer` replaces what it would say, as when something in front of it answers."""

    url: str
    pool: asyncpg.Pool
    functions: dict[str, list[_Function]] = field(default_factory=dict)
    answer: Response | None = None
    calls: list[str] = field(default_factory=list)
    clients: set[tuple[str, int]] = field(default_factory=set)
    """Every TCP connection that a call came over."""
    in_flight: int = 0
    most_in_flight: int = 0

    async def load_schema(self) -> None:
        """What PostgREST does when it starts and when it is told that the schema changed."""
        self.functions = {}
        for row in await self.pool.fetch(_FUNCTIONS):
            types = dict(zip(row["names"], row["types"], strict=True))
            required = frozenset(row["names"][: len(types) - row["defaults"]])
            self.functions.setdefault(row["name"], []).append(_Function(row["reads_only"], types, required))

    async def rpc(self, request: Request) -> Response:
        """`POST /rest/v1/rpc/<function>`."""
        assert request.client is not None
        self.clients.add((request.client.host, request.client.port))
        self.calls.append(request.path_params["function"])
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._answer(request)
        finally:
            self.in_flight -= 1

    async def _answer(self, request: Request) -> Response:
        if self.answer is not None:
            return self.answer
        if "apikey" not in request.headers:
            return Response(orjson.dumps({"message": "No API key found in request"}), 401, media_type="application/json")
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        try:
            claims = jwt.decode(token, SECRET, algorithms=["HS256"])
        except jwt.ExpiredSignatureError:
            return _error(401, "PGRST303", "JWT expired")
        except jwt.InvalidTokenError:
            return _error(401, "PGRST301", "No suitable key or wrong key type")
        name, arguments = request.path_params["function"], orjson.loads(await request.body())
        fitting = [one for one in self.functions.get(name, ()) if one.takes(arguments.keys())]
        if len(fitting) != 1:
            return _error(404, "PGRST202", f"Could not find the function public.{name}({', '.join(arguments)}) in the schema cache")
        try:
            return await self._run(name, fitting[0], arguments, claims)
        except asyncpg.PostgresError as error:
            code = error.sqlstate or "XX000"
            return _error(_status(code), code, str(error.args[0]), error.as_dict().get("detail"))

    async def _run(self, name: str, function: _Function, arguments: dict[str, Any], claims: dict[str, Any]) -> Response:
        columns = ", ".join(f'"{argument}" {function.types[argument]}' for argument in arguments)
        passed = ", ".join(f'"{argument}" := body."{argument}"' for argument in arguments)
        source = f"from json_to_record($1::text::json) as body({columns})" if arguments else "where $1::text is not null"
        async with self.pool.acquire() as connection, connection.transaction(readonly=function.reads_only):
            role = claims.get("role", "anon")
            await connection.execute("select set_config('role', $1, true)", role)
            body = orjson.dumps(arguments).decode()
            answer = await connection.fetchval(f'select to_json(public."{name}"({passed}))::text {source}', body)
        return Response("null" if answer is None else answer, media_type="application/json; charset=utf-8")


def _error(status: int, code: str, message: str, details: str | None = None) -> Response:
    body = {"code": code, "details": details, "hint": None, "message": message}
    return Response(orjson.dumps(body), status, media_type="application/json; charset=utf-8")


def _status(code: str) -> int:
    return 403 if code == "42501" else _STATUSES.get(code, _STATUSES.get(code[:2], 400))


@asynccontextmanager
async def project(dsn: str, *, connections: int = 10) -> AsyncIterator[Project]:
    """A project over a database, on a port of its own; `connections` is the size of PostgREST's pool."""
    async with asyncpg.create_pool(dsn, min_size=1, max_size=connections) as pool:
        listening = bind("127.0.0.1", 0)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each answer waits 40 ms for an acknowledgement
        opened = Project(f"http://127.0.0.1:{listening.getsockname()[1]}", pool)
        await opened.load_schema()
        app = Starlette(routes=[Route("/rest/v1/rpc/{function}", opened.rpc, methods=["POST"])])
        started = asyncio.Event()
        serving = asyncio.create_task(serve(app, listening, on_started=started.set))
        try:
            await started.wait()
            yield opened
        finally:
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving
