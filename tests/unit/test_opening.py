"""The way to the database is chosen by what is configured and by what the process serves."""

import subprocess
import sys
from pathlib import Path

import pytest

from shared.config import load_settings
from shared.errors import ConfigurationError
from shared.runtime import Runtime
from shared.runtime.spec import load_functions

DATABASE = {"DATABASE_URL": "postgresql://nobody@nowhere/nothing"}
SUPABASE = {"SUPABASE_URL": "https://project.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "key"}
BOTH = {**DATABASE, **SUPABASE}
HEAVY = ("asyncpg", "supabase")
FUNCTIONS = sorted(load_functions())
BUSIEST = ("orchestrator", "sweeper")

_WAY = """
import asyncio, sys
from shared.config import load_settings
from shared.runtime import Runtime
live = Runtime(load_settings({variables}), serves={serves})
live.store
asyncio.run(live.close())
print(sorted(name for name in {heavy} if name in sys.modules))
"""


def way(home: Path, *serves: str, **variables: str) -> str:
    """How a process that serves these functions calls the database; for none of them, how the platform in one process does."""
    live = Runtime(load_settings({"AGENT_TEAM_HOME": str(home), **variables}), serves=serves if serves else None)
    live.__dict__["database_url"] = "the embedded database" if live.settings.database_url is None else "DATABASE_URL"
    return type(live.store._caller).__name__


@pytest.mark.parametrize("name", FUNCTIONS)
def test_with_one_way_configured_every_function_takes_it(name: str, tmp_path: Path) -> None:
    assert way(tmp_path, name, **DATABASE) == "PostgresCaller"
    assert way(tmp_path, name, **SUPABASE) == "SupabaseCaller"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_with_both_the_busiest_functions_take_the_connection_and_the_others_http(name: str, tmp_path: Path) -> None:
    assert way(tmp_path, name, **BOTH) == ("PostgresCaller" if name in BUSIEST else "SupabaseCaller")


def test_a_process_with_several_functions_takes_what_its_busiest_takes(tmp_path: Path) -> None:
    assert way(tmp_path, "gateway", "sweeper", **BOTH) == "PostgresCaller"
    assert way(tmp_path, "gateway", "intake", **BOTH) == "SupabaseCaller"


@pytest.mark.parametrize("variables", [{}, DATABASE, SUPABASE, BOTH, {"SUPABASE_URL": "https://half"}])
def test_the_platform_in_one_process_always_takes_the_connection(variables: dict[str, str], tmp_path: Path) -> None:
    assert way(tmp_path, **variables) == "PostgresCaller"


@pytest.mark.parametrize("given", SUPABASE)
def test_half_a_configuration_is_refused(given: str, tmp_path: Path) -> None:
    (missing,) = SUPABASE.keys() - {given}
    with pytest.raises(ConfigurationError, match=f"{missing} is missing"):
        way(tmp_path, "gateway", **{given: SUPABASE[given]}, **DATABASE)


@pytest.mark.parametrize(("variables", "loaded"), [(DATABASE, "asyncpg"), (SUPABASE, "supabase"), (BOTH, "supabase")])
def test_only_what_is_chosen_is_imported(variables: dict[str, str], loaded: str) -> None:
    code = _WAY.format(variables=variables, serves=("gateway",), heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str([loaded])
