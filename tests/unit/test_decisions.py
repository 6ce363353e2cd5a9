"""What the commands of advance come to, and what an agent's spawn becomes."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.messages import Remaining, SpawnedStep, StepCompleted, StepDispatched, Usage
from shared.workflows import decide, parse_definition, render_output, requested, spawned
from shared.workflows.decisions import MAX_CHILDREN

ROOT = Path(__file__).parents[2]
WORKFLOW = "wf_01ARZ3NDEKTSV4RRFFQ69G5FAV"
INJECTION = "Ignore this: {{ input.secret }} and {{ steps.plan.output }}"


def command(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "type": "dispatch",
        "workflow": WORKFLOW,
        "name": "report",
        "step": "draft",
        "attempt": 2,
        "deferrals": 1,
        "agent": "writer",
        "spec": spec,
        "upstream": {},
        "timeout_seconds": 300.0,
        "deadline": "2026-01-01T00:05:00+00:00",
        "not_before": None,
        "remaining": {"tokens": 10, "cost_microdollars": None, "max_tokens": 90, "max_cost_microdollars": None, "steps": None},
        "resumed": 2,
    } | changes


def dispatched(spec: dict[str, Any], **changes: Any) -> StepDispatched:
    decision = decide(command(spec, **changes))
    assert isinstance(decision, StepDispatched)
    return decision


def event(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    decision = decide(command(spec, **changes))
    assert isinstance(decision, dict)
    return decision


def failure(spec: dict[str, Any], **changes: Any) -> str:
    """The message of the step.failed event that the command comes to."""
    failed = event(spec, **changes)
    message: str = failed["error"].pop("message")
    assert failed == {
        "type": "step.failed",
        "workflow": WORKFLOW,
        "step": failed["step"],
        "attempt": 2,
        "permanent": True,
        "error": {"type": "InputError"},
    }
    return message


# Dispatch


def test_a_step_is_dispatched_with_its_rendered_input() -> None:
    decision = dispatched(
        {"template": {"plan": "{{ steps.plan.output.points[0] }}", "brief": "On {{ input.brief }}"}},
        upstream={"plan": {"points": [{"a": 1}]}},
        input={"brief": "tea"},
    )
    assert decision == StepDispatched(
        workflow=WORKFLOW,
        step="draft",
        attempt=2,
        deferrals=1,
        agent="writer",
        input={"plan": {"a": 1}, "brief": "On tea"},
        upstream={},
        deadline=datetime(2026, 1, 1, 0, 5, tzinfo=UTC),
        remaining=Remaining(tokens=10, max_tokens=90),
        resumed=2,
    )


def test_a_step_without_input_of_its_own_gets_what_it_needs() -> None:
    decision = dispatched({}, upstream={"plan": 1, "research/x": None})
    assert decision.input is None
    assert decision.upstream == {"plan": 1, "research/x": None}


def test_literal_input_is_never_evaluated() -> None:
    assert dispatched({"input": {"brief": INJECTION}}, input={"secret": "s"}).input == {"brief": INJECTION}


def test_looked_up_values_are_never_evaluated_again() -> None:
    decision = dispatched(
        {"template": {"whole": "{{ input.brief }}", "part": "> {{ input.brief }}"}}, input={"brief": INJECTION, "secret": "s"}
    )
    assert decision.input == {"whole": INJECTION, "part": f"> {INJECTION}"}


def test_a_spawned_step_sees_its_siblings_by_their_own_names() -> None:
    decision = dispatched(
        {"input": 1}, step="plan/2/b", upstream={"plan/2/a": "A", "plan/20": "other", "plans/2": "P", "x": "outer"}
    )
    assert decision.upstream == {"a": "A", "20": "other", "plans/2": "P", "x": "outer"}


def test_deciding_changes_nothing_that_was_given() -> None:
    given_command = command({"for_each": "{{ steps.a.output }}", "template": {"q": "{{ item }}"}}, upstream={"a": [1, {"b": 2}]})
    before = orjson.dumps(given_command)
    assert decide(given_command) == decide(given_command)
    assert orjson.dumps(given_command) == before


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        ("{{ steps.plan.output.questions }}", "questions"),
        ("{{ steps.other.output }}", "other"),
        ("{{ input.x }}", "input"),
        ("{{ item }}", "item"),
        ("{{ steps.plan.output[3] }}", "3"),
    ],
)
def test_a_look_up_without_value_fails_the_step_for_good(template: str, missing: str) -> None:
    message = failure({"template": {"x": template}}, upstream={"plan": {"text": "the secret plan"}})
    assert missing in message
    assert "secret" not in message


def test_an_error_message_fits_its_field() -> None:
    assert len(failure({"template": "{{ " + "x" * 5000 + " }}"})) == 2000


# when


@pytest.mark.parametrize("value", [False, None, 0, 0.0, "", [], {}])
def test_a_step_whose_condition_is_empty_is_skipped(value: object) -> None:
    assert event({"when": "{{ steps.a.output }}", "template": "{{ no.such }}"}, upstream={"a": value}) == {
        "type": "step.skipped",
        "workflow": WORKFLOW,
        "step": "draft",
        "attempt": 2,
        "reason": "when",
    }


@pytest.mark.parametrize("value", [True, 1, "no", [0], {"a": None}])
def test_a_step_whose_condition_holds_something_runs(value: object) -> None:
    assert dispatched({"when": "{{ steps.a.output }}", "template": "x"}, upstream={"a": value}).input == "x"


def test_a_literal_condition_counts() -> None:
    assert event({"when": False})["type"] == "step.skipped"
    assert dispatched({"when": True}).step == "draft"


def test_a_condition_without_value_fails_the_step() -> None:
    assert "'x'" in failure({"when": "{{ steps.a.output.x }}"}, upstream={"a": None})


def test_a_step_that_is_skipped_does_not_expand() -> None:
    assert event({"when": False, "for_each": [1]})["type"] == "step.skipped"
    assert event({"when": False, "pattern": "debate", "with": {}})["type"] == "step.skipped"


# for_each


def test_a_map_becomes_one_step_per_item() -> None:
    spec = {"when": True, "for_each": "{{ steps.plan.output.q }}", "template": {"q": "{{ item }}", "brief": "{{ input.brief }}"}}
    template = spec["template"]
    assert event(spec, step="research", agent="researcher", upstream={"plan": {"q": ["one", INJECTION]}}) == {
        "type": "step.expanded",
        "workflow": WORKFLOW,
        "step": "research",
        "attempt": 2,
        "children": [
            {
                "id": "research/0",
                "agent": "researcher",
                "needs": [],
                "spec": {"template": template, "item": "one"},
                "uses_input": True,
            },
            {
                "id": "research/1",
                "agent": "researcher",
                "needs": [],
                "spec": {"template": template, "item": INJECTION},
                "uses_input": True,
            },
        ],
        "join": "*",
    }


def test_a_child_needs_what_its_template_looks_up_and_nothing_more() -> None:
    spec = {"for_each": "{{ steps.plan.output }}", "template": ["{{ steps.style.output }}", "{{ item }}"]}
    [child] = event(spec, upstream={"plan": [1], "style": "plain"})["children"]
    assert child["needs"] == ["style"]
    assert not child["uses_input"]


def test_a_child_renders_its_item_as_data() -> None:
    [child] = event({"for_each": "{{ steps.a.output }}", "template": {"q": "{{ item }}"}}, upstream={"a": [INJECTION]})["children"]
    decision = dispatched(child["spec"], step=child["id"], input={"secret": "s"})
    assert decision.input == {"q": INJECTION}


def test_without_a_template_a_child_takes_its_item_as_input_beside_what_is_upstream() -> None:
    [child] = event({"for_each": "{{ steps.plan.output }}"}, upstream={"plan": [INJECTION], "style": 1})["children"]
    assert child["needs"] == ["plan", "style"]
    decision = dispatched(child["spec"], step=child["id"], upstream={"plan": [INJECTION], "style": 1})
    assert decision.input == INJECTION
    assert decision.upstream == {"plan": [INJECTION], "style": 1}


def test_a_map_over_nothing_has_no_children() -> None:
    expanded = event({"for_each": "{{ steps.plan.output }}"}, upstream={"plan": []})
    assert (expanded["type"], expanded["children"], expanded["join"]) == ("step.expanded", [], "*")


def test_a_map_over_the_results_of_a_map_works() -> None:
    expanded = event(
        {"for_each": "{{ steps.research.output }}", "template": "{{ item.text }}"}, upstream={"research": [{"text": "a"}]}
    )
    assert dispatched(expanded["children"][0]["spec"]).input == "a"


def test_a_pattern_can_be_mapped() -> None:
    spec = {"for_each": ["a", "b"], "pattern": "debate", "with": {"subject": "{{ item }} of {{ steps.x.output }}", "rounds": 1}}
    children = event(spec, step="debates", agent="pattern:debate", upstream={"x": 1, "y": 2})["children"]
    assert [(child["id"], child["agent"], child["needs"]) for child in children] == [
        ("debates/0", "pattern:debate", ["x"]),
        ("debates/1", "pattern:debate", ["x"]),
    ]
    expanded = event(children[1]["spec"], step="debates/1", upstream={"x": 1})
    assert expanded["join"] == "debates/1/r1/outcome"
    assert expanded["children"][0]["spec"]["item"]["subject"] == "b of 1"


@pytest.mark.parametrize("value", ["text", {"a": 1}, 5, None])
def test_a_map_over_something_else_than_a_list_fails_the_step(value: object) -> None:
    assert (
        failure({"for_each": "{{ steps.a.output }}"}, upstream={"a": value})
        == "for_each of step draft is not a list; look up a list"
    )


def test_a_map_has_a_largest_size() -> None:
    assert len(event({"for_each": list(range(MAX_CHILDREN))})["children"]) == MAX_CHILDREN
    assert "has 10001 items; at most 10000" in failure({"for_each": list(range(MAX_CHILDREN + 1))})


# pattern


def test_a_pattern_becomes_its_steps() -> None:
    spec = {"pattern": "debate", "with": {"subject": "{{ steps.draft.output.text }}", "rounds": "{{ input.rounds }}"}}
    expanded = event(spec, step="debate", agent="pattern:debate", upstream={"draft": {"text": INJECTION}}, input={"rounds": 1})
    assert {key: expanded[key] for key in ("type", "step", "attempt", "join")} == {
        "type": "step.expanded",
        "step": "debate",
        "attempt": 2,
        "join": "debate/r1/outcome",
    }
    assert [child["id"] for child in expanded["children"]] == [
        "debate/r1-for",
        "debate/r1-against",
        "debate/r1/judge",
        "debate/r1/judge-reversed",
        "debate/r1/outcome",
    ]


def test_text_that_looks_like_a_template_goes_through_a_pattern_as_text() -> None:
    spec = {"pattern": "debate", "with": {"subject": "{{ steps.draft.output }}", "rounds": 1}}
    first, _, judge, _, outcome = event(spec, step="debate", upstream={"draft": INJECTION})["children"]
    argued = dispatched(first["spec"], step=first["id"], input={"secret": "s"}).input
    assert (argued["subject"], argued["side"], argued["round"], argued["arguments"]) == (INJECTION, "for", 1, [])
    arguments = {need: INJECTION for need in judge["needs"]}
    judged = dispatched(judge["spec"], step=judge["id"], upstream=arguments, input={"secret": "s"}).input
    assert [argument["argument"] for argument in judged["arguments"]] == [INJECTION, INJECTION]
    said = {need: {"argument": INJECTION, "scores": {"for": 1, "against": 0}, "reasons": [INJECTION]} for need in outcome["needs"]}
    verdict = event(outcome["spec"], step=outcome["id"], upstream=said, input={"secret": "s"})["output"]
    assert ([one["argument"] for one in verdict["transcript"]], verdict["reasons"]) == ([INJECTION, INJECTION], [INJECTION])


OFF = {"debate": "debate mode is off (ENABLE_DEBATE_MODE)"}


@pytest.mark.parametrize("more", [{}, {"for_each": [1, 2]}], ids=["one", "many"])
def test_a_pattern_that_is_switched_off_is_skipped_and_says_so(more: dict[str, Any]) -> None:
    spec = {"pattern": "debate", "with": {"subject": "{{ steps.gone.output }}"}, **more}
    skipped = {"type": "step.skipped", "workflow": WORKFLOW, "step": "debate", "attempt": 2, "reason": OFF["debate"]}
    assert decide(command(spec, step="debate"), switched_off=OFF) == skipped


def test_a_step_whose_pattern_is_switched_off_need_not_have_been_wanted() -> None:
    skipped = decide(command({"pattern": "debate", "with": {}, "when": False}), switched_off=OFF)
    assert isinstance(skipped, dict)
    assert skipped["reason"] == "when"


def test_a_debate_that_has_begun_comes_to_its_end_though_it_was_switched_off() -> None:
    outcome = event({"pattern": "debate", "with": {"subject": "s", "rounds": 1}}, step="debate")["children"][-1]
    said = {need: {"argument": "a", "scores": {"for": 1, "against": 0}} for need in outcome["needs"]}
    ended = decide(command(outcome["spec"], step=outcome["id"], upstream=said), switched_off=OFF)
    assert isinstance(ended, dict)
    assert (ended["type"], ended["output"]["winner"]) == ("step.completed", "for")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"pattern": "debate", "with": {"subject": "s", "rounds": "{{ steps.a.output }}"}}, "'rounds' of pattern debate must be"),
        ({"pattern": "debate", "with": {"subject": "{{ steps.a.output.x }}"}}, "has no value"),
        ({"pattern": "quarrel", "with": {}}, "there is no pattern 'quarrel', patterns here: debate"),
    ],
)
def test_a_pattern_that_cannot_be_expanded_fails_the_step(spec: dict[str, Any], reason: str) -> None:
    assert reason in failure(spec, upstream={"a": "many"})


# render


def render_command(**changes: Any) -> dict[str, Any]:
    return {"type": "render", "workflow": WORKFLOW, "output": {"x": "{{ steps.a.output }}"}, "upstream": {"a": INJECTION}} | changes


def test_the_output_of_a_workflow_is_rendered() -> None:
    assert render_output(render_command()) == {"type": "workflow.rendered", "workflow": WORKFLOW, "output": {"x": INJECTION}}


def test_the_output_may_look_up_the_input() -> None:
    assert render_output(render_command(output="{{ input.brief }}", input={"brief": 1}))["output"] == 1


def test_an_output_without_value_fails_the_workflow() -> None:
    assert render_output(render_command(output="{{ steps.a.output.text }}")) == {
        "type": "workflow.failed",
        "workflow": WORKFLOW,
        "error": {"type": "InputError", "message": "{{ steps.a.output.text }} has no value: there is no 'text'"},
    }


# spawn


def completed(*children: SpawnedStep, step: str = "plan", join: str | None = None) -> StepCompleted:
    return StepCompleted(
        workflow=WORKFLOW, step=step, attempt=1, output={"o": 1}, usage=Usage(input_tokens=5), spawn=children, join=join
    )


def child(child_id: str, *needs: str, **changes: Any) -> SpawnedStep:
    return SpawnedStep(id=child_id, agent="writer", needs=needs, **changes)


def event_of(payload: StepCompleted) -> dict[str, Any]:
    return spawned(payload, agents=("researcher", "writer"))


def test_a_result_without_spawn_is_just_completed() -> None:
    assert event_of(completed()) == {
        "type": "step.completed",
        "workflow": WORKFLOW,
        "step": "plan",
        "attempt": 1,
        "output": {"o": 1},
        "usage": {"model_calls": 0, "input_tokens": 5, "output_tokens": 0, "cost_microdollars": 0},
    }


def test_usage_is_reported_whole() -> None:
    assert event_of(completed())["usage"].keys() == Usage.model_fields.keys()


def test_usage_by_model_is_reported_where_a_model_was_asked() -> None:
    usage = Usage(model_calls=1, input_tokens=5, output_tokens=2, cost_microdollars=3)
    made = event_of(completed().model_copy(update={"models": {"gemini-2.5-pro": usage}}))
    assert made["models"] == {"gemini-2.5-pro": usage.model_dump()}
    assert "models" not in event_of(completed())


def test_spawned_steps_get_full_ids_and_keep_their_input_literal() -> None:
    first = child("a", input={"brief": INJECTION}, timeout_seconds=5, max_retries=0, on_failure="continue")
    made = event_of(completed(first, child("b", "a", "a"), step="plan/0", join="b"))
    assert made["children"] == [
        {
            "id": "plan/0/a",
            "agent": "writer",
            "needs": [],
            "spec": {"input": {"brief": INJECTION}},
            "uses_input": False,
            "max_retries": 0,
            "timeout_seconds": 5.0,
            "on_failure": "continue",
        },
        {
            "id": "plan/0/b",
            "agent": "writer",
            "needs": ["plan/0/a"],
            "spec": {"input": None},
            "uses_input": False,
            "max_retries": None,
            "timeout_seconds": None,
            "on_failure": "fail",
        },
    ]
    assert made["join"] == "plan/0/b"


@pytest.mark.parametrize("join", [None, "*"])
def test_joins_that_name_no_step_stay_as_they_are(join: str | None) -> None:
    assert event_of(completed(child("a"), join=join))["join"] == join


def test_a_list_of_no_spawned_steps_is_still_a_list() -> None:
    made = event_of(completed(join="*"))
    assert (made["children"], made["join"]) == ([], "*")


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (completed(child("a"), child("a")), "step plan spawns a twice"),
        (completed(child("a", "z")), "step plan spawns a, which needs 'z'; a spawned step needs only its siblings"),
        (completed(child("a", "plan/a")), "needs 'plan/a'"),
        (completed(child("a", "a")), "spawns a cycle: a → a"),
        (completed(child("a", "b"), child("b", "a")), "spawns a cycle"),
        (
            completed(child("a").model_copy(update={"agent": "writter"})),
            "spawns a for 'writter', which is no agent, did you mean 'writer'?",
        ),
        (completed(child("a"), join="b"), "joins on 'b', which it does not spawn"),
        (completed(join="b"), "joins on 'b'"),
        (completed(child("a" * 60), step="/".join(["s" * 46] * 3)), "longer than 200; spawn less deeply"),
        (completed(*(child(f"c{n}") for n in range(MAX_CHILDREN + 1))), "spawns 10001 steps; at most 10000"),
    ],
)
def test_a_spawn_that_is_no_dag_of_siblings_is_refused(payload: StepCompleted, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        event_of(payload)
    assert reason in str(refused.value)


def test_the_longest_id_is_spawned() -> None:
    made = event_of(completed(child("a" * 60), step="/".join(["s" * 46, "s" * 46, "s" * 45])))
    assert len(made["children"][0]["id"]) == 200


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3)), max_size=6),
    st.sampled_from([None, "*", *"abg"]),
)
def test_a_spawn_is_refused_or_can_be_run_to_its_end(steps: list[tuple[str, list[str]]], join: str | None) -> None:
    payload = completed(*(child(step, *needs) for step, needs in steps), join=join)
    try:
        made = event_of(payload)
    except InputError:
        return
    waiting = {step["id"]: set(step["needs"]) for step in made.get("children", [])}
    assert len(waiting) == len(steps)
    assert join in (None, "*") or made["join"] in waiting
    while waiting:
        ready = {step for step, needs in waiting.items() if not needs & waiting.keys()}
        assert ready
        waiting = {step: needs for step, needs in waiting.items() if step not in ready}


# Together


def test_a_definition_is_decided_as_it_was_requested() -> None:
    definition = parse_definition(
        "name: small\nversion: 1\ninput: {brief: {type: string}, loud: {type: boolean, default: true}}\nsteps:\n"
        '  - {id: a, agent: writer, when: "{{ input.loud }}", input: {brief: "{{ input.brief }}"}}\n'
        '  - {id: b, agent: writer, needs: [a], for_each: "{{ steps.a.output }}"}\n',
        file="small.yaml",
        agents=["writer"],
    )
    request = orjson.loads(
        orjson.dumps(requested(definition, workflow=WORKFLOW, input={"brief": INJECTION}, default_max_retries=3))
    )
    first, second = request["steps"]
    assert dispatched(first["spec"], input=request["input"]).input == {"brief": INJECTION}
    assert [step["spec"] for step in event(second["spec"], upstream={"a": [INJECTION]})["children"]] == [{"input": INJECTION}]


def test_deciding_never_loads_yaml() -> None:
    check = "import sys, shared.workflows; sys.exit('yaml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, cwd=ROOT, timeout=60).returncode == 0
