"""What the image holds is what functions use: each direct dependency is imported by one, or has a reason; none of the others is."""

import ast
import re
import tomllib
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NAME = re.compile(r"[A-Za-z0-9._-]+")

NOT_IMPORTED = {
    "tzdata": "zoneinfo's data, where the image has none",
    "uvicorn": "what functions-framework serves with",
    "uvloop": "uvicorn takes it for its event loop wherever it is installed",
}
"""Direct dependency of the image → why it is there although no function's code imports it."""
OF_ONE_MACHINE = {"shared/state/embedded.py": "without DATABASE_URL, which a function in the cloud always has, it is the database"}
"""Files of functions' rooms that may import what only one machine has → why."""


def names(requirements: list[str]) -> list[str]:
    return [found[0] for one in requirements if (found := NAME.match(one))]


def files_of_functions() -> list[Path]:
    """All that a function may run: its own code, and every room of shared but the command line and the local platform."""
    of_one_machine = (ROOT / "shared" / "cli", ROOT / "shared" / "local")
    shared = [file for file in (ROOT / "shared").rglob("*.py") if not any(file.is_relative_to(room) for room in of_one_machine)]
    return [ROOT / "main.py", *(ROOT / "functions").rglob("*.py"), *shared]


@cache
def imported() -> dict[str, set[Path]]:
    """Dotted name → files of functions that import it, at the top or when it is needed."""
    found: dict[str, set[Path]] = {}
    for file in files_of_functions():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for module in modules:
                found.setdefault(module, set()).add(file)
    return found


def importers(dependency: str) -> set[Path]:
    """The files of functions that import something which this distribution has brought."""
    brought = {str(file) for file in distribution(dependency).files or ()}

    def brings(module: str) -> bool:
        place = module.replace(".", "/")
        return (
            f"{place}.py" in brought
            or f"{place}/__init__.py" in brought
            or any(re.match(rf"{place}\.[\w-]+\.so$", one) for one in brought)
        )

    return {file for module, files in imported().items() if brings(module) for file in files}


@pytest.mark.parametrize("dependency", names(PROJECT["dependencies"]))
def test_a_function_imports_it_or_it_has_a_reason(dependency: str) -> None:
    if dependency in NOT_IMPORTED:
        assert not importers(dependency), f"{dependency} is imported; its reason is none"
    else:
        assert importers(dependency), f"{dependency} is in the image, and nothing there imports it"


@pytest.mark.parametrize("dependency", names(PROJECT["optional-dependencies"]["local"]))
def test_no_function_imports_what_only_one_machine_has(dependency: str) -> None:
    assert {str(file.relative_to(ROOT)) for file in importers(dependency)} <= set(OF_ONE_MACHINE)


def test_no_reason_is_left_over() -> None:
    assert set(NOT_IMPORTED) <= set(names(PROJECT["dependencies"]))
    local = names(PROJECT["optional-dependencies"]["local"])
    assert {str(file.relative_to(ROOT)) for one in local for file in importers(one)} == set(OF_ONE_MACHINE)


def test_the_image_has_every_direct_dependency_and_nothing_that_only_one_machine_needs() -> None:
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==", (ROOT / "requirements-cloud.txt").read_text(encoding="utf-8"), re.MULTILINE))
    assert {one.lower() for one in names(PROJECT["dependencies"])} <= pinned
    assert not {one.lower() for one in names(PROJECT["optional-dependencies"]["local"])} & pinned
