"""The commands of gcloud and terraform in scripts, pipeline and documentation are ones that the tools take. None is run."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.infra.conftest import PROJECT
from tests.integration.test_release import IMAGE, SERVICES, TAG, described, release
from tests.support.documentation import PAGES, Command, commands, inline
from tests.support.gcloud import FakeGcloud, monitoring


def checked(tools: Path, *what: str | Path) -> "subprocess.CompletedProcess[str]":
    """What gcloud's own parser says."""
    command = [sys.executable, tools / "gcloudcheck.py", *what]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=150, check=False)


def test_gcloud_takes_every_command_of_the_pipeline_and_the_documentation(tools: Path, tmp_path: Path) -> None:
    sentences = tmp_path / "sentences.sh"
    sentences.write_text("".join(f"{text}\n" for page in PAGES for _, text in inline(page) if text.startswith("gcloud ")))
    done = checked(tools, "README.md", "docs", "cloudbuild.yaml", "scripts", sentences)
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) commands and build files", done.stdout)
    assert found is not None
    assert int(found[1]) > 70


def test_gcloud_takes_every_command_of_a_release(tools: Path, tmp_path: Path) -> None:
    (tmp_path / "gcloud").mkdir()
    answers = {f"services describe {service}": described(f"{service}-old") for service in SERVICES}
    listed = '[{"metadata": {"name": "x-failed"}}, {"metadata": {"name": "x-old"}}]'
    gcloud = FakeGcloud(tmp_path / "gcloud", answers={**answers, "print-access-token": "token", "revisions list": listed})
    state = str(tmp_path / "before.json")
    with monitoring({}) as (address, _):
        runs = [
            release(gcloud, "record", "--state", state),
            release(gcloud, "deploy", "--image", IMAGE, "--tag", TAG),
            release(gcloud, "smoke", "--image", IMAGE, "--tag", TAG),
            release(gcloud, "canary", "--state", state, "--tag", TAG, "--watch-seconds", "0.01", "--monitoring", address),
            release(gcloud, "rollback", "--state", state),
            release(gcloud, "rollback"),
        ]
    assert [run.returncode for run in runs] == [0] * 6, [run.stderr for run in runs]
    one = next(iter(SERVICES))
    calls = {shlex.join(["gcloud", *call]) for call in gcloud.calls() if one in call or not SERVICES.keys() & set(call)}
    assert len(calls) >= 10
    script = tmp_path / "release.sh"
    script.write_text("\n".join(sorted(calls)) + "\n", encoding="utf-8")
    done = checked(tools, script)
    assert done.returncode == 0, done.stdout
    assert f"{len(calls)} commands" in done.stdout


def test_a_command_that_gcloud_does_not_take_is_noticed(tools: Path) -> None:
    done = checked(tools, "-c", "gcloud run services update writer --no-traffics --region us-central1")
    assert done.returncode == 1


@cache
def help_of(*verb: str) -> str:
    done = subprocess.run(["terraform", *verb, "-help"], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def declared(folder: Path, kind: str, *labels: str) -> bool:
    pattern = rf"^{kind} +" + " +".join(f'"{re.escape(label)}"' for label in labels) + r" +\{"
    return any(re.search(pattern, file.read_text(encoding="utf-8"), re.MULTILINE) for file in folder.glob("*.tf"))


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("command", [one for one in commands("terraform") if one.words[1].startswith("-chdir=")], ids=str)
def test_terraform_takes_every_command_of_the_documentation(command: Command) -> None:
    place, *words = command.words[1:]
    folder = PROJECT / place.removeprefix("-chdir=")
    assert list(folder.glob("*.tf")), f"{place} is no folder of Terraform"
    verb = tuple(words[:2]) if words[0] == "state" else (words[0],)
    assert re.search(rf"^\s+{verb[-1]}\s", help_of(*verb[:-1]), re.MULTILINE), verb
    planned = help_of("plan") if verb[0] in ("apply", "destroy") else ""
    flags = set(re.findall(r"(?<=\s)-([a-z-]+)", help_of(*verb) + planned))
    for word in words[len(verb) :]:
        name, _, value = word.partition("=")
        if name.startswith("-"):
            assert name.removeprefix("-") in flags, word
        if name == "-var":
            assert declared(folder, "variable", value.partition("=")[0]), word
        elif name == "-var-file" and "$" not in value:
            assert (folder / value).is_file(), word
        elif name == "-target" or verb == ("state", "rm"):
            assert declared(folder, "resource", *(value or name).split(".")), word
        elif verb == ("output",) and not name.startswith("-"):
            assert declared(folder, "output", name), word
