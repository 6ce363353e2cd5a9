"""The pipeline's steps, run in their order with an apt-get, a docker, a gcloud and an agent-team that play failures."""

import os
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import yaml

from tests.support.gcloud import FakeGcloud

ROOT = Path(__file__).parents[2]
BUILD: dict[str, Any] = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text(encoding="utf-8"))
STEPS: dict[str, dict[str, Any]] = {step["id"]: step for step in BUILD["steps"]}
SUBSTITUTIONS = {
    "BUILD_ID": "1f2e3d4c-aaaa-bbbb-cccc-1234567890ab",
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
    """A checkout whose tools are played: what `fails` of them exits with 1."""

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
            folder / "bin" / "apt-get",
            folder / "bin" / "docker",
        ):
            program.write_text(
                f'#!/usr/bin/env bash\necho "$(basename "$0") $*" >> {folder}/ran\n[[ "$*" != "{fails or "nothing"}" ]]\n'
            )
            program.chmod(0o755)
        self._ran = folder / "ran"

    def run(self, build: str = SUBSTITUTIONS["BUILD_ID"]) -> list[str]:
        """Run the steps as Cloud Build does, one after the other, and return the ids of those that ended well."""
        order = TopologicalSorter({name: {one for one in step.get("waitFor", ()) if one != "-"} for name, step in STEPS.items()})
        well: list[str] = []
        for name in order.static_order():
            script = self._folder / f"{name}.sh"
            script.write_text(STEPS[name]["script"], encoding="utf-8")
            environment = {**os.environ, **SUBSTITUTIONS, "BUILD_ID": build, "PATH": self._path}
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


def test_a_commit_that_is_built_again_is_another_release(tmp_path: Path) -> None:
    """A tag of an image is for good, and so is the name of a revision."""
    pipeline = Pipeline(tmp_path)
    pipeline.run()
    pipeline.run("9a8b7c6d-aaaa-bbbb-cccc-1234567890ab")
    pushed = [line.rpartition(":")[2] for line in pipeline.ran().splitlines() if line.startswith("docker push")]
    assert pushed == ["abc1234-1f2e3d", "abc1234-1f2e3d-tools", "abc1234-9a8b7c", "abc1234-9a8b7c-tools"]
    suffixes = {call[call.index("--revision-suffix") + 1] for call in pipeline.gcloud.calls("run", "deploy")}
    assert suffixes == {"abc1234-1f2e3d", "abc1234-9a8b7c"}


def test_what_served_before_is_kept_though_the_release_fails(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path)
    pipeline.gcloud.failures["run deploy writer"] = "quota exceeded"
    pipeline.gcloud.install()
    assert "deploy" not in pipeline.run()
    (kept,) = pipeline.gcloud.calls("storage", "cp")
    assert kept[2:] == ["before.json", "gs://p-terraform-state/releases/abc1234-1f2e3d/before.json"]


def test_whoever_uses_the_checkouts_python_runs_in_the_image_that_made_it() -> None:
    """A .venv holds the path and the version of the Python that it was made with, and the checkout goes from step to step."""
    users = {name: step for name, step in STEPS.items() if "./agent-team" in step["script"]}
    assert users.keys() == {"migrate", "verify"}
    assert {step["name"] for step in users.values()} == {STEPS["check"]["name"]}


def test_a_migration_that_fails_stops_before_anything_is_deployed(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path, "migrate")
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
