"""Workflows as steps of others: what is refused when they are loaded, and what such a step becomes."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import DefinitionError, InputError
from shared.workflows import Definition, decide, load_definition, load_definitions, reusable
from tests.support.live import AGENTS, definition, start
from tests.unit.test_decisions import dispatched, event, failure

TEXT = "{type: string, required: true}"
LEAF = definition(
    """
    - {id: plan, agent: planner, input: {brief: "{{ input.brief }}", all: "{{ input }}"}}
    - {id: ask, needs: [plan], approval: {prompt: "{{ steps.plan.output }}?"}}
    - {id: paid, wait: {signal: payment}}
    - {id: each, agent: writer, needs: [plan], for_each: "{{ steps.plan.output }}", when: "{{ input.deep }}", on_failure: continue}
    - {id: debate, pattern: debate, needs: [plan], with: {subject: "{{ steps.plan.output }}"}}
    """,
    name="leaf",
    input=f"{{brief: {TEXT}, deep: {{type: boolean, default: true}}}}",
    output="{{ steps.each.output }} of {{ input.brief }}",
)
NESTS = {"leaf": LEAF}


def nesting(rest: str, **fields: Any) -> Definition:
    return definition(f"- {{id: sub, workflow: leaf{rest}}}", nests=NESTS, input=f"{{text: {TEXT}}}", **fields)


def spec(outer: Definition, **nests: Definition) -> dict[str, Any]:
    """The spec of its first step, as a run has it."""
    spec: dict[str, Any] = start(outer, definitions=NESTS | nests, input={"text": "t"})["steps"][0]["spec"]
    return spec


# What it becomes


def test_a_run_carries_the_definitions_that_it_nests_and_those_that_they_nest() -> None:
    middle = definition("- {id: below, workflow: leaf, input: {brief: b}}", name="middle", nests=NESTS)
    outer = definition("- {id: sub, workflow: middle}", nests={"middle": middle, **NESTS}, input=f"{{text: {TEXT}}}")
    carried = spec(outer, middle=middle)["workflow"]
    assert (carried["name"], carried["steps"][0]["agent"]) == ("middle", "workflow:leaf")
    assert [step["id"] for step in carried["steps"][0]["spec"]["workflow"]["steps"]] == ["plan", "ask", "paid", "each", "debate"]


def test_a_run_of_what_nests_an_unknown_workflow_is_refused() -> None:
    with pytest.raises(InputError, match="no workflow 'leaf' to nest, did you mean 'leaves'"):
        start(nesting(", input: {brief: b}"), definitions={"leaves": LEAF}, input={"text": "t"})


def test_a_nested_workflow_becomes_its_steps_and_two_values() -> None:
    given = spec(nesting(', input: {brief: "{{ input.text }}"}'))
    children = event(given, step="sub", agent="workflow:leaf", input={"text": "t"})
    assert (children["type"], children["join"]) == ("step.expanded", "sub/@output")
    assert [(child["id"], child["agent"], child["needs"]) for child in children["children"]] == [
        ("sub/@input", "value:input", []),
        ("sub/plan", "planner", ["sub/@input"]),
        ("sub/ask", "wait:approval", ["sub/plan"]),
        ("sub/paid", "wait:signal", []),
        ("sub/each", "writer", ["sub/plan", "sub/@input"]),
        ("sub/debate", "pattern:debate", ["sub/plan"]),
        ("sub/@output", "value:output", ["sub/each", "sub/@input"]),
    ]
    by_id = {child["id"].partition("/")[2]: child for child in children["children"]}
    assert by_id["plan"]["spec"]["template"] == {
        "brief": "{{ steps.sub/@input.output.brief }}",
        "all": "{{ steps.sub/@input.output }}",
    }
    assert by_id["ask"]["spec"]["approval"] == {"prompt": "{{ steps.sub/plan.output }}?"}
    assert by_id["debate"]["spec"]["with"] == {"subject": "{{ steps.sub/plan.output }}"}
    assert [child["signal"] for child in (by_id["ask"], by_id["paid"], by_id["plan"])] == ["sub/ask", "payment", None]
    assert [id for id, child in by_id.items() if child["uses_input"]] == ["@input"]
    assert (by_id["each"]["on_failure"], by_id["each"]["max_retries"]) == ("continue", 3)


def test_the_nested_input_is_what_is_given_with_its_defaults() -> None:
    given = spec(nesting(', input: {brief: "{{ input.text }}"}'))
    first = event(given, step="sub", agent="workflow:leaf", input={"text": "t"})["children"][0]
    value = decide(
        {"workflow": "wf", "step": first["id"], "attempt": 1, "agent": first["agent"], "spec": first["spec"], "upstream": {}}
        | {"input": {"text": "t"}}
    )
    assert isinstance(value, dict)
    assert (value["type"], value["output"]) == ("step.completed", {"brief": "t", "deep": True})


@pytest.mark.parametrize(
    ("input", "reason"),
    [
        (', input: "{{ input.text }}"', "input of leaf must be of type object, not string; give its fields by name"),
        (', for_each: [1], input: {brief: "{{ item }}"}', "input of leaf: 'brief' must be of type string, not integer"),
        (', for_each: [{breif: "x"}]', "input of leaf: 'breif' is unknown, did you mean 'brief'?; 'brief' is missing"),
    ],
)
def test_an_input_that_is_not_taken_fails_the_step_with_what_is_wrong(input: str, reason: str) -> None:
    given = spec(nesting(input))
    if "for_each" in given:
        [child] = event(given, step="sub", agent="workflow:leaf")["children"]
        given = child["spec"]
    assert reason in failure(given, step="sub/0", agent="workflow:leaf", input={"text": "t"})


def test_an_item_is_the_input_where_no_other_is_given() -> None:
    [child] = event(spec(nesting(', for_each: [{brief: "x {{ y }}"}]'.replace("{{ y }}", "y"))), step="sub")["children"]
    assert child["spec"]["input"] == {"brief": "x y"}
    assert event(child["spec"], step="sub/0")["children"][1]["id"] == "sub/0/plan"


def test_an_id_that_would_be_too_long_fails_the_step() -> None:
    given = spec(nesting(", input: {brief: b}"))
    assert "more than 200 characters" in failure(given, step="s" * 195, agent="workflow:leaf")


@pytest.mark.parametrize("step", ["sub/draft", "sub/each/0"])
def test_an_agent_inside_knows_what_it_needs_by_the_names_of_its_own_definition(step: str) -> None:
    upstream = {"sub/@input": {"brief": "b"}, "sub/plan": "P", "sub/debate": "D"}
    assert dispatched({"input": 1}, step=step, upstream=upstream).upstream == {"plan": "P", "debate": "D"}


# What is refused


def refusals(rest: str) -> list[str]:
    with pytest.raises(DefinitionError) as refused:
        nesting(rest)
    return str(refused.value).splitlines()


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("", "workflow leaf needs 'brief'; give a value of type string"),
        (", input: {brief: 7}", "'brief' of workflow leaf must be of type string, not integer"),
        (", input: {brief: b, depp: true}", "workflow leaf takes no 'depp', did you mean 'deep'?"),
        (", input: [b]", "input of workflow leaf should be a mapping of its fields, or one look-up"),
        (", input: {brief: b}, with: {a: 1}", "with is for patterns"),
        (", input: {brief: b}, timeout_seconds: 5", "timeout_seconds is for steps that work; the steps of a nested workflow"),
        (", input: {brief: b}, max_retries: 5", "max_retries is for steps that work"),
        (", input: {brief: b}, agent: writer", "needs one of agent, workflow, pattern"),
    ],
)
def test_a_mistake_is_refused_with_its_line(rest: str, reason: str) -> None:
    [line] = refusals(rest)
    assert line.startswith("small.yaml:6: ")
    assert reason in line


def write(folder: Path, **files: str) -> Path:
    for name, steps in files.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\nversion: 1\nsteps:\n{steps}\n")
    return folder


def nest(*names: str) -> str:
    return "\n".join(f"- {{id: s{n}, workflow: {name}}}" for n, name in enumerate(names))


LAST = "- {id: a, agent: writer, input: {}}"


def folder_refusals(folder: Path) -> list[str]:
    with pytest.raises(DefinitionError) as refused:
        load_definitions(folder, agents=AGENTS)
    return [line.removeprefix(f"{folder}/") for line in str(refused.value).splitlines()]


def test_an_unknown_workflow_is_refused_with_what_was_probably_meant(tmp_path: Path) -> None:
    assert folder_refusals(write(tmp_path, a=nest("raport"), report=LAST)) == [
        "a.yaml:4: unknown workflow 'raport', did you mean 'report'?"
    ]


def test_a_cycle_is_named_in_each_of_its_files(tmp_path: Path) -> None:
    assert folder_refusals(write(tmp_path, a=nest("b"), b=nest("leaf", "a"), leaf=LAST, self=nest("self"))) == [
        "a.yaml:4: a cycle: a → b → a; a workflow cannot be a step of itself",
        "b.yaml:5: a cycle: b → a → b; a workflow cannot be a step of itself",
        "self.yaml:4: a cycle: self → self; a workflow cannot be a step of itself",
    ]


def test_five_levels_are_taken_and_six_are_not(tmp_path: Path) -> None:
    levels = {f"l{n}": nest(f"l{n + 1}", "l6") for n in range(1, 6)}
    write(tmp_path, **levels, l6=LAST)
    assert load_definitions(tmp_path, agents=AGENTS)["l1"].nests == ("l2", "l6")
    assert folder_refusals(write(tmp_path, l0=nest("l6", "l1"))) == [
        "l0.yaml:5: nested more than 5 deep: l0 → l1 → l2 → l3 → l4 → l5 → l6; make it flatter"
    ]


def test_a_nested_file_with_a_mistake_is_the_only_one_that_is_told_of(tmp_path: Path) -> None:
    assert folder_refusals(write(tmp_path, a=nest("b"), b="- {id: a, agent: nobody}")) == [
        "b.yaml:4: unknown agent 'nobody', agents here: coordinator, critic, judge, planner, researcher, writer"
    ]


def test_one_file_is_checked_against_the_definitions_that_there_are(tmp_path: Path) -> None:
    write(tmp_path, small=nest("leaf"))
    with pytest.raises(DefinitionError, match=r"small\.yaml:4: workflow leaf needs 'brief'"):
        load_definition(tmp_path / "small.yaml", agents=AGENTS, others=lambda: NESTS)
    with pytest.raises(DefinitionError, match="unknown workflow 'leaf', there are no workflows"):
        load_definition(tmp_path / "small.yaml", agents=AGENTS)


# Forks


def step(id: str, *needs: str, last: str = "step.completed", on_failure: str = "fail", **spec: Any) -> dict[str, Any]:
    parent = id.rpartition("/")[0] or None
    return {"id": id, "parent": parent, "needs": list(needs), "spec": spec, "on_failure": on_failure, "last": last}


def takes(*fields: str) -> dict[str, Any]:
    return {"name": "leaf", "fields": {name: {} for name in fields}}


ONE = {"brief": "{{ input.text }}", "tone": "{{ input.tone }}"}
TWO = {"brief": "fixed", "tone": "{{ steps.sub/@input.output.tone }}"}
PLAN = [
    step("sub", workflow={}, template=ONE),
    step("end", "sub", template="{{ steps.sub.output }}"),
    step("alone", template="text"),
    step("sub/@input", takes=takes("brief", "tone"), template=ONE),
    step("sub/plan", "sub/@input", template="{{ steps.sub/@input.output.brief }}"),
    step("sub/rest", template="{{ item }}"),
    step("sub/below", "sub/plan", workflow={}, template=TWO),
    step("sub/@output", "sub/below", template="{{ steps.sub/below.output }}"),
    step("sub/below/@input", "sub/@input", takes=takes("brief", "tone"), template=TWO),
    step("sub/below/a", "sub/below/@input", template="{{ steps.sub/below/@input.output.brief }}"),
    step("sub/below/b", "sub/below/@input", template="{{ steps.sub/below/@input.output.tone }}"),
    step("sub/below/@output", "sub/below/b", template="{{ steps.sub/below/b.output }}"),
]


@pytest.mark.parametrize(
    ("changed", "anew", "reopened"),
    [
        ("text", {"end", "sub/@input", "sub/plan", "sub/@output", *(s["id"] for s in PLAN if "below" in s["id"])}, {"sub"}),
        (
            "tone",
            {"end", "sub/@input", "sub/@output", "sub/below/@input", "sub/below/b", "sub/below/@output"},
            {"sub", "sub/below"},
        ),
        ("other", set(), set()),
    ],
)
def test_a_changed_field_runs_again_what_it_had_a_part_in_through_all_levels(
    changed: str, anew: set[str], reopened: set[str]
) -> None:
    reuse = reusable(PLAN, [changed])
    assert {s["id"] for s in PLAN} - {*reuse.finished, *reuse.expanded} == anew
    assert set(reuse.expanded) == reopened


def test_a_nested_workflow_that_refused_its_input_is_asked_again_when_that_changes() -> None:
    refused = step("sub", last="step.failed", on_failure="continue", workflow={}, template=ONE)
    assert reusable([refused], ["other"]).finished == ["sub"]
    assert reusable([refused], ["tone"]).finished == []


def test_what_was_cut_off_in_a_nested_workflow_that_failed_alone_is_reused_as_it_is() -> None:
    family = [
        step("sub", last="step.failed", on_failure="continue", workflow={}),
        step("sub/a", last="step.failed"),
        step("sub/b", last="step.cancelled"),
        step("sub/c", last="step.expanded"),
        step("sub/c/0", last="step.dispatched"),
    ]
    reuse = reusable(family, ())
    assert (set(reuse.finished), reuse.expanded) == ({"sub", "sub/a", "sub/b", "sub/c", "sub/c/0"}, [])


def test_a_nested_workflow_that_had_not_begun_by_then_begins_anew() -> None:
    early = [{**one, "last": None} if one["id"].startswith("sub") else one for one in PLAN]
    assert reusable(early, ["text"]).expanded == []
