"""Definition files are loaded exactly, or refused with every mistake and its line."""

import hashlib
import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import shared.workflows
from shared.errors import DefinitionError, InputError
from shared.messages import Budget
from shared.workflows import Definition, Schedule, load_definition, load_definitions, parse_definition, requested
from shared.workflows.definitions import MAX_STEPS
from tests.support.library import AGENTS, ROOT

WORKFLOW = "wf_01ARZ3NDEKTSV4RRFFQ69G5FAV"
HEAD = "name: small\nversion: 1\ninput: {brief: {type: string, required: true}}\n"


def parse(text: str) -> Definition:
    return parse_definition(text, file="small.yaml", agents=AGENTS)


def refusal(text: str) -> list[str]:
    with pytest.raises(DefinitionError) as refused:
        parse(text)
    return str(refused.value).splitlines()


def request(definition: Definition, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"workflow": WORKFLOW, "input": {"brief": "b"}, "default_max_retries": 3} | changes
    return requested(definition, **arguments)


@pytest.fixture
def report() -> Definition:
    return load_definition(ROOT / "workflows" / "report.yaml", agents=AGENTS)


# What is taken


def test_every_definition_of_the_project_loads() -> None:
    assert load_definitions(ROOT / "workflows", agents=AGENTS)["report"].name == "report"


def test_a_definition_keeps_what_its_file_declares(report: Definition) -> None:
    assert report.version == 1
    assert report.schedule is None
    assert report.budget == Budget(max_steps=50, max_tokens=200_000, max_cost_usd=1.0, deadline_seconds=3600)
    assert [step.id for step in report.steps] == ["plan", "research", "draft", "debate", "final"]
    assert report.steps[2].needs == ("plan", "research")
    assert report.steps[3].with_ == {"subject": "{{ steps.draft.output.text }}", "rounds": 2}


def test_a_step_has_the_documented_defaults() -> None:
    step = parse(HEAD + "steps: [{id: a, agent: writer}]").steps[0]
    assert (step.timeout_seconds, step.max_retries, step.on_failure, step.needs, step.spec) == (300.0, None, "fail", (), {})


def test_the_output_of_the_only_last_step_is_the_output() -> None:
    definition = parse(HEAD + "steps: [{id: a, agent: writer}, {id: b, agent: writer, needs: [a]}]")
    assert definition.output_template == "{{ steps.b.output }}"
    assert definition.output_needs == ("b",)


def test_several_last_steps_give_an_object_of_their_outputs() -> None:
    definition = parse(HEAD + "steps: [{id: a, agent: writer}, {id: b, agent: writer, needs: [a]}, {id: c, agent: writer}]")
    assert definition.output_template == {"b": "{{ steps.b.output }}", "c": "{{ steps.c.output }}"}
    assert definition.output_needs == ("b", "c")


def test_a_declared_output_may_look_up_any_step_and_the_input() -> None:
    definition = parse(
        HEAD + "steps: [{id: a, agent: writer}, {id: b, agent: writer, needs: [a]}]\n"
        'output: {first: "{{ steps.a.output.x[0] }}", again: "{{ steps.a.output }}", brief: "{{ input.brief }}"}'
    )
    assert definition.output_needs == ("a",)
    assert definition.output_uses_input


STEPS = "steps: [{id: a, agent: writer}]"


def test_a_schedule_is_kept_as_it_is_written() -> None:
    expression = "*/5 6-18 * JAN,FEB 1"
    definition = parse(f'name: small\nversion: 1\nschedule: "{expression}"\n{STEPS}')
    assert definition.schedule == Schedule(cron=expression, catch_up="skip", input={})


def test_a_schedule_may_say_what_becomes_of_missed_ticks_and_what_its_runs_are_given() -> None:
    head = 'name: small\nversion: 1\nschedule: {cron: "0 6 * * 1", catch_up: last, input: {brief: Ferries}}\n'
    definition = parse(head + "input: {brief: {type: string, required: true}}\n" + STEPS)
    assert definition.schedule == Schedule(cron="0 6 * * 1", catch_up="last", input={"brief": "Ferries"})


def test_conditions_and_maps_may_be_literal() -> None:
    step = parse(HEAD + "steps: [{id: a, agent: writer, when: false, for_each: [1, 2]}]").steps[0]
    assert step.spec == {"when": False, "for_each": [1, 2]}


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + (HEAD + "steps: [{id: a, agent: writer}]").encode())
    assert load_definition(file, agents=AGENTS).name == "small"


def test_the_largest_definition_loads() -> None:
    steps = "".join(f"- {{id: s{n}, agent: writer, needs: [s{n - 1}]}}\n" for n in range(1, MAX_STEPS))
    assert len(parse(HEAD + "steps:\n- {id: s0, agent: writer}\n" + steps).steps) == MAX_STEPS


def test_steps_that_wait_say_for_what_and_which_signal_wakes_them() -> None:
    definition = parse(
        HEAD + "steps:\n"
        '  - {id: ask, approval: {prompt: "Send {{ input.brief }}?", timeout_seconds: 60, default: reject}}\n'
        "  - {id: night, wait: {seconds: 28800}}\n"
        '  - {id: morning, wait: {until: "2026-01-31T08:00:00+01:00"}}\n'
        '  - {id: later, wait: {until: "{{ input.brief }}"}, when: true, on_failure: continue}\n'
        "  - {id: paid, wait: {signal: payment, timeout_seconds: 60}}\n"
        "  - {id: go, wait: {signal: go}}\n"
    )
    steps = request(definition)["steps"]
    assert [(one["agent"], one["signal"], one["uses_input"]) for one in steps] == [
        ("wait:approval", "ask", True),
        ("wait:time", "night", False),
        ("wait:time", "morning", False),
        ("wait:time", "later", True),
        ("wait:signal", "payment", False),
        ("wait:signal", "go", False),
    ]
    assert steps[0]["spec"] == {"approval": {"prompt": "Send {{ input.brief }}?", "timeout_seconds": 60.0, "default": "reject"}}


# What is refused

STEP = "steps:\n  - {id: a, agent: writer}\n"
"""Line 4 is `steps:`, line 5 step a, and what is added begins on line 6."""

SCHEDULED = "name: a\nversion: 1\nschedule: {}\n"
OK = HEAD + STEP


def step(rest: str) -> str:
    return OK + f"  - {{id: b, {rest}}}"


def writer(rest: str) -> str:
    return step("agent: writer, " + rest)


def field(declaration: str) -> str:
    return f"name: a\nversion: 1\ninput:\n  {declaration}\n{STEP}"


MISTAKES = {
    "a YAML mistake": ("name: a: b", 1, "not YAML: mapping values are not allowed here"),
    "an open bracket": (HEAD + "steps: [", 4, "not YAML"),
    "a control character": ("name: a\n\x01", 2, "control character"),
    "an escape beyond Unicode": ('name: "\\UFFFFFFFF"', 1, "impossible number"),
    "two documents": (OK + "---\na: 1", 6, "single document"),
    "an empty file": ("# nothing\n", 1, "the file is empty"),
    "a list": ("- a", 1, "a definition is a mapping"),
    "text": ("hello", 1, "a definition is a mapping"),
    "an anchor": (HEAD + "steps: [&a {id: a, agent: writer}]", 4, "anchors and aliases are not used here"),
    "an alias": (HEAD + "steps: [*a]", 4, "anchors and aliases are not used here"),
    "a tag": (HEAD + "steps: !!python/name:os.system ''", 4, "tags are not used here"),
    "deep nesting": (OK + "output: " + "[" * 100_000, 6, "nested more than 50 levels"),
    "deep block nesting": (OK + "output:\n " + "- " * 50_000, 7, "nested more than 50 levels"),
    "an infinite number": (OK + "output: .inf", 6, "is not a number in JSON"),
    "a number that is none": (OK + "output: 0b_", 6, "is not a number; put it in quotes"),
    "a number beyond 64 bits": (OK + "output: 9223372036854775808", 6, "does not fit into 64 bits"),
    "a date": (OK + "output: 2026-01-01", 6, "is read as a timestamp; put it in quotes"),
    "half a surrogate pair": (OK + 'output: "\\ud800"', 6, "cannot be stored"),
    "a NUL": (OK + 'output: "\\0"', 6, "cannot be stored"),
    "a duplicate key": (OK + "name: other", 6, "duplicate key 'name', first on line 1"),
    "a key that is no text": (OK + "on: 1", 6, "the key 'on' is not read as text"),
    "a template without quotes": (OK + "output: {{ input.brief }}", 6, "a template needs quotes"),
    "an unknown key": (OK + "shedule: null", 6, "unknown key 'shedule', did you mean 'schedule'?"),
    "an unknown key of a step": (writer("need: [a]"), 6, "unknown key 'need', did you mean 'needs'?"),
    "an unknown key of a field": (
        "name: a\nversion: 1\ninput: {x: {type: string, defualt: 1}}\n" + STEP,
        3,
        "did you mean 'default'?",
    ),
    "an unknown key of the budget": (OK + "budget: {max_token: 1}", 6, "did you mean 'max_tokens'?"),
    "an approval that asks nothing": (step("approval: {}"), 6, "'prompt' is missing"),
    "an approval and an agent": (writer("approval: {prompt: p}"), 6, "needs one of agent, workflow, pattern, approval and wait"),
    "an unknown key of an approval": (step("approval: {prompt: p, defualt: reject}"), 6, "did you mean 'default'?"),
    "an unknown default": (step("approval: {prompt: p, default: amend}"), 6, "'approve' or 'reject'"),
    "a default of an approval that is never over": (step("approval: {prompt: p, default: approve}"), 6, "add one"),
    "a for_each over a field of text": (writer('for_each: "{{ input.brief }}"'), 6, "'brief' is of type string"),
    "a prompt that looks up what is not needed": (step('approval: {prompt: "{{ steps.a.output }}"}'), 6, "add it to needs"),
    "an approval for each": (step("approval: {prompt: p}, for_each: [1]"), 6, "for_each is for steps that work"),
    "a timeout beside an approval": (step("approval: {prompt: p}, timeout_seconds: 5"), 6, "write it inside approval or wait"),
    "a wait for nothing": (step("wait: {}"), 6, "needs one of seconds, until and signal"),
    "a wait for two things": (step("wait: {seconds: 1, signal: s}"), 6, "needs one of seconds, until and signal"),
    "seconds that are text": (step("wait: {seconds: soon}"), 6, "seconds should be a number of seconds"),
    "seconds in longer text": (step('wait: {seconds: "{{ input.brief }} s"}'), 6, "or one look-up"),
    "seconds below 0": (step("wait: {seconds: -1}"), 6, "0 to 31,622,400"),
    "a moment without an offset": (step('wait: {until: "2026-01-31T12:00:00"}'), 6, "2026-01-31T12:00:00Z"),
    "a moment that is a number": (step("wait: {until: 5}"), 6, "as RFC 3339 has it"),
    "a timeout of a wait that ends": (step("wait: {seconds: 1, timeout_seconds: 2}"), 6, "this one ends by itself"),
    "a signal with a space": (step("wait: {signal: a b}"), 6, "'signal' should match"),
    "a signal called like another step": (step("wait: {signal: a}"), 6, "call it something else"),
    "no name": ("version: 1\n" + STEP, 1, "'name' is missing; add it"),
    "a bad name": ("name: Big Report\nversion: 1\n" + STEP, 1, "'name' should match"),
    "a version that is text": ("name: a\nversion: '1'\n" + STEP, 2, "'version' should be a valid integer"),
    "version 0": ("name: a\nversion: 0\n" + STEP, 2, "'version' should be greater than or equal to 1"),
    "a description that is no text": (OK + "description: 5", 6, "'description' should be text"),
    "no steps": (HEAD + "steps: []", 4, "'steps' should have at least 1 item"),
    "steps that are no list": (HEAD + "steps: {}", 4, "'steps' should be a list"),
    "only a step that is wrong": (HEAD + "steps:\n  - {id: a, agent: writer, timeout_seconds: 0}", 5, "should be greater than 0"),
    "a step that is text": (OK + "  - b", 6, "item 2 should be a mapping"),
    "a step id with a slash": (OK + "  - {id: b/c, agent: writer}", 6, "'id' should match"),
    "a step id that is too long": (OK + f"  - {{id: {'b' * 61}, agent: writer}}", 6, "'id' should have at most 60 characters"),
    "a duplicate step": (OK + "  - {id: a, agent: writer}", 6, "duplicate step 'a', first on line 5"),
    "a timeout of true": (writer("timeout_seconds: yes"), 6, "'timeout_seconds' should be a valid number"),
    "a timeout of 0": (writer("timeout_seconds: 0"), 6, "should be greater than 0"),
    "negative retries": (writer("max_retries: -1"), 6, "should be greater than or equal to 0"),
    "an unknown on_failure": (writer("on_failure: stop"), 6, "should be 'fail' or 'continue'"),
    "an unknown agent": (step("agent: plannr"), 6, "unknown agent 'plannr', did you mean 'planner'?"),
    "an agent like no other": (step("agent: x"), 6, f"agents here: {', '.join(sorted(AGENTS))}"),
    "an unknown pattern": (step("pattern: debat"), 6, "unknown pattern 'debat', did you mean 'debate'?"),
    "neither agent nor pattern": (OK + "  - {id: b}", 6, "needs one of agent, workflow, pattern, approval and wait"),
    "both agent and pattern": (writer("pattern: debate"), 6, "needs one of agent, workflow, pattern, approval and wait"),
    "with for an agent": (writer("with: {x: 1}"), 6, "with is for patterns"),
    "input for a pattern": (step("pattern: debate, with: {subject: s}, input: {}"), 6, "input is for agents"),
    "a pattern without its subject": (step("pattern: debate"), 6, "needs a value for 'subject'"),
    "a parameter that is wrong": (step("pattern: debate, with: {subject: s, rounds: 11}"), 6, "'rounds' of pattern debate"),
    "an unknown need": (OK + "  - {id: bbb, agent: writer, needs: [bbc]}", 6, "needs unknown step 'bbc', did you mean 'bbb'?"),
    "a need listed twice": (writer("needs: [a, a]"), 6, "needs step 'a' twice"),
    "a need of itself": (writer("needs: [b]"), 6, "a cycle: b → b"),
    "a look-up without need": (writer('input: "{{ steps.a.output }}"'), 6, "step 'a' without needing it; add it to needs"),
    "a look-up of an unknown step": (writer('input: "{{ steps.aa.output }}"'), 6, "unknown step 'aa', did you mean 'a'?"),
    "a look-up past the output": (writer('needs: [a], input: "{{ steps.a.text }}"'), 6, "write {{ steps.a.output }}"),
    "a look-up of all steps": (writer('input: "{{ steps }}"'), 6, "write {{ steps.name.output }}"),
    "an undeclared input field": (
        writer('input: {x: ["{{ input.breif }}"]}'),
        6,
        "unknown input field 'breif', did you mean 'brief'?",
    ),
    "an unknown root": (writer('input: "{{ env.HOME }}"'), 6, "unknown name 'env'"),
    "braces that hold code": (writer('input: "{{ 1 + 1 }}"'), 6, "is not a look-up"),
    "open braces": (writer('input: "{{ input.brief"'), 6, "is not a look-up"),
    "a template in a key": (writer('input: {"{{ input.brief }}": 1}'), 6, "in a key"),
    "an item outside for_each": (writer('input: "{{ item }}"'), 6, "item is known only in"),
    "an item in when": (writer('for_each: [1], when: "{{ item }}"'), 6, "item is known only in"),
    "a comparison in when": (writer('when: "{{ input.brief }} == x"'), 6, "when should be one look-up"),
    "a for_each over text": (writer('for_each: "a, b"'), 6, "for_each should be one look-up"),
    "an item in the output": (OK + 'output: "{{ item }}"', 6, "item is known only in"),
    "an unknown step in the output": (OK + 'output: "{{ steps.b.output }}"', 6, "unknown step 'b'"),
    "an unknown field type": (field("x: {type: text}"), 4, "should be 'string', 'integer'"),
    "a field name with a dot": (field("x.y: {type: string}"), 4, "'x.y' should match"),
    "a default of the wrong type": (field("x: {type: integer, default: true}"), 4, "should be of type integer"),
    "a default for a required field": (field("x: {type: integer, required: true, default: 1}"), 4, "required and has a default"),
    "a schedule that is none": ("name: a\nversion: 1\nschedule: daily\n" + STEP, 3, "cron expression of five fields"),
    "a schedule with a field too many": (SCHEDULED.format('"0 0 6 * * 1"') + STEP, 3, "cron expression of five fields"),
    "a schedule with an hour too late": (SCHEDULED.format('"0 24 * * *"') + STEP, 3, "no cron expression (Bad hour)"),
    "a schedule that never comes": (SCHEDULED.format('"0 0 30 2 *"') + STEP, 3, "schedule"),
    "a schedule that never comes, last Monday": (SCHEDULED.format('"0 0 31 4,6 *"') + STEP, 3, "schedule"),
    "a schedule without its expression": (SCHEDULED.format("{catch_up: all}") + STEP, 3, "'cron' is missing"),
    "a schedule with an unknown policy": (
        SCHEDULED.format('\n  cron: "0 6 * * *"\n  catch_up: some') + STEP,
        5,
        "'skip', 'last' or 'all'",
    ),
    "a schedule with an unknown key": (
        SCHEDULED.format('\n  cron: "0 6 * * *"\n  catchup: all') + STEP,
        5,
        "did you mean 'catch_up'?",
    ),
    "a schedule in a mapping that never comes": (SCHEDULED.format('\n  catch_up: all\n  cron: "0 0 30 2 *"') + STEP, 5, "schedule"),
    "a schedule with unknown input": (SCHEDULED.format('{cron: "0 6 * * *", input: {brif: x}}') + STEP, 3, "'brif' is unknown"),
    "a schedule with required input": (HEAD + 'schedule: "0 6 * * 1"\n' + STEP, 3, "a scheduled workflow starts without input"),
    "a budget that is text": (OK + "budget: {max_tokens: '5'}", 6, "'max_tokens' should be a valid integer"),
    "a negative budget": (OK + "budget: {max_cost_usd: -1}", 6, "should be greater than or equal to 0"),
    "a budget beyond measure": (OK + "budget: {max_cost_usd: 1.0e+300}", 6, "budget.max_cost_usd should be at most 1,000,000"),
    "a budget too small for the steps": (step("agent: writer}\nbudget: {max_steps: 1"), 7, "max_steps is 1 and there are 2 steps"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_refused_with_its_line_and_reason(mistake: str) -> None:
    text, line, reason = MISTAKES[mistake]
    lines = refusal(text)
    assert len(lines) == 1, lines
    assert lines[0].startswith(f"small.yaml:{line}: ")
    assert reason in lines[0]


def test_all_mistakes_of_a_file_are_reported_together_in_its_order() -> None:
    lines = refusal(
        "name: small\nversion: one\nsteps:\n"
        "  - {id: a, agent: nobody}\n"
        '  - {id: b, agent: writer, timeout_seconds: x, input: "{{ steps.c.output }}"}\n'
        '  - {id: c, agent: writer, needs: [b, z], input: "{{ input.x }}"}\n'
        'output: "{{ steps.b.output }}"\ntypo: 1\n'
    )
    assert [line.split(":")[1] for line in lines] == ["2", "4", "5", "6", "6", "8"]


def test_a_cycle_is_named_by_its_path() -> None:
    steps = [{"id": "a", "agent": "writer", "needs": ["c"]}, {"id": "b", "agent": "writer", "needs": ["a"]}]
    steps.append({"id": "c", "agent": "writer", "needs": ["b"]})
    [line] = refusal(HEAD + "steps: " + orjson.dumps(steps).decode())
    names = line.split("a cycle: ")[1].split(";")[0].split(" → ")
    assert names[0] == names[-1]
    assert sorted(names[1:]) == ["a", "b", "c"]


def test_a_long_cycle_is_shortened() -> None:
    steps = "".join(f"- {{id: s{n}, agent: writer, needs: [s{(n + 1) % 100}]}}\n" for n in range(100))
    [line] = refusal(HEAD + "steps:\n" + steps)
    assert "…" in line
    assert len(line) < 250


def test_a_pattern_whose_agents_are_missing_is_refused() -> None:
    with pytest.raises(DefinitionError, match="works with agent 'judge', which is not there"):
        parse_definition(HEAD + "steps: [{id: a, pattern: debate, with: {subject: s}}]", file="f", agents={"critic"})


def test_without_any_agents_the_message_says_so() -> None:
    with pytest.raises(DefinitionError, match="unknown agent 'writer', there are no agents"):
        parse_definition(HEAD + STEP, file="f", agents=())


def test_more_agents_than_fit_are_counted() -> None:
    with pytest.raises(DefinitionError, match=r"agents here: a0, .*, and 10 more"):
        parse_definition(HEAD + STEP, file="f", agents={f"a{n}" for n in range(30)})


def test_too_many_steps_are_refused() -> None:
    [line] = refusal(HEAD + "steps:\n" + "".join(f"- {{id: s{n}, agent: writer}}\n" for n in range(MAX_STEPS + 1)))
    assert "'steps' should have at most 1000 items" in line


def test_the_fiftieth_problem_ends_the_search() -> None:
    assert len(refusal(HEAD + "steps:\n" + "- {}\n" * 500)) == 50


def test_a_file_that_is_not_utf8_is_refused_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_bytes(b"name: small\ndescription: caf\xe9\n")
    with pytest.raises(DefinitionError, match=r"small\.yaml:2: not UTF-8"):
        load_definition(file, agents=AGENTS)


def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_bytes(b"#" * (256 * 1024 + 1))
    with pytest.raises(DefinitionError, match="larger than 256 KB"):
        load_definition(file, agents=AGENTS)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="cannot be read: No such file"):
        load_definition(tmp_path / "small.yaml", agents=AGENTS)


@pytest.mark.parametrize("name", ["other.yaml", "small.yml"])
def test_a_file_is_named_after_its_definition(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(HEAD + STEP)
    with pytest.raises(DefinitionError, match=r"it defines 'small'; name the file small\.yaml"):
        load_definitions(tmp_path, agents=AGENTS)


def test_a_folder_reports_the_mistakes_of_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: 1")
    (tmp_path / "b.yaml").write_text("[")
    (tmp_path / "small.yaml").write_text(HEAD + STEP)
    (tmp_path / "README.md").write_text("not a definition")
    with pytest.raises(DefinitionError) as refused:
        load_definitions(tmp_path, agents=AGENTS)
    assert {Path(line.split(":")[0]).name for line in str(refused.value).splitlines()} == {"a.yaml", "b.yaml"}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="no such folder"):
        load_definitions(tmp_path / "none", agents=AGENTS)


def test_the_room_hands_on_nothing_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shared.workflows.nothing  # type: ignore[attr-defined]


# Input

FIELDS = """
name: small
version: 1
input:
  brief: {type: string, required: true}
  count: {type: integer, default: 3}
  share: {type: number}
  loud: {type: boolean, default: false}
  tags: {type: array, default: []}
  extra: {type: object}
steps: [{id: a, agent: writer}]
"""


def test_missing_fields_get_their_defaults_and_null_without_one() -> None:
    assert parse(FIELDS).check_input({"brief": "", "share": None}) == {
        "brief": "",
        "count": 3,
        "share": None,
        "loud": False,
        "tags": [],
        "extra": None,
    }


def test_given_fields_are_kept() -> None:
    given_input = {"brief": "b", "count": 0, "share": 1, "loud": True, "tags": [1], "extra": {"x": None}}
    assert parse(FIELDS).check_input(given_input) == given_input


@pytest.mark.parametrize(
    ("field", "value", "found"),
    [
        ("brief", 1, "integer"),
        ("count", True, "boolean"),
        ("count", 1.5, "number"),
        ("count", 2.0**64, "number"),
        ("count", 2**64, "number"),
        ("count", -(2**63), "number"),
        ("count", float("inf"), "number"),
        ("count", float("nan"), "number"),
        ("share", "1", "string"),
        ("loud", 0, "integer"),
        ("tags", {}, "object"),
        ("extra", [], "array"),
        ("extra", object(), "no JSON"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(field: str, value: object, found: str) -> None:
    with pytest.raises(InputError, match=f"'{field}' must be of type .*, not {found}"):
        parse(FIELDS).check_input({"brief": "b"} | {field: value})


@pytest.mark.parametrize("value", [3, 3.0, -0.0, -(2.0**62), 2**64 - 1])
def test_a_whole_number_is_an_integer_however_json_writes_it(value: float) -> None:
    count = parse(FIELDS).check_input({"brief": "b", "count": value})["count"]
    assert (count, type(count)) == (value, int)


def test_all_problems_of_an_input_are_reported_on_one_line() -> None:
    with pytest.raises(InputError) as refused:
        parse(FIELDS).check_input({"breif": "secret words", "count": "many"})
    assert str(refused.value) == (
        "input of small: 'breif' is unknown, did you mean 'brief'?; 'brief' is missing, give a value of type string; "
        "'count' must be of type integer, not string"
    )


# Requests


def test_a_request_says_all_that_advance_has_to_know(report: Definition) -> None:
    event = request(report, priority=5, request_key="k", callback_url="https://example.com", traceparent="00-a-b-01")
    steps = event.pop("steps")
    assert event == {
        "type": "workflow.requested",
        "workflow": WORKFLOW,
        "request_key": "k",
        "request_hash": hashlib.sha256(b'["report",{"brief":"b"},{},5,"https://example.com"]').hexdigest(),
        "name": "report",
        "version": 1,
        "input": {"brief": "b"},
        "output": "{{ steps.final.output }}",
        "output_needs": ["final"],
        "output_uses_input": False,
        "max_steps": 50,
        "max_tokens": 200_000,
        "max_cost_microdollars": 1_000_000,
        "deadline_seconds": 3600.0,
        "priority": 5,
        "callback_url": "https://example.com",
        "traceparent": "00-a-b-01",
    }
    assert [(step["id"], step["agent"], step["uses_input"]) for step in steps] == [
        ("plan", "planner", True),
        ("research", "researcher", True),
        ("draft", "writer", False),
        ("debate", "pattern:debate", False),
        ("final", "writer", False),
    ]
    assert steps[1] == {
        "id": "research",
        "agent": "researcher",
        "needs": ["plan"],
        "spec": {
            "template": {"question": "{{ item }}", "brief": "{{ input.brief }}"},
            "for_each": "{{ steps.plan.output.questions }}",
        },
        "signal": None,
        "uses_input": True,
        "max_retries": 3,
        "timeout_seconds": 300.0,
        "on_failure": "fail",
    }
    assert steps[3]["spec"] == {"pattern": "debate", "with": {"subject": "{{ steps.draft.output.text }}", "rounds": 2}}


def test_a_step_keeps_its_own_number_of_retries() -> None:
    definition = parse(HEAD + "steps: [{id: a, agent: writer, max_retries: 0}, {id: b, agent: writer}]")
    assert [step["max_retries"] for step in request(definition, default_max_retries=7)["steps"]] == [0, 7]


@pytest.mark.parametrize("place", ['when: "{{ input.brief }}"', 'for_each: ["{{ input.brief }}"]', 'input: "x {{ input }}"'])
def test_a_step_uses_the_input_wherever_it_looks_it_up(place: str) -> None:
    assert request(parse(HEAD + f"steps:\n - id: a\n   agent: writer\n   {place}"))["steps"][0]["uses_input"]


def test_limits_of_the_caller_replace_those_of_the_definition(report: Definition) -> None:
    event = request(report, budget=Budget(max_tokens=0, max_cost_usd=0.1))
    assert (event["max_steps"], event["max_tokens"], event["max_cost_microdollars"]) == (50, 0, 100_000)


def test_no_limits_are_null() -> None:
    event = request(parse(HEAD + STEP))
    assert [event[key] for key in ("max_steps", "max_tokens", "max_cost_microdollars", "deadline_seconds")] == [None] * 4


@pytest.mark.parametrize(
    "budget",
    [
        Budget(max_steps=2**31),
        Budget(max_tokens=2**63),
        Budget(max_cost_usd=float("inf")),
        Budget(deadline_seconds=1e12),
        Budget.model_construct(max_steps=None, max_tokens=None, max_cost_usd=float("nan"), deadline_seconds=None),
    ],
)
def test_a_budget_beyond_measure_is_refused(report: Definition, budget: Budget) -> None:
    with pytest.raises(InputError, match=r"budget\.\w+ should be at most"):
        request(report, budget=budget)


def test_the_same_request_has_the_same_hash_whatever_the_order_of_its_keys() -> None:
    definition = parse(FIELDS)
    one = request(definition, input={"brief": "b", "count": 1}, budget=Budget())
    two = request(definition, input={"count": 1, "brief": "b"})
    assert one["request_hash"] == two["request_hash"]


@pytest.mark.parametrize("change", [{"input": {"brief": "c"}}, {"priority": 1}, {"budget": Budget(max_tokens=1)}])
def test_another_request_has_another_hash(report: Definition, change: dict[str, Any]) -> None:
    assert request(report, **change)["request_hash"] != request(report)["request_hash"]


@pytest.mark.parametrize("value", ["\0", "a\\\0", {"a\0b": 1}])
def test_an_input_that_postgres_cannot_store_is_refused(value: object) -> None:
    definition = parse("name: small\nversion: 1\ninput: {x: {type: array}}\n" + STEP)
    with pytest.raises(InputError, match="NUL"):
        request(definition, input={"x": [value]})


def test_an_escaped_backslash_before_u0000_is_no_nul(report: Definition) -> None:
    assert request(report, input={"brief": "\\u0000"})["input"] == {"brief": "\\u0000"}


@pytest.mark.parametrize("value", [object(), 2**70, "\ud800"])
def test_an_input_that_is_no_json_is_refused(value: object) -> None:
    definition = parse("name: small\nversion: 1\ninput: {x: {type: array}}\n" + STEP)
    with pytest.raises(InputError, match="cannot be written as JSON"):
        request(definition, input={"x": [value]})


# Properties

_IDS = st.from_regex(r"[A-Za-z0-9_-]{1,12}", fullmatch=True)


@st.composite
def definitions(draw: st.DrawFn) -> dict[str, Any]:
    """A definition that is right: steps need only earlier ones, and look up only what they need."""
    fields = draw(st.lists(_IDS, unique=True, max_size=3))
    steps: list[dict[str, Any]] = []
    for step_id in draw(st.lists(_IDS, unique=True, min_size=1, max_size=8)):
        earlier = [step["id"] for step in steps]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        places = (
            [f"{{{{ steps.{need}.output.x[0] }}}}" for need in needs] + [f"{{{{ input.{field} }}}}" for field in fields] + ["text"]
        )
        template = draw(st.dictionaries(_IDS, st.sampled_from(places), max_size=3))
        step = {"id": step_id, "agent": draw(st.sampled_from(sorted(AGENTS))), "needs": needs, "input": template}
        mapped: bool = draw(st.booleans())
        if needs and mapped:
            step["for_each"] = f"{{{{ steps.{needs[0]}.output }}}}"
            template["item"] = "{{ item }}"
        steps.append(step)
    shuffled = draw(st.permutations(steps))
    return {"name": "random", "version": 1, "input": {field: {"type": "string"} for field in fields}, "steps": shuffled}


@given(definitions())
@settings(max_examples=60, deadline=None)
def test_every_right_definition_loads(definition: dict[str, Any]) -> None:
    loaded = parse(yaml.safe_dump(definition))
    assert [step.id for step in loaded.steps] == [step["id"] for step in definition["steps"]]
    event = request(loaded, input={})
    assert [step["spec"].get("template") for step in event["steps"]] == [step["input"] for step in definition["steps"]]
    orjson.dumps(event)


def _loads_or_is_refused(text: str) -> None:
    try:
        loaded = parse(text)
    except DefinitionError as exc:
        lines = str(exc).split("\n")
    else:
        lines = []
        orjson.dumps(request(loaded, input={name: "x" for name, field in loaded.input.items() if field.type == "string"}))
    assert all(re.match(r"small\.yaml:[1-9]\d*: .", line) for line in lines)


REPORT = (ROOT / "workflows" / "report.yaml").read_text().replace("type: string, required: true", "type: string")
_YAML = st.lists(st.sampled_from([*"abc01:-{}[],&*!|>'\"%#?@\\ \n\t.~<=_x", "{{ ", " }}", "steps:", "\0", "é", "\ud800"])).map(
    "".join
)


@given(st.one_of(st.text(), _YAML))
@settings(max_examples=150, deadline=None)
def test_garbage_is_only_ever_refused(text: str) -> None:
    _loads_or_is_refused(text)


@given(st.integers(0, len(REPORT)), st.integers(0, 30), _YAML)
@settings(max_examples=100, deadline=None)
def test_a_damaged_definition_loads_or_is_refused(start: int, length: int, put_in: str) -> None:
    _loads_or_is_refused(REPORT[:start] + put_in + REPORT[start + length :])


_WORDS = st.text(max_size=5) | st.sampled_from(["{{ item }}", "{{ x", "writer", "{{ steps.a.output }}"])
_KEYS = st.text(max_size=5) | st.sampled_from(["id", "agent", "with"])
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


@given(definitions(), st.data())
@settings(max_examples=100, deadline=None)
def test_a_definition_with_a_value_replaced_loads_or_is_refused(definition: dict[str, Any], data: st.DataObject) -> None:
    target: Any = definition
    if data.draw(st.booleans()):
        target = data.draw(st.sampled_from(definition["steps"]))
    optional = (
        ["schedule", "budget", "output"] if target is definition else ["with", "pattern", "when", "for_each", "timeout_seconds"]
    )
    target[data.draw(st.sampled_from([*target, *optional]))] = data.draw(_JSON)
    _loads_or_is_refused(yaml.safe_dump(definition))
