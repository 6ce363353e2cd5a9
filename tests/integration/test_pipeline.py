"""The pipeline's steps, run in their order with a gcloud, a docker and an agent-team that play failures."""

import os
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.gcloud import FakeGcloud

ROOT = Path(__file__).parents[2]
BUILD: dict[str, Any] = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["id"]: step for step in BUILD["steps"]}
SUBSTITUTIONS = {
    "PROJECT_ID": "p",
    "SHORT_SHA": "abc1234",
    "_REGION": "us-central1",
    "_ENVIRONMENT": "staging",
    "_URL": "https://a.example",
    "_WATCH_SECONDS": "0",
}


def before(step: str) -> set[str]:
    """All that a step waits for, directly or not."""
    direct = {one for one in STEPS[step].get("waitFor", ()) if one != "-"}
    return direct.union(*(before(one) for one in direct))


class Pipeline:
    """A checkout whose tools are played: what `fails` of `make` and `agent-team` exits with 1."""

    def __init__(self, folder: Path, fails: str = "") -> None:
        self.gcloud = FakeGcloud(folder, answers={"services describe": '{"status": {"traffic": []}}', "images scan": "scan-1"})
        self._folder, self._fails = folder / "checkout", fails
        (self._folder / "scripts").mkdir(parents=True)
        (self._folder / "functions").symlink_to(ROOT / "functions")
        (self._folder / "scripts" / "release.py").write_bytes((ROOT / "scripts" / "release.py").read_bytes())
        (self._folder / ".ci").mkdir()
        self._path = self.gcloud.install()
        for program in (
            self._folder / "agent-team",
            self._folder / ".ci" / "run",
            folder / "bin" / "make",
            folder / "bin" / "docker",
        ):
            program.write_text(
                f'#!/usr/bin/env bash\necho "$(basename "$0") $*" >> {folder}/ran\n[[ "$*" != "{fails or "nothing"}" ]]\n'
            )
            program.chmod(0o755)
        self._ran = folder / "ran"

    def run(self) -> list[str]:
        """Run the steps as Cloud Build does, one after the other, and return the ids of those that ended well."""
        order = TopologicalSorter({name: {one for one in step.get("waitFor", ()) if one != "-"} for name, step in STEPS.items()})
        well: list[str] = []
        for name in order.static_order():
            script = self._folder / f"{name}.sh"
            script.write_text(STEPS[name]["script"], encoding="utf-8")
            environment = {**os.environ, **SUBSTITUTIONS, "PATH": self._path}
            if subprocess.run(["bash", script], cwd=self._folder, env=environment, capture_output=True, check=False).returncode:
                break
            well.append(name)
        return well

    def ran(self) -> str:
        return self._ran.read_text(encoding="utf-8")


def test_everything_waits_for_what_it_stands_on() -> None:
    assert before("deploy") == {"check", "image", "scan", "migrate", "record"}
    assert before("canary") == before("deploy") | {"deploy", "smoke"}
    assert before("verify") == before("canary") | {"canary"}


def test_a_release_goes_through_every_step(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    assert set(pipeline.run()) == STEPS.keys()
    assert pipeline.gcloud.calls("run", "deploy")
    assert "agent-team smoke --env staging --url https://a.example" in pipeline.ran()


@pytest.mark.parametrize("fails", ["migrate", "setup"])
def test_a_migration_that_fails_stops_before_anything_is_deployed(tmp_path: Path, fails: str) -> None:
    pipeline = Pipeline(tmp_path, fails)
    well = pipeline.run()
    assert "migrate" not in well
    assert "deploy" not in well
    assert not pipeline.gcloud.calls("run", "deploy")
    assert not pipeline.gcloud.calls("update-traffic")


def test_a_critical_hole_stops_before_the_migration(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.gcloud.answers["list-vulnerabilities"] = "LOW\nCRITICAL"
    pipeline.gcloud.install()
    assert "scan" not in pipeline.run()
    assert "migrate" not in pipeline.ran()
