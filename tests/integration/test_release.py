"""The release: what it asks of gcloud, in which order, and what it does when something goes wrong."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.runtime.spec import load_functions
from tests.support.gcloud import FakeGcloud, monitoring
from tests.support.promql import ambiguous

SCRIPT = Path(__file__).parents[2] / "scripts" / "release.py"
SERVICES = {name.replace("_", "-"): name for name in load_functions()}
IMAGE, TAG = "us-central1-docker.pkg.dev/p/agent-team/agent-team:abc1234", "c-abc1234"


PLACEHOLDER = {"containers": [{"image": "us-docker.pkg.dev/cloudrun/container/hello"}]}


def described(revision: str, spec: object = None) -> str:
    traffic = [{"revisionName": revision, "percent": 100}, {"tag": "c-old", "revisionName": "x"}]
    return json.dumps({"spec": {"template": {"spec": spec or {}}}, "status": {"traffic": traffic}})


@pytest.fixture
def gcloud(tmp_path: Path) -> FakeGcloud:
    answers = {f"services describe {service}": described(f"{service}-old") for service in SERVICES}
    return FakeGcloud(tmp_path, answers={**answers, "print-access-token": "token"})


def release(gcloud: FakeGcloud, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments, "--project", "p", "--region", "us-central1"]
    environment = {**os.environ, "PATH": gcloud.install()}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def recorded(gcloud: FakeGcloud) -> str:
    state = gcloud.home / "before.json"
    done = release(gcloud, "record", "--state", str(state))
    assert done.returncode == 0, done.stderr
    return str(state)


def canary(gcloud: FakeGcloud, state: str, address: str) -> "subprocess.CompletedProcess[str]":
    return release(gcloud, "canary", "--state", state, "--tag", TAG, "--watch-seconds", "0.01", "--monitoring", address)


def traffic(gcloud: FakeGcloud, service: str) -> list[str]:
    return [next(part for part in call if part.startswith("--to-")) for call in gcloud.calls("update-traffic", service)]


def test_what_serves_now_is_recorded(gcloud: FakeGcloud) -> None:
    found = json.loads(Path(recorded(gcloud)).read_text(encoding="utf-8"))
    assert found == {service: f"{service}-old" for service in SERVICES}


def test_every_function_gets_a_revision_without_traffic(gcloud: FakeGcloud) -> None:
    done = release(gcloud, "deploy", "--image", IMAGE, "--tag", TAG)
    assert done.returncode == 0, done.stderr
    calls = gcloud.calls("run", "deploy")
    assert {call[2] for call in calls} == SERVICES.keys()
    for call in calls:
        assert "--no-traffic" in call
        assert call[call.index("--tag") + 1] == TAG
        assert call[call.index("--revision-suffix") + 1] == "abc1234"
        assert f"FUNCTION_TARGET={SERVICES[call[2]]}" in call
    assert not gcloud.calls("update-traffic")


def test_a_deployment_that_fails_moves_no_traffic(gcloud: FakeGcloud) -> None:
    gcloud.failures["run deploy writer"] = "quota exceeded"
    done = release(gcloud, "deploy", "--image", IMAGE, "--tag", TAG)
    assert done.returncode == 1
    assert done.stderr.startswith("error: gcloud run deploy writer")
    assert "quota exceeded" in done.stderr
    assert not gcloud.calls("update-traffic")


def test_the_smoke_test_runs_inside_and_stops_the_release_when_it_fails(gcloud: FakeGcloud) -> None:
    done = release(gcloud, "smoke", "--image", IMAGE, "--tag", TAG)
    assert done.returncode == 0, done.stderr
    (update,) = gcloud.calls("jobs", "update", "smoke")
    assert f"--args=smoke,--revisions,{TAG}" in update
    gcloud.failures["jobs execute smoke"] = "the execution failed"
    assert release(gcloud, "smoke", "--image", IMAGE, "--tag", TAG).returncode == 1


def test_a_good_canary_gets_more_and_more(gcloud: FakeGcloud) -> None:
    state = recorded(gcloud)
    with monitoring({"response_code_class": 0.4, "answer_seconds": 900.0, "workflow_failed": 2.0}) as (address, asked):
        done = canary(gcloud, state, address)
    assert done.returncode == 0, done.stderr
    for service in SERVICES:
        assert traffic(gcloud, service) == [f"--to-tags={TAG}={percent}" for percent in (10, 50, 100)]
    assert any('revision_name=~".*-abc1234"' in query for query in asked)


def test_monitoring_is_asked_only_what_it_can_answer(gcloud: FakeGcloud) -> None:
    state = recorded(gcloud)
    with monitoring({}) as (address, asked):
        assert canary(gcloud, state, address).returncode == 0
    assert len(asked) >= 3
    for query in asked:
        assert not ambiguous(query)
        # Where nothing was counted a sum is nothing, not 0, and so is all that it is added to: all failed, and nobody noticed.
        for summand in re.findall(r"\(?sum\(increase\([^()]+\)\)(?: or vector\(0\)\))?", query):
            assert summand.endswith(" or vector(0))"), query


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"response_code_class": 7.5}, "error rate of the new revisions, %: 7.5 is above 5"),
        ({"answer_seconds": 6100.0}, "latency of the new gateway"),
        ({"workflow_failed": 45.0}, "workflows that failed, %"),
    ],
)
def test_a_bad_canary_is_rolled_back_everywhere(gcloud: FakeGcloud, values: dict[str, float | None], reason: str) -> None:
    state = recorded(gcloud)
    with monitoring(values) as (address, _):
        done = canary(gcloud, state, address)
    assert done.returncode == 1
    assert reason in done.stderr
    for service in SERVICES:
        assert traffic(gcloud, service) == [f"--to-tags={TAG}=10", f"--to-revisions={service}-old=100"]


def test_a_canary_that_nobody_can_watch_is_rolled_back(gcloud: FakeGcloud) -> None:
    state = recorded(gcloud)
    done = release(
        gcloud, "canary", "--state", state, "--tag", TAG, "--watch-seconds", "0.1", "--look-seconds", "0.02",
        "--monitoring", "http://127.0.0.1:1",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Monitoring did not answer 3 times in a row" in done.stderr
    assert traffic(gcloud, "writer")[-1] == "--to-revisions=writer-old=100"


def test_a_function_that_was_never_released_gets_everything_at_once(gcloud: FakeGcloud) -> None:
    """What would be left to the placeholder is answered with 200 and lost."""
    gcloud.answers["services describe writer"] = described("writer-00001-abc", PLACEHOLDER)
    state = recorded(gcloud)
    assert "writer" not in json.loads(Path(state).read_text(encoding="utf-8"))
    with monitoring({"response_code_class": 7.5}) as (address, _):
        assert canary(gcloud, state, address).returncode == 1
    assert traffic(gcloud, "writer") == [f"--to-tags={TAG}=100"]
    assert traffic(gcloud, "judge") == [f"--to-tags={TAG}=10", "--to-revisions=judge-old=100"]


def test_a_first_release_that_is_bad_says_why(gcloud: FakeGcloud) -> None:
    for service in SERVICES:
        gcloud.answers[f"services describe {service}"] = described(f"{service}-00001-abc", PLACEHOLDER)
    state = recorded(gcloud)
    with monitoring({"response_code_class": 7.5}) as (address, _):
        done = canary(gcloud, state, address)
    assert done.returncode == 1
    assert "7.5 is above 5" in done.stderr
    assert "there is nothing to go back to" in done.stderr
    assert traffic(gcloud, "writer") == [f"--to-tags={TAG}=100"]


def test_nobody_goes_back_to_the_placeholder(gcloud: FakeGcloud) -> None:
    for service in SERVICES:
        listed = [{"metadata": {"name": f"{service}-old"}}, {"metadata": {"name": f"{service}-00001-abc"}, "spec": PLACEHOLDER}]
        gcloud.answers[f"revisions list --service {service}"] = json.dumps(listed)
    done = release(gcloud, "rollback")
    assert (done.returncode, done.stderr) == (1, "error: there is no revision to go back to\n")
    assert not gcloud.calls("update-traffic")


def test_the_placeholder_is_the_one_that_terraform_makes() -> None:
    image = PLACEHOLDER["containers"][0]["image"]
    assert f'image = "{image}"' in (SCRIPT.parents[1] / "infra" / "services.tf").read_text(encoding="utf-8")


def test_traffic_that_cannot_be_moved_rolls_back_what_was_moved(gcloud: FakeGcloud) -> None:
    state = recorded(gcloud)
    gcloud.failures[f"update-traffic judge --to-tags={TAG}=10"] = "no such tag"
    with monitoring({}) as (address, _):
        done = canary(gcloud, state, address)
    assert done.returncode == 1
    assert traffic(gcloud, "writer")[-1] == "--to-revisions=writer-old=100"


def test_a_rollback_that_fails_for_one_goes_on_with_the_others_and_says_so(gcloud: FakeGcloud) -> None:
    state = recorded(gcloud)
    gcloud.failures["update-traffic judge"] = "permission denied"
    done = release(gcloud, "rollback", "--state", state)
    assert done.returncode == 1
    assert "not rolled back, do it by hand: judge:" in done.stderr
    assert {call[3] for call in gcloud.calls("update-traffic")} == SERVICES.keys()


def test_one_command_rolls_back_without_a_record(gcloud: FakeGcloud) -> None:
    for service in SERVICES:
        names = [f"{service}-failed", f"{service}-old", f"{service}-older"]
        gcloud.answers[f"revisions list --service {service}"] = json.dumps([{"metadata": {"name": name}} for name in names])
    done = release(gcloud, "rollback")
    assert done.returncode == 0, done.stderr
    assert traffic(gcloud, "dead-letter") == ["--to-revisions=dead-letter-older=100"]


def test_a_record_that_is_missing_is_told(gcloud: FakeGcloud) -> None:
    done = release(gcloud, "canary", "--state", "nowhere.json", "--tag", TAG)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "say record before deploy" in done.stderr


def test_a_call_without_what_it_needs_is_refused(gcloud: FakeGcloud) -> None:
    done = release(gcloud, "deploy", "--tag", TAG)
    assert done.returncode == 2
    assert "deploy needs --image" in done.stderr
