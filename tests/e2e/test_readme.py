"""The README's tour, typed as it stands there into a shell, against the platform that its first step starts."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.local.server import bind

ROOT = Path(__file__).parents[2]
SECONDS = 150
_HEADING = "## A tour of five minutes\n"
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DONE = "--- step {} is done"


def tour() -> list[str]:
    """The steps of the tour, one for each block."""
    _, _, rest = (ROOT / "README.md").read_text(encoding="utf-8").partition(_HEADING)
    return _BLOCK.findall(rest.partition("\n## ")[0])


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
