"""Which way to the database: a connection, or Supabase's HTTP API.

What is configured decides, and where both are, what the process serves. The orchestrator and the sweeper take the connection: they
move every workflow, so each millisecond and each call counts, and a tick after an outage may take longer than the few seconds that
the API gives a statement. The others take HTTP: there are many instances of them, they call seldom, and none of them holds one of
the database's few connections while it idles.
"""

from collections.abc import Callable, Collection

from shared.config import Settings
from shared.errors import ConfigurationError
from shared.state.base import Caller
from shared.state.store import WorkflowStore

_ON_THE_CONNECTION = frozenset({"orchestrator", "sweeper"})


def open_store(settings: Settings, *, functions: Collection[str] | None, database_url: Callable[[], str]) -> WorkflowStore:
    """The store for a process that serves `functions`; None for the platform in one process, which always takes the connection.

    `database_url` is asked only when the connection is taken. Raises ConfigurationError when Supabase is configured by half.
    """
    return WorkflowStore(_caller(settings, functions, database_url), max_running=settings.max_concurrent_pipelines)


def over_http(settings: Settings, functions: Collection[str] | None) -> bool:
    """Whether a process that serves `functions` takes Supabase's HTTP API."""
    if functions is None or settings.supabase_url is None:
        return False
    return settings.database_url is None or _ON_THE_CONNECTION.isdisjoint(functions)


def _caller(settings: Settings, functions: Collection[str] | None, database_url: Callable[[], str]) -> Caller:
    url, key = settings.supabase_url, settings.supabase_service_role_key
    if functions is not None and (url is None) is not (key is None):
        missing = "SUPABASE_URL" if url is None else "SUPABASE_SERVICE_ROLE_KEY"
        raise ConfigurationError(f"{missing} is missing beside its other half; set both, or neither to use DATABASE_URL")
    if url is not None and key is not None and over_http(settings, functions):
        from shared.state.supabase import SupabaseCaller

        return SupabaseCaller(url, key.get_secret_value())
    from shared.state.postgres import PostgresCaller

    return PostgresCaller(database_url())
