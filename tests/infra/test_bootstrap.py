"""What has to be there before anything else: APIs, the accounts of Google's own services, and what the pipeline may do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.infra.conftest import PROJECT, Plan

NAMES = {
    "google_artifact_registry": "artifactregistry",
    "google_billing": "billingbudgets",
    "google_certificate_manager": "certificatemanager",
    "google_cloud_run": "run",
    "google_cloud_scheduler": "cloudscheduler",
    "google_compute": "compute",
    "google_firestore": "firestore",
    "google_logging": "logging",
    "google_monitoring": "monitoring",
    "google_project_iam": "cloudresourcemanager",
    "google_pubsub": "pubsub",
    "google_redis": "redis",
    "google_secret_manager": "secretmanager",
    "google_service_account": "iam",
    "google_service_networking": "servicenetworking",
    "google_storage": "storage",
}
"""The API that makes a kind of resource, by the beginning of the kind's name."""


@pytest.fixture(scope="module")
def bootstrap(tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    out = tmp_path_factory.mktemp("bootstrap") / "plan.json"
    repository = "projects/p/locations/us-central1/connections/c/repositories/r"
    values = {"project_id": "my-agent-team", "environment": "production", "domain": "agents.example.com", "repository": repository}
    command: list[str | Path] = [sys.executable, tools / "tfcheck.py", "infra/bootstrap", "--strict", "--terraform", "--plan"]
    command += [f"--json-plan={out}", *(part for name, value in values.items() for part in ("--var", f"{name}={value}"))]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {one["address"]: one["values"] for one in json.loads(out.read_text())["planned_values"]["root_module"]["resources"]}


def apis(bootstrap: Plan) -> set[str]:
    return {values["service"] for address, values in bootstrap.items() if address.startswith("google_project_service.")}


def test_every_api_that_something_is_made_with_is_switched_on(bootstrap: Plan) -> None:
    kinds = set()
    for file in (PROJECT / "infra").glob("*.tf"):
        kinds |= set(re.findall(r'^resource "(\w+)"', file.read_text(encoding="utf-8"), re.MULTILINE))
    needed = {next(f"{api}.googleapis.com" for name, api in NAMES.items() if kind.startswith(name)) for kind in kinds}
    assert needed <= apis(bootstrap)


def test_every_api_that_the_pipeline_has_a_role_for_is_switched_on(bootstrap: Plan) -> None:
    roles = {values["role"] for address, values in bootstrap.items() if address.startswith("google_project_iam_member.builder[")}
    assert len(roles) >= 5
    assert {f"{role.removeprefix('roles/').partition('.')[0]}.googleapis.com" for role in roles} <= apis(bootstrap)


def test_the_accounts_of_googles_services_are_there_before_they_are_granted_anything(bootstrap: Plan) -> None:
    """Else the first apply of an empty project ends with "does not exist"."""
    text = "".join(file.read_text(encoding="utf-8") for file in (PROJECT / "infra").glob("*.tf"))
    granted = set(re.findall(r"@gcp-sa-([a-z]+)\.iam\.gserviceaccount\.com", text))
    assert granted == {"pubsub", "secretmanager"}
    made = {values["service"] for address, values in bootstrap.items() if address.startswith("google_project_service_identity.")}
    assert {f"{service}.googleapis.com" for service in granted} <= made


def test_production_asks_for_an_approval(bootstrap: Plan) -> None:
    (approval,) = bootstrap["google_cloudbuild_trigger.release[0]"]["approval_config"]
    assert approval["approval_required"]


def test_the_pipeline_adds_to_the_states_bucket_and_reads_nothing_there(bootstrap: Plan) -> None:
    roles = {values["role"] for address, values in bootstrap.items() if ".builder_state" in address}
    assert roles == {"roles/storage.objectCreator", "roles/storage.legacyBucketReader"}
