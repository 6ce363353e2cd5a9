"""Child processes of the local platform: started, started again, ended in order, and never left behind."""

import asyncio
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shared.errors import ConfigurationError
from shared.local.processes import Process
from tests.support.live import until

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running(script: str, log: Path, *, input: bytes | None = None) -> AsyncIterator[Process]:
    """A Python script, which prints a line when it is ready."""
    command = [sys.executable, "-u", "-c", textwrap.dedent(script)]
    with log.open("a", encoding="utf-8") as file:
        process = Process("the script", command, environment=dict(os.environ), log=file, ready=None, input=input)
        await process.start()
        try:
            yield process
        finally:
            await process.stop(grace_seconds=5)


def pids(log: Path) -> list[int]:
    return [int(line.split()[1]) for line in log.read_text().splitlines() if line.startswith("up ")]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


UP = "import os, signal, time\nprint('up', os.getpid())\n"


async def test_what_it_prints_is_logged_and_it_ends_in_order(tmp_path: Path) -> None:
    # It says that it is up once it can be ended in order.
    script = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: (print('bye'), os._exit(0)))\n" + UP + "time.sleep(60)"
    async with running(script, tmp_path / "log") as process:
        [pid] = pids(tmp_path / "log")
        assert alive(pid)
    assert (tmp_path / "log").read_text() == f"up {pid}\nbye\n"
    assert not alive(pid)
    assert process.starts == 1


async def test_one_that_is_killed_is_started_again_with_its_input(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import os, sys, time\nprint('up', os.getpid(), sys.stdin.read())\ntime.sleep(60)"
    async with running(script, log, input=b"secret") as process:
        process.kill()
        await until(lambda: len(pids(log)) == 2)
        first, second = pids(log)
        assert first != second
        assert not alive(first)
        assert log.read_text().count("secret") == 2
    assert not alive(second)


async def test_its_own_children_die_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = """
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print("up", child.pid)
        time.sleep(60)
    """
    async with running(script, log) as process:
        [child] = pids(log)
        process.kill()
        await until(lambda: not alive(child))


async def test_one_that_does_not_end_in_time_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = UP + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf')\ntime.sleep(60)"
    async with running(script, log) as process:
        await until(lambda: "deaf" in log.read_text())
        await process.stop(grace_seconds=0.2)
        assert not alive(pids(log)[0])


async def test_one_that_ends_while_it_starts_is_a_mistake_that_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the script ended with status 3; what it said is at the end of .*/log"):
        async with running("import sys; sys.exit(3)", tmp_path / "log"):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
async def test_nothing_is_left_behind_when_the_platform_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    parent = f"""
        import asyncio, os, sys
        from shared.local.processes import Process
        async def main():
            log = open({str(log)!r}, "a")
            script = "import os, time; print('up', os.getpid(), flush=True); time.sleep(60)"
            process = Process("child", [sys.executable, "-c", script], environment=dict(os.environ), log=log, ready=None)
            await process.start()
            await asyncio.sleep(60)
        asyncio.run(main())
    """
    log.touch()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", textwrap.dedent(parent), cwd=ROOT)
    try:
        await until(lambda: bool(pids(log)), within_seconds=20)
        [child] = pids(log)
        assert alive(child)
    finally:
        process.send_signal(signal.SIGKILL)
        await process.wait()
    await until(lambda: not alive(child))
