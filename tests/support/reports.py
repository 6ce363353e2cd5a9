"""Reports: the briefs, a platform to have them written on, and what came of it."""

import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from shared.ai import Model
from shared.bus import Bus
from shared.clock import SystemClock
from shared.config import load_settings
from shared.local import Platform, open_platform
from shared.messages import WorkflowRequested
from shared.runtime import Runtime

_BRIEFS = [path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[2] / "examples").glob("*.md"))]


def brief(number: int) -> str:
    """The brief of report `number`; there are only a few different ones."""
    return _BRIEFS[number % len(_BRIEFS)]


@contextmanager
def database_home() -> Iterator[Path]:
    """A home folder for a platform with a database of its own; what still runs there in the end is stopped.

    Not pytest's: as root the database runs as another user, and every session of pytest closes its folder to others anew.
    """
    home = Path(tempfile.mkdtemp(prefix="agent-team-tests-"))
    try:
        yield home
    finally:
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((home / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGINT)
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def platform(
    database: str, home: Path, *, model: Model | None = None, bus: Bus | None = None, **variables: str
) -> AsyncIterator[Platform]:
    """A platform over a database of the test's own; `variables` are settings by their environment names."""
    settings = load_settings({"AGENT_TEAM_HOME": str(home), "DATABASE_URL": database, **variables})
    runtime = Runtime(settings, clock=SystemClock(), model=model, bus=bus)
    async with open_platform(settings, runtime=runtime) as opened:
        yield opened


async def write_reports(on: Platform, briefs: Sequence[str]) -> list[dict[str, Any]]:
    """One report for each brief, all at once; returns the workflows as `get_workflow` shows them once they have ended."""
    ids = [await on.submit(WorkflowRequested(workflow="report", input={"brief": one})) for one in briefs]
    for workflow in ids:
        async for _ in on.follow(workflow):
            pass
    return [await on.runtime.store.get(workflow) for workflow in ids]


def outputs(workflow: dict[str, Any]) -> dict[str, Any]:
    """Each step's output."""
    return {step["id"]: step["output"] for step in workflow["steps"]}
