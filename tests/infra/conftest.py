"""Plans of the real terraform, made against the provider's schema alone: nothing reaches a cloud."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
ENVIRONMENTS = ("staging", "production")
TOOLS = Path(os.environ.get("INFRA_TOOLS", PROJECT.parent / "shared" / "tools"))
"""Where tfcheck.py and gcloudcheck.py are, with the provider's schema."""

Plan = dict[str, dict[str, Any]]
"""What would be made: its planned values by its address."""


@pytest.fixture(scope="session", autouse=True)
def tools() -> Path:
    if not (TOOLS / "tfcheck.py").is_file():
        pytest.skip(f"the offline checks are not in {TOOLS}; say INFRA_TOOLS=folder where they are")
    if shutil.which("terraform") is None:
        if os.environ.get("CI"):
            pytest.fail("terraform is not on the path")
        pytest.skip("terraform is not on the path")
    return TOOLS


@pytest.fixture(scope="session")
def check(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Checks an environment of a project's folder, statically and with terraform: all has to be clean. Returns the plan's file."""

    def run(environment: str, *variables: str, project: Path = PROJECT, tests: bool = False) -> Path:
        work = tmp_path_factory.mktemp("plan")
        others = ("__pycache__", ".terraform*", "*.py", *(() if tests else ("*.tftest.hcl",)))
        for part in ("infra", "functions", "workflows"):
            shutil.copytree(project / part, work / part, ignore=shutil.ignore_patterns(*others))
        out = work / "plan.json"
        command: list[str | Path] = [
            sys.executable,
            tools / "tfcheck.py",
            "infra",
            "--strict",
            "--terraform",
            "--plan",
            "--copy-root",
            ".",
        ]
        command += [f"--var-file=infra/environments/{environment}.tfvars", f"--json-plan={out}"]
        command += [part for variable in variables for part in ("--var", variable)]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return out

    return run


@pytest.fixture(scope="session")
def make_plan(check: Callable[..., Path]) -> Callable[..., Plan]:
    """Plans an environment of a project's folder, see `check`."""
    return lambda *asked, **more: _planned(check(*asked, **more))


@pytest.fixture(scope="session")
def plan_file(check: Callable[..., Path]) -> Callable[[str], Path]:
    """The file of an environment's plan, made once."""
    return cache(check)


@pytest.fixture(scope="session")
def plans(plan_file: Callable[[str], Path]) -> dict[str, Plan]:
    return {environment: _planned(plan_file(environment)) for environment in ENVIRONMENTS}


@pytest.fixture(params=ENVIRONMENTS)
def plan(request: pytest.FixtureRequest, plans: dict[str, Plan]) -> Plan:
    return plans[request.param]


def _planned(file: Path) -> Plan:
    resources = json.loads(file.read_text())["planned_values"]["root_module"]["resources"]
    return {one["address"]: one["values"] for one in resources}
