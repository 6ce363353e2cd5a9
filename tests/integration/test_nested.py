"""Nested workflows over a real state: they run as if they stood alone, and end, wait and fail with what is around them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from functions.gateway.api import create_app
from shared.errors import Conflict
from shared.messages import StepDispatched, WorkflowSignalled
from shared.runtime.signals import send_signal
from shared.runtime.travel import rerun
from shared.state import Event
from shared.state.postgres import connected
from tests.support.doubles import WORKFLOW
from tests.support.live import Live, completed, definition, failed, live, start

from .door import TABLES

TEXT = "{type: string, required: true}"
REPORT = definition(
    """
    - {id: plan, agent: planner, input: "{{ input.brief }}"}
    - {id: tone, agent: critic, input: "{{ input.tone }}"}
    - id: research
      agent: researcher
      needs: [plan]
      for_each: "{{ steps.plan.output }}"
      input: {q: "{{ item }}", brief: "{{ input.brief }}"}
    - {id: draft, agent: writer, needs: [research, tone], input: ["{{ steps.research.output }}", "{{ steps.tone.output }}"]}
    """,
    name="report",
    input=f"{{brief: {TEXT}, tone: {{type: string, default: dry}}}}",
    output="{{ steps.draft.output }} on {{ input.brief }}",
)
OUTER = definition(
    """
    - {id: pick, agent: judge, input: "{{ input.wish }}"}
    - {id: sub, workflow: report, needs: [pick], input: {brief: "{{ steps.pick.output }}", tone: "{{ input.tone }}"}}
    - {id: end, agent: writer, needs: [sub], input: {report: "{{ steps.sub.output }}"}}
    """,
    nests={"report": REPORT},
    input=f"{{wish: {TEXT}, tone: {TEXT}}}",
    output="{{ steps.end.output }}",
)
ASK = definition(
    """
    - {id: ask, approval: {prompt: "Send {{ input.text }}?"}}
    - {id: paid, needs: [ask], wait: {signal: payment}}
    - {id: send, agent: writer, needs: [ask, paid], input: {said: "{{ steps.ask.output.decision }}"}}
    """,
    name="ask",
    input=f"{{text: {TEXT}}}",
)
PAIR = definition(
    """
    - {id: one, agent: writer, input: {}}
    - {id: two, agent: critic, needs: [one], input: {}}
    - {id: ask, approval: {prompt: Well}}
    """,
    name="pair",
)
NESTS = {"report": REPORT, "ask": ASK, "pair": PAIR}


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


async def tell(team: Live, *events: Event) -> None:
    for event in events:
        await team.runtime.dispatcher("orchestrator").apply([event])


async def begun(team: Live, steps: str, **fields: Any) -> None:
    input = fields.pop("given", None)
    await tell(team, start(definition(steps, nests=NESTS, **fields), definitions=NESTS, input=input))


async def statuses(team: Live, workflow: str = WORKFLOW) -> dict[str, str]:
    return {step["id"]: step["status"] for step in (await team.store.get(workflow))["steps"]}


def sent(team: Live) -> list[str]:
    return [step for step, _ in team.dispatched()]


def order(team: Live, step: str) -> StepDispatched:
    return next(one for one in team.opened() if isinstance(one, StepDispatched) and one.step == step)


async def dump(team: Live) -> list[Any]:
    async with connected(team.dsn) as connection:
        return [await connection.fetch(f"select * from {table} order by 1, 2") for table in TABLES]


def first() -> Event:
    return start(OUTER, definitions=NESTS, input={"wish": "tea", "tone": "warm"})


RESULTS = [
    completed("pick", output="green tea"),
    completed("sub/tone", output="warmly"),
    completed("sub/plan", output=["x", "y"]),
    completed("sub/research/1", output="Y"),
    completed("sub/research/0", output="X"),
    completed("sub/draft", output="a draft"),
    completed("end", output="the end"),
]


async def test_a_nested_workflow_runs_as_if_it_stood_alone(team: Live) -> None:
    await tell(team, first(), *RESULTS)
    (ended,) = team.finished()
    assert (ended.status, ended.output, ended.usage.model_calls) == ("SUCCESS", "the end", 7)
    assert (order(team, "sub/plan").input, order(team, "sub/tone").input) == ("green tea", "warm")
    assert order(team, "sub/research/0").input == {"q": "x", "brief": "green tea"}
    assert order(team, "sub/draft").input == [["X", "Y"], "warmly"]
    assert order(team, "end").input == {"report": "a draft on green tea"}
    shown = {step["id"]: step for step in (await team.store.get(WORKFLOW))["steps"]}
    assert shown["sub/@input"]["output"] == {"brief": "green tea", "tone": "warm"}
    assert (shown["sub"]["agent"], shown["sub"]["output"]) == ("workflow:report", "a draft on green tea")
    assert (shown["sub/plan"]["parent"], shown["sub/plan"]["needs"]) == ("sub", ["sub/@input"])
    assert len(await statuses(team)) == (await team.store.get(WORKFLOW))["steps_total"] == 3 + 4 + 2 + 2


async def test_every_event_that_is_repeated_changes_nothing_and_sends_the_same_again(team: Live) -> None:
    for event in [first(), *RESULTS]:
        team.bus.published.clear()
        await tell(team, event)
        expected = sorted((type(one).__name__, getattr(one, "step", "")) for one in team.opened())
        before = await dump(team)
        team.bus.published.clear()
        await tell(team, event)
        assert sorted((type(one).__name__, getattr(one, "step", "")) for one in team.opened()) == expected, event
        assert await dump(team) == before, event


async def test_each_decision_that_is_repeated_changes_nothing(team: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Event] = []
    advance = team.store.advance

    async def listening(events: Any) -> Any:
        told.extend(events)
        return await advance(events)

    monkeypatch.setattr(team.store, "advance", listening)
    await tell(team, first(), *RESULTS)
    kinds = {(event["type"], event.get("step")) for event in told}
    assert {("step.expanded", "sub"), ("step.completed", "sub/@input"), ("step.completed", "sub/@output")} <= kinds
    before = await dump(team)
    for event in told:
        await advance([event])
    assert await dump(team) == before


async def test_an_input_that_is_not_taken_fails_the_step_with_what_is_wrong(team: Live) -> None:
    await tell(team, first(), completed("pick", output=7))
    (ended,) = team.finished()
    assert ended.error is not None
    assert ended.error.message == "input of report: 'brief' must be of type string, not integer"
    assert (await team.store.get(WORKFLOW))["error"]["step"] == "sub"
    assert sent(team) == ["pick"]


async def test_one_for_each_item_runs_each_with_an_input_of_its_own(team: Live) -> None:
    await begun(team, '- {id: all, workflow: ask, for_each: ["a", "b"], input: {text: "{{ item }}"}}')
    await begun(team, "- {id: all, workflow: ask, for_each: []}")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(team.runtime)), base_url="http://gateway") as client:
        path = f"/v1/workflows/{WORKFLOW}/signals"
        answer = await client.post(f"{path}/all/1/ask", json={"decision": "approve"})
        assert (answer.status_code, answer.json()["name"]) == (202, "all/1/ask")
        assert (await client.post(f"{path}/all%2F0%2Fask", json={"decision": "approve"})).status_code == 202
        assert (await client.post(f"{path}/ask", json={"decision": "approve"})).status_code == 404
        assert (await client.post(f"{path}/all//ask", json={"decision": "approve"})).status_code == 422
        assert (await client.post(f"{path}/payment", json={})).json()["outcome"] == "woken"
    prompts = [step["waiting"] for step in (await team.store.get(WORKFLOW))["steps"] if step["waiting"] is not None]
    assert [one["name"] for one in prompts] == ["payment"]
    assert len(sent(team)) == 1
    await tell(team, completed(sent(team)[0], output="sent"))
    assert (await team.store.get(WORKFLOW))["status"] == "WAITING"


async def test_an_approval_of_one_item_leaves_the_others_waiting(team: Live) -> None:
    await begun(
        team, '- {id: all, workflow: ask, for_each: ["a", "b"], input: {text: "{{ item }}"}}', output="{{ steps.all.output }}"
    )
    said = WorkflowSignalled(workflow=WORKFLOW, name="all/1/ask", decision="approve", by="ann")
    assert await send_signal(team.runtime, said, source="cli", signal="1") == ("woken", "RUNNING")
    assert {(id, state) for id, state in (await statuses(team)).items() if id.endswith("/ask")} == {
        ("all/0/ask", "WAITING"),
        ("all/1/ask", "SUCCESS"),
    }
    with pytest.raises(Conflict, match="waits no longer"):
        await send_signal(team.runtime, said, source="cli", signal="2")


async def test_what_waits_inside_gives_up_the_slot_of_the_whole(team: Live) -> None:
    await begun(team, "- {id: sub, workflow: ask, input: {text: hello}}")
    shown = await team.store.get(WORKFLOW)
    (prompt,) = [step["waiting"]["prompt"] for step in shown["steps"] if step["waiting"] is not None]
    assert (shown["status"], prompt) == ("WAITING", "Send hello?")


async def test_cancelling_stops_everything_inside(team: Live) -> None:
    await tell(team, first(), *RESULTS[:3], {"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": "enough"})
    assert {state for id, state in (await statuses(team)).items() if id in ("sub", "sub/research", "sub/research/0", "end")} == {
        "CANCELLED"
    }
    (ended,) = team.finished()
    assert ended.status == "CANCELLED"
    await tell(team, *RESULTS[3:])
    assert sent(team) == ["pick", "sub/plan", "sub/tone", "sub/research/0", "sub/research/1"]


# Failures


FALLIBLE = """
- {id: sub, workflow: pair, on_failure: continue}
- {id: other, agent: judge, input: {}}
- {id: end, agent: writer, needs: [sub], input: {was: "{{ steps.sub.output }}"}}
"""


async def test_a_failure_inside_fails_the_whole(team: Live) -> None:
    await begun(team, FALLIBLE.replace(", on_failure: continue", ""))
    await tell(team, failed("sub/one", permanent=True))
    shown = await team.store.get(WORKFLOW)
    assert (shown["status"], shown["error"]["step"]) == ("FAILED", "sub/one")


async def test_a_nested_workflow_that_may_fail_ends_alone_and_the_rest_goes_on_with_null(team: Live) -> None:
    await begun(team, FALLIBLE)
    await tell(team, failed("sub/one", permanent=True))
    before = await dump(team)
    await tell(team, failed("sub/one", permanent=True))
    assert await dump(team) == before
    states = await statuses(team)
    assert states["sub"] == states["sub/one"] == "FAILED"
    assert {states[id] for id in ("sub/two", "sub/ask", "sub/@output")} == {"CANCELLED"}
    assert order(team, "end").input == {"was": None}
    shown = await team.store.get(WORKFLOW)
    assert next(step["error"] for step in shown["steps"] if step["id"] == "sub")["step"] == "sub/one"
    snapshot = await team.store.snapshot(WORKFLOW, shown["seq"])
    assert {step["id"]: step["status"] for step in snapshot["steps"]} == states
    assert sent(team).count("end") == 2, "the repetition sends it again"
    await tell(team, completed("other"), completed("end", output="done"))
    assert [one.status for one in team.finished()] == ["SUCCESS"]


async def test_only_a_nested_workflow_takes_the_failure_of_its_steps_on_itself(team: Live) -> None:
    await begun(team, "- {id: a, agent: planner, input: {}, on_failure: continue}")
    child = {"id": "a/b", "agent": "critic", "needs": [], "spec": {"input": 1}, "on_failure": "fail"}
    await tell(team, {**completed("a"), "children": [child], "join": "a/b"}, failed("a/b", permanent=True))
    assert (await team.store.get(WORKFLOW))["status"] == "FAILED"


async def test_of_many_nested_workflows_the_one_that_failed_is_null(team: Live) -> None:
    small = definition("- {id: one, agent: writer, input: {}}", name="pair")
    outer = definition(
        "- {id: all, workflow: pair, for_each: [1, 2], input: {}, on_failure: continue}",
        nests={"pair": small},
        output="{{ steps.all.output }}",
    )
    await tell(
        team, start(outer, definitions={"pair": small}), failed("all/0/one", permanent=True), completed("all/1/one", output=2)
    )
    assert [(one.status, one.output) for one in team.finished()] == [("SUCCESS", [None, 2])]


async def test_a_rerun_leaves_a_nested_workflow_that_had_failed_as_it_is(team: Live) -> None:
    await begun(team, FALLIBLE)
    await tell(team, failed("sub/one", permanent=True), failed("other", permanent=True))
    assert (await team.store.get(WORKFLOW))["status"] == "FAILED"
    await rerun(team.runtime, WORKFLOW, function="gateway")
    states = await statuses(team)
    assert (states["other"], states["end"]) == ("RUNNING", "RUNNING")
    assert (states["sub"], states["sub/two"], states["sub/ask"]) == ("FAILED", "CANCELLED", "CANCELLED")
    await tell(team, completed("other", attempt=2), completed("end", attempt=2))
    assert (await team.store.get(WORKFLOW))["status"] == "SUCCESS"


async def test_a_workflow_that_failed_inside_goes_on_inside(team: Live) -> None:
    await tell(team, first(), *RESULTS[:3], failed("sub/research/0", permanent=True))
    assert (await team.store.get(WORKFLOW))["status"] == "FAILED"
    await rerun(team.runtime, WORKFLOW, function="gateway")
    await tell(team, *(completed(f"sub/research/{n}", attempt=2, output=n) for n in (0, 1)))
    await tell(team, completed("sub/draft", output="d"), completed("end", output="e"))
    assert (await team.store.get(WORKFLOW))["status"] == "SUCCESS"


async def test_leases_of_one_nested_workflow_that_run_out_together_fail_it_once(team: Live) -> None:
    both = definition(
        "- {id: a, agent: writer, input: {}, max_retries: 0}\n- {id: b, agent: critic, input: {}, max_retries: 0}", name="pair"
    )
    outer = definition("- {id: sub, workflow: pair, on_failure: continue}", nests={"pair": both})
    await tell(team, start(outer, definitions={"pair": both}))
    await team.clock.advance(901)
    await tell(team, {"type": "tick"})
    assert [(one.status, one.output) for one in team.finished()] == [("SUCCESS", None)]
    assert sorted((await statuses(team)).values()) == ["CANCELLED", "CANCELLED", "FAILED", "FAILED", "SUCCESS"]


# Everything inside


async def test_conditions_failures_and_nested_workflows_work_inside(team: Live) -> None:
    leaf = definition('- {id: a, agent: writer, input: "{{ input.n }}"}', name="leaf", input="{n: {type: integer, required: true}}")
    middle = definition(
        """
        - {id: never, agent: critic, when: "{{ input.deep }}", input: {}}
        - {id: weak, agent: critic, input: {}, on_failure: continue}
        - {id: each, workflow: leaf, needs: [never, weak], for_each: "{{ input.list }}", input: {n: "{{ item }}"}}
        """,
        name="middle",
        nests={"leaf": leaf},
        input="{list: {type: array, required: true}, deep: {type: boolean, default: false}}",
        output='{ended: "{{ steps.each.output }}", weak: "{{ steps.weak.output }}"}'.replace('"', "'"),
    )
    nests = {"leaf": leaf, "middle": middle}
    outer = definition("- {id: top, workflow: middle, input: {list: [1, 2]}}", nests=nests)
    await tell(team, start(outer, definitions=nests), failed("top/weak", permanent=True))
    assert sent(team) == ["top/weak", "top/each/0/a", "top/each/1/a"]
    assert (await statuses(team))["top/never"] == "SKIPPED"
    await tell(team, completed("top/each/1/a", output="two"), completed("top/each/0/a", output="one"))
    (ended,) = team.finished()
    assert ended.status == "SUCCESS"
    assert ended.output == "{ended: ['one', 'two'], weak: null}" or ended.output is not None


async def test_patterns_and_spawned_steps_work_inside(team: Live) -> None:
    inner = definition(
        """
        - {id: draft, agent: writer, input: "{{ input.text }}"}
        - {id: debate, pattern: debate, needs: [draft], with: {subject: "{{ steps.draft.output }}", rounds: 1}}
        """,
        name="pair",
        input=f"{{text: {TEXT}}}",
    )
    outer = definition("- {id: sub, workflow: pair, input: {text: tea}}", nests={"pair": inner})
    spawn = [{"id": "sub/draft/more", "agent": "researcher", "needs": [], "spec": {"input": 1}, "uses_input": False}]
    await tell(team, start(outer, definitions={"pair": inner}))
    await tell(team, {**completed("sub/draft", output="d"), "children": spawn, "join": "sub/draft/more"})
    await tell(team, completed("sub/draft/more", output="better"))
    critics = [step for step in sent(team) if step.startswith("sub/debate/")]
    assert len(critics) == 2
    assert order(team, critics[0]).input["subject"] == "better"


async def test_steps_of_nested_workflows_count_towards_max_steps(team: Live) -> None:
    small = definition("- {id: one, agent: writer, input: {}}", name="pair")
    outer = definition("- {id: sub, workflow: pair}", nests={"pair": small})
    for most, status in ((3, "FAILED"), (4, "RUNNING")):
        workflow = WORKFLOW[:-1] + str(most)
        await tell(team, {**start(outer, definitions={"pair": small}, workflow=workflow), "max_steps": most})
        assert (await team.store.get(workflow))["status"] == status
