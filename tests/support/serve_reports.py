"""A platform in a process of its own, made to be killed: it has reports written and tells line by line how far they are.

    python -m tests.support.serve_reports HOME COUNT

Prints `up HISTORY COMPLETED ENDED`, then `at HISTORY COMPLETED ENDED` whenever something happened, and `done DSN` when every
workflow has ended; then it waits for the end of its input and ends in order. What an earlier process submitted it does not
submit again.
"""

import asyncio
import random
import sys

import asyncpg

from shared.ai.offline import OfflineModel
from shared.config import load_settings
from shared.local import Platform, open_platform
from shared.messages import WorkflowRequested
from shared.runtime import Runtime
from tests.support.doubles import CountingModel
from tests.support.reports import brief

_COUNTS = """
    select concat_ws(' ', count(*), count(*) filter (where type = 'step.completed'), (
        select count(*) from workflows where status not in ('QUEUED', 'RUNNING')
    )) from history
"""


async def main(home: str, count: int) -> None:
    settings = load_settings({"AGENT_TEAM_HOME": home, "MAX_CONCURRENT_PIPELINES": "6"})
    slow = CountingModel(OfflineModel(), delay_seconds=lambda: random.uniform(0.02, 0.05))
    runtime = Runtime(settings, model=slow)
    async with open_platform(settings, runtime=runtime) as platform:
        watcher = await asyncpg.connect(runtime.database_url)
        say("up", await watcher.fetchval(_COUNTS))
        submitting = asyncio.create_task(submit(platform, await watcher.fetchval("select count(*) from workflows"), count))
        await tell_until_all_ended(watcher, count)
        await submitting
        await watcher.close()
        say("done", runtime.database_url)
        await asyncio.to_thread(sys.stdin.read)


async def submit(platform: Platform, first: int, count: int) -> None:
    for number in range(first, count):
        await platform.submit(WorkflowRequested(workflow="report", input={"brief": brief(number)}), request_key=f"report {number}")


async def tell_until_all_ended(watcher: "asyncpg.Connection[asyncpg.Record]", count: int) -> None:
    told = ""
    while told.split(" ")[-1] != str(count):
        counts = await watcher.fetchval(_COUNTS)
        if counts != told:
            told = counts
            say("at", told)
        await asyncio.sleep(0.005)


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
