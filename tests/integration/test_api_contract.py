"""The API does what its own description says, whatever is sent to it."""

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.contract import examine
from tests.support.reports import database_home
from tests.support.serving import ROOT, serving


@pytest.fixture
def home() -> Iterator[Path]:
    with database_home() as folder:
        yield folder


@pytest.fixture(params=["open", "guarded"])
async def key(request: pytest.FixtureRequest, home: Path) -> str | None:
    """What callers show: nothing, or the key without which a platform that has one answers nobody."""
    if request.param == "open":
        return None
    command = (sys.executable, "-m", "shared.cli", "keys", "api", "add", "tests", "--scope", "admin")
    variables = {**os.environ, "AGENT_TEAM_HOME": str(home), "PYTHONPATH": str(ROOT)}
    process = await asyncio.create_subprocess_exec(
        *command, cwd=home, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    said, problem = await process.communicate()
    assert process.returncode == 0, problem.decode()
    return said.decode().strip()


async def test_no_request_that_the_description_allows_or_forbids_gets_an_answer_that_it_does_not_describe(
    home: Path, key: str | None
) -> None:
    async with serving(home, MAX_CONCURRENT_PIPELINES="200") as platform:
        document = (await platform.client.get("/openapi.json")).json()
        report = await asyncio.to_thread(examine, platform.url, key=key, examples=20, max_seconds=60)
    assert report.failures == {}, "\n\n".join(f"{what}\n{sample}" for what, sample in report.failures.items())
    operations = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert operations <= report.cases.keys()
    assert report.cases.total() >= 1000
    assert {200, 202, 204, 404, 405, 415, 422} | (set() if key is None else {401}) <= report.statuses.keys()
