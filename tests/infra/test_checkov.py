"""The security scan of the plan finds nothing but what has a written reason (infra/.checkov.yaml)."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.infra.conftest import ENVIRONMENTS, PROJECT

SCAN = PROJECT / ".venv-checkov" / "bin" / "checkov"


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_scan_finds_nothing_without_a_reason(environment: str, plan_file: Callable[[str], Path]) -> None:
    if not SCAN.exists():
        if os.environ.get("CI"):
            pytest.fail(f"{SCAN} is not there")
        pytest.skip("checkov is not installed; say make check-infra")
    command: list[str | Path] = [SCAN, "-f", plan_file(environment), "--config-file", PROJECT / "infra" / ".checkov.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_exception_has_its_reason() -> None:
    lines = (PROJECT / "infra" / ".checkov.yaml").read_text(encoding="utf-8").splitlines()
    checks = [index for index, line in enumerate(lines) if re.match(r"\s+- CKV", line)]
    assert checks
    for index in checks:
        assert lines[index - 1].lstrip().startswith(("#", "- CKV")), lines[index]
