"""Real processes, killed without warning: every workflow ends, with one result per step, and the work goes on at once."""

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tests.support.reports import brief, database_home, outputs, platform, write_reports

ROOT = Path(__file__).parents[2]
COUNT = 12
KILLS = 10


class Serving:
    """The serving process, and what it says."""

    def __init__(self, home: Path) -> None:
        command = [sys.executable, "-W", "error", "-m", "tests.support.serve_reports", str(home), str(COUNT)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def line(self) -> list[str]:
        """The next line, as words; fails when there is none for 20 s, or no more."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        patience = threading.Timer(20, self._process.kill)
        patience.start()
        line = self._process.stdout.readline()
        patience.cancel()
        assert line, f"the process says no more: {self._process.stderr.read()}"
        return line.split()

    def kill(self) -> None:
        """What a power cut does to a process."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()

    def end(self) -> int:
        """Let the process end in order; returns its exit status."""
        self._process.communicate(timeout=30)
        return self._process.returncode


@pytest.fixture
def home() -> Iterator[Path]:
    with database_home() as folder:
        yield folder


@pytest.fixture
async def undisturbed(database: str, tmp_path: Path) -> AsyncIterator[dict[str, dict[str, Any]]]:
    """Brief → what each step gives when nothing goes wrong."""
    briefs = list(dict.fromkeys(brief(number) for number in range(COUNT)))
    async with platform(database, tmp_path / "undisturbed") as opened:
        yield {one["input"]["brief"]: outputs(one) for one in await write_reports(opened, briefs)}


async def test_work_survives_ten_kills(home: Path, undisturbed: dict[str, dict[str, Any]]) -> None:
    moments = random.Random(7)
    for number in range(KILLS):
        # At once, soon and late after it is up.
        kill_after(home, entries=0 if number == 3 else moments.randint(1, 60))
    serving = Serving(home)
    while (words := serving.line())[0] != "done":
        pass
    connection = await asyncpg.connect(words[1])
    try:
        await assert_everything_is_there_once(connection, undisturbed)
    finally:
        await connection.close()
    assert serving.end() == 0
    assert not (home / "postgres" / "postmaster.pid").exists(), "the database still runs"


def kill_after(home: Path, *, entries: int) -> None:
    """Start, wait until so many history entries were added, kill; and see that what was left behind went on at once."""
    serving = Serving(home)
    word, *counts = serving.line()
    assert word == "up"
    history, completed, ended = map(int, counts)
    up_at = time.monotonic()
    resumed = history == 0
    reached = history
    while reached < history + entries:
        word, *counts = serving.line()
        assert word == "at", "everything was done before it could be killed"
        reached = int(counts[0])
        if not resumed and int(counts[1]) > completed:
            resumed = True
            # A lease lasts a quarter of an hour.
            assert time.monotonic() - up_at < 3
    serving.kill()
    assert ended < COUNT


async def assert_everything_is_there_once(
    connection: "asyncpg.Connection[asyncpg.Record]", undisturbed: dict[str, dict[str, Any]]
) -> None:
    workflows = await connection.fetch("select id, status, input from workflows")
    assert [row["status"] for row in workflows] == ["SUCCESS"] * COUNT
    for row in workflows:
        expected = undisturbed[json.loads(row["input"])["brief"]]
        steps = await connection.fetch("select id, status, output from steps where workflow_id = $1", row["id"])
        assert {step["id"]: step["status"] for step in steps} == dict.fromkeys(expected, "SUCCESS")
        assert {step["id"]: json.loads(step["output"]) for step in steps} == expected
    results = await connection.fetch(
        "select step_id, count(*) as n from history where type in ('step.completed', 'step.late', 'step.failed')"
        " group by workflow_id, step_id"
    )
    assert {row["n"] for row in results} == {1}
    assert len(results) == sum(len(undisturbed[json.loads(row["input"])["brief"]]) for row in workflows)
    assert await connection.fetchval("select count(*) from dead_letters") == 0
    endings = await connection.fetchval("select count(*) from history where type = 'workflow.succeeded'")
    assert endings == COUNT
