"""The verbs over HTTP against `agent-team serve`, as processes: pipes, a terminal, Ctrl-C, a platform that is killed."""

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.local.server import bind
from tests.support.serving import ROOT, Served, serving

BRIEF = "The ferry was late on Monday. The crew had 3 people instead of 5. Who decides when it sails?"
UNKNOWN = "wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"
SECONDS = 90


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A platform with a simulated model, which takes its time."""
    with asyncio.Runner() as runner:
        context = serving(tmp_path_factory.mktemp("served"), "--simulate")
        platform = runner.run(context.__aenter__())
        yield platform
        runner.run(platform.end())
        runner.run(context.__aexit__(None, None, None))


class Command:
    """`agent-team` as a process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> str:
        """The next line of standard output."""
        assert self.process.stdout is not None
        async with asyncio.timeout(SECONDS):
            return (await self.process.stdout.readline()).decode()

    async def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it still wrote to standard output and standard error."""
        async with asyncio.timeout(SECONDS):
            out, error = await self.process.communicate()
        assert self.process.returncode is not None
        assert "Traceback" not in error.decode()
        return self.process.returncode, out.decode(), error.decode()


def environment(url: str, folder: Path) -> dict[str, str]:
    given = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    return {**given, "AGENT_TEAM_URL": url, "AGENT_TEAM_HOME": str(folder / "elsewhere"), "PYTHONPATH": str(ROOT)}


@asynccontextmanager
async def started(url: str, folder: Path, *words: str) -> AsyncIterator[Command]:
    """A command that runs; what still does in the end is ended."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shared.cli", *words),
        cwd=folder,
        env=environment(url, folder),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )
    try:
        yield Command(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command(url: str, folder: Path, *words: str) -> tuple[int, str, str]:
    async with started(url, folder, *words) as one:
        return await one.ended()


async def test_a_workflow_is_submitted_watched_shown_and_listed(served: Served, tmp_path: Path) -> None:
    code, id, said = await command(served.url, tmp_path, "submit", "report", "-p", f"brief={BRIEF}")
    assert (code, said) == (0, "")
    assert id.startswith("wf_")
    assert id.count("\n") == 1

    code, watched, said = await command(served.url, tmp_path, "watch", id.strip())
    assert (code, said) == (0, "")
    lines = watched.splitlines()
    assert lines[0].endswith(" s  plan: started")
    ending = next(number for number, line in enumerate(lines) if line.startswith("SUCCESS in "))
    assert lines[ending - 1].split("  ")[-1].startswith("final: done in ")
    assert lines[ending + 2].startswith("# ")

    code, listed, _ = await command(served.url, tmp_path, "list", "--status", "success", "--workflow", "report", "--limit", "1")
    assert code == 0
    assert listed.splitlines()[1].split()[:3] == [id.strip(), "report", "SUCCESS"]
    code, page, _ = await command(served.url, tmp_path, "list", "--json")
    assert id.strip() in [one["id"] for one in json.loads(page)["items"]]
    code, shown, _ = await command(served.url, tmp_path, "show", id.strip())
    assert code == 0
    assert shown.startswith(f"report v1 · {id.strip()} · SUCCESS\n")
    code, said, _ = await command(served.url, tmp_path, "cancel", id.strip())
    assert (code, said) == (0, f"{id.strip()} had ended before: SUCCESS\n")
    assert not (tmp_path / "elsewhere" / "postgres").exists(), "nothing of it was asked of a database here"


async def test_submit_and_wait_is_like_run(served: Served, tmp_path: Path) -> None:
    code, result, said = await command(served.url, tmp_path, "submit", "report", "-p", f"brief={BRIEF}", "--wait")
    assert code == 0
    assert result.startswith("# ")
    assert said.startswith("wf_")
    assert "plan: started" in said
    assert said.splitlines()[-1].startswith("SUCCESS in ")
    code, document, _ = await command(
        served.url, tmp_path, "submit", "report", "-p", f"brief={BRIEF}", "--wait", "--json", "--max-tokens", "1"
    )
    assert code == 1
    assert json.loads(document)["error"]["type"] == "BudgetExceeded"


async def test_the_same_key_starts_one_workflow_and_fits_one_input(served: Served, tmp_path: Path) -> None:
    words = ("submit", "report", "--key", "order-4711", "-p")
    first = await command(served.url, tmp_path, *words, "brief=One ferry.")
    assert first[0] == 0
    assert await command(served.url, tmp_path, *words, "brief=One ferry.") == first
    code, out, said = await command(served.url, tmp_path, *words, "brief=Another ferry.")
    assert (code, out) == (2, "")
    assert "this Idempotency-Key was used for another request" in said


async def test_cancelling_ends_whoever_watches(served: Served, tmp_path: Path) -> None:
    id = await served_by(served, tmp_path)
    async with started(served.url, tmp_path, "watch", id) as watching:
        assert "plan: started" in await watching.line()
        code, said, _ = await command(served.url, tmp_path, "cancel", id, "--reason", "not needed")
        assert (code, said.splitlines()[0]) == (0, f"{id} is cancelled")
        assert "was at work: " in said
        code, out, said = await watching.ended()
    assert code == 1
    assert out.splitlines()[-1].startswith("CANCELLED in ")
    assert "the workflow was cancelled" in said


async def served_by(served: Served, tmp_path: Path) -> str:
    return (await command(served.url, tmp_path, "submit", "report", "-i", str(ROOT / "examples" / "incident-notes.md")))[1].strip()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_a_signal_leaves_the_workflow_and_says_how_to_come_back(
    served: Served, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    id = await served_by(served, tmp_path)
    async with started(served.url, tmp_path, "watch", id) as watching:
        assert "plan: started" in await watching.line()
        watching.process.send_signal(number)
        ended = await watching.ended()
    assert ended[0] == code
    assert ended[2] == f"{id} goes on; come back to it with: agent-team watch {id}\n"
    _, page, _ = await command(served.url, tmp_path, "show", id, "--json")
    assert json.loads(page)["status"] == "RUNNING"
    await command(served.url, tmp_path, "cancel", id)


async def test_a_signal_while_waiting_leaves_the_workflow_too(served: Served, tmp_path: Path) -> None:
    words = ("submit", "report", "-i", str(ROOT / "examples" / "incident-notes.md"), "--wait")
    async with started(served.url, tmp_path, *words) as waiting:
        assert waiting.process.stderr is not None
        async with asyncio.timeout(SECONDS):
            id = (await waiting.process.stderr.readline()).decode().split()[0]
            assert b"plan: started" in await waiting.process.stderr.readline()
        waiting.process.send_signal(signal.SIGINT)
        code, out, said = await waiting.ended()
    assert (code, out) == (130, "")
    assert said.splitlines()[-1] == f"{id} goes on; come back to it with: agent-team watch {id}"
    assert (await command(served.url, tmp_path, "cancel", id))[1].startswith(f"{id} is cancelled\n")


async def test_an_unknown_workflow_is_told_in_one_line(served: Served, tmp_path: Path) -> None:
    for words in (("watch", UNKNOWN), ("show", UNKNOWN), ("cancel", UNKNOWN), ("submit", "other", "-p", "x=y")):
        code, out, said = await command(served.url, tmp_path, *words)
        assert (code, out, said.count("\n")) == (2, "", 1), said
        assert "there is no workflow" in said


async def test_a_terminal_gets_a_tree_that_moves(served: Served, tmp_path: Path) -> None:
    id = await served_by(served, tmp_path)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    variables = {**environment(served.url, tmp_path), "TERM": "xterm-256color"}
    words = (sys.executable, "-m", "shared.cli", "watch", id)
    process = await asyncio.create_subprocess_exec(*words, cwd=tmp_path, env=variables, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    async with asyncio.timeout(SECONDS):
        seen = await asyncio.to_thread(_all, ours)
        assert await process.wait() == 0
    assert "⠋" in seen or "⠙" in seen or "⠹" in seen
    assert "✓" in seen
    assert "SUCCESS in " in seen


def _all(terminal: int) -> str:
    seen = b""
    while True:
        try:
            more = os.read(terminal, 65536)
        except OSError:  # Linux: nobody has the other end any more
            more = b""
        if not more:
            os.close(terminal)
            return seen.decode("utf-8", "replace")
        seen += more


async def test_a_platform_that_is_killed_and_comes_back_is_watched_on(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    platform = tmp_path / "platform"
    platform.mkdir()
    async with serving(platform, "--simulate", "--port", port) as first:
        id = await served_by(first, tmp_path)
        async with started(first.url, tmp_path, "watch", id, "--json") as watching:
            told = [json.loads(await watching.line()) for _ in range(4)]
            first.process.kill()
            await first.process.wait()
            async with serving(platform, "--simulate", "--port", port) as second:
                code, out, said = await watching.ended()
                await second.end()
    told += [json.loads(line) for line in out.splitlines()]
    assert code == 0, said
    numbers = [one["id"] for one in told if one["id"] is not None]
    assert numbers == list(range(1, len(numbers) + 1))
    assert told[-1]["event"] == "end"
    assert "trying again for 5 minutes" in said
    assert "is there again" in said
