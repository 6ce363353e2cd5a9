"""The API does what its own description says, whatever is sent to it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.contract import examine
from tests.support.reports import database_home
from tests.support.serving import serving


@pytest.fixture
def home() -> Iterator[Path]:
    with database_home() as folder:
        yield folder


@pytest.mark.parametrize("headers", [{}], ids=["open"])
async def test_no_request_that_the_description_allows_or_forbids_gets_an_answer_that_it_does_not_describe(
    home: Path, headers: dict[str, str]
) -> None:
    async with serving(home, MAX_CONCURRENT_PIPELINES="200") as platform:
        document = (await platform.client.get("/openapi.json", headers=headers)).json()
        report = await asyncio.to_thread(examine, platform.url, headers=headers, examples=20, max_seconds=60)
    assert report.failures == {}, "\n\n".join(f"{what}\n{sample}" for what, sample in report.failures.items())
    operations = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert operations <= report.cases.keys()
    assert report.cases.total() >= 1000
    assert {200, 202, 204, 404, 405, 415, 422} <= report.statuses.keys()
