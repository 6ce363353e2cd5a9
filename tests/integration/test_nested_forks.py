"""Forks and reruns of workflows that nest others: what a change had no part in is reused, at every level."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from shared.ai.offline import OfflineModel
from shared.messages import WorkflowRequested
from shared.runtime.travel import Fork, fork
from shared.workflows import Definition
from tests.support.doubles import WORKFLOW, CountingModel
from tests.support.live import Live, completed, definition, failed, live
from tests.support.reports import brief, platform, write_reports

from .test_nested import FALLIBLE, OUTER, PAIR, RESULTS, TEXT, begun, first, order, sent, statuses, tell


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        opened.runtime.definitions["small"] = OUTER
        yield opened


async def forked(team: Live, **params: Any) -> str:
    team.bus.published.clear()
    return str((await fork(team.runtime, Fork(WORKFLOW, None, params), function="gateway"))["workflow"])


async def test_a_fork_at_the_end_runs_nothing(team: Live) -> None:
    await tell(team, first(), *RESULTS)
    shown = await team.store.get(await forked(team))
    assert (sent(team), shown["status"], shown["output"]) == ([], "SUCCESS", "the end")


async def test_a_changed_field_runs_exactly_what_it_had_a_part_in_inside_and_after(team: Live) -> None:
    await tell(team, first(), *RESULTS)
    workflow = await forked(team, tone="cold")
    assert sent(team) == ["sub/tone"]
    assert order(team, "sub/tone").input == "cold"
    await tell(team, *(completed(id, output=f"new {id}", workflow=workflow) for id in ("sub/tone", "sub/draft", "end")))
    assert sent(team) == ["sub/tone", "sub/draft", "end"]
    assert order(team, "sub/draft").input == [["X", "Y"], "new sub/tone"]
    assert order(team, "end").input == {"report": "new sub/draft on green tea"}
    shown = await team.store.get(workflow)
    assert (shown["status"], shown["usage"]["model_calls"]) == ("SUCCESS", 3)


async def test_what_a_nested_workflow_needs_makes_it_anew(team: Live) -> None:
    await tell(team, first(), *RESULTS)
    workflow = await forked(team, wish="coffee")
    assert sent(team) == ["pick"]
    await tell(team, completed("pick", output="black coffee", workflow=workflow))
    assert sent(team) == ["pick", "sub/plan", "sub/tone"]
    assert order(team, "sub/plan").input == "black coffee"


async def test_a_fork_in_the_middle_of_a_nested_workflow_goes_on_there(team: Live) -> None:
    await tell(team, first(), *RESULTS[:4])
    at = (await team.store.get(WORKFLOW))["seq"]
    await tell(team, *RESULTS[4:])
    team.bus.published.clear()
    workflow = (await fork(team.runtime, Fork(WORKFLOW, at, {}), function="gateway"))["workflow"]
    assert sent(team) == ["sub/research/0"]
    await tell(team, *({**event, "workflow": workflow} for event in RESULTS[4:]))
    assert (await team.store.get(workflow))["output"] == "the end"


async def test_a_fork_leaves_a_nested_workflow_that_had_failed_as_it_is(team: Live) -> None:
    await begun(team, FALLIBLE)
    await tell(team, failed("sub/one", permanent=True), completed("other"))
    workflow = await forked(team)
    assert sent(team) == ["end"]
    snapshot = await team.store.snapshot(workflow, (await team.store.get(workflow))["seq"])
    assert {step["id"]: step["status"] for step in snapshot["steps"]} == await statuses(team, workflow)
    await tell(team, completed("end", workflow=workflow))
    assert (await team.store.get(workflow))["status"] == "SUCCESS"


async def test_a_run_keeps_the_nested_definition_that_it_started_with(team: Live) -> None:
    await tell(team, first())
    changed: dict[str, Definition] = team.runtime.definitions
    changed["report"] = PAIR
    await tell(team, completed("pick", output="tea"))
    assert sent(team) == ["pick", "sub/plan", "sub/tone"]


async def test_a_nested_report_is_the_report_and_its_fork_calls_models_only_for_what_changed(database: str, tmp_path: Path) -> None:
    model = CountingModel(OfflineModel())
    async with platform(database, tmp_path, model=model) as on:
        nests = on.runtime.definitions
        nests["small"] = definition(
            """
            - {id: sub, workflow: report, input: {brief: "{{ input.brief }}"}}
            - {id: other, agent: planner, input: {brief: "{{ input.other }}"}}
            """,
            nests=nests,
            input=f"{{brief: {TEXT}, other: {TEXT}}}",
            output="{{ steps.sub.output }}",
        )
        (report,) = await write_reports(on, [brief(0)])
        before = len(model.prompts)
        workflow = await on.submit(WorkflowRequested(workflow="small", input={"brief": brief(0), "other": brief(1)}))
        async for _ in on.follow(workflow):
            pass
        shown = await on.runtime.store.get(workflow)
        assert (shown["status"], shown["output"]) == ("SUCCESS", report["output"])
        assert len(model.prompts) - before == report["usage"]["model_calls"] + 1 == shown["usage"]["model_calls"]

        before = len(model.prompts)
        answer = await fork(on.runtime, Fork(workflow, None, {"other": brief(2)}), function="gateway")
        async for _ in on.follow(answer["workflow"]):
            pass
        assert (await on.runtime.store.get(answer["workflow"]))["output"] == report["output"]
        assert len(model.prompts) - before == 1
