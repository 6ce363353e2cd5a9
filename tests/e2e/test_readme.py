"""The tour of the README, typed as it stands there into a shell, against the platform that its first step starts.

And what any page has one type that only looks.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.local.server import bind
from tests.support.documentation import commands, verb_of, verbs

ROOT = Path(__file__).parents[2]
SECONDS = 150
_HEADING = "## A tour of five minutes\n"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LOOKS = {
    *("dead-letters list", "dead-letters redrive", "doctor", "documents list", "keys api list", "migrate", "purge"),
    *("workflows check", "workflows list", "workflows show"),
}
"""Verbs that need nothing but this machine and, without --yes, do no harm."""
_DONE = "--- step {} is done"


def tour() -> list[str]:
    """The steps of the tour, one for each block."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(_HEADING)
    return _BLOCK.findall(rest.partition("\n## ")[0])


def looks() -> set[tuple[str, ...]]:
    """The commands of all pages that only look, and name nothing that is elsewhere."""
    return {
        command.words
        for command in commands("agent-team")
        if verb_of(command.words, verbs()) in _LOOKS
        and not command.mentioned
        and not {"--yes", "--url", "--help"} & set(command.words)
        and "$" not in "".join(command.words)
    }


@contextmanager
def typed(command: str, environment: dict[str, str]) -> Iterator[str]:
    """A command that serves, in the background: its first line. It is ended as Ctrl-C does."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command}"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def test_the_tour_of_the_readme_can_be_typed_as_it_stands_there(tmp_path: Path) -> None:
    serve, *steps = tour()
    assert len(steps) == 6
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    # What differs from a reader's shell: the port, by its setting and where the address is typed, and the folder for the data.
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    environment = {**given, "AGENT_TEAM_HOME": str(tmp_path / "home"), "PORT": str(port)}
    script = "\n".join(
        f"{step.replace('http://127.0.0.1:8080', f'http://127.0.0.1:{port}')}echo '{_DONE.format(number)}'"
        for number, step in enumerate(steps)
    )
    with typed(serve.strip(), environment) as line:
        assert f"ready on http://127.0.0.1:{port}" in line
        walk = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert walk.returncode == 0, walk.stdout + walk.stderr
    report, watched, shown, cancelled, searched, looked, _ = re.split(r"--- step \d is done\n", walk.stdout)
    assert report.startswith("# Incident notes")
    assert "plan: started" in watched
    assert "SUCCESS in " in watched
    assert "· SUCCESS" in shown
    assert re.search(r"^id +workflow +status", shown, re.MULTILINE)
    assert re.match(r"wf_\w{26} is cancelled\nwas at work: ", cancelled)
    assert "added  docs/architecture.md\n" in searched
    assert len(searched.splitlines()) > len(list((ROOT / "docs").rglob("*.md")))
    assert "ok  database: embedded PostgreSQL, schema current" in looked
    assert "BAD" not in looked


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documented") / "home"


@pytest.mark.parametrize("words", sorted(looks()), ids=" ".join)
def test_what_looks_and_changes_nothing_can_be_typed_anywhere(words: tuple[str, ...], empty_home: Path) -> None:
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    environment = {**given, "AGENT_TEAM_HOME": str(empty_home)}
    done = subprocess.run(
        ["./agent-team", *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or done.stderr
