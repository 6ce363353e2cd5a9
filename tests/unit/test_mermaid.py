"""Workflows as Mermaid flowcharts: what they show, and that nothing in a definition or a run can break one."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime.spec import load_functions
from shared.workflows import load_definitions
from shared.workflows.mermaid import of_definition, of_run
from tests.support.live import definition

ROOT = Path(__file__).parents[2]
DEFINITIONS = load_definitions(ROOT / "workflows", agents=[name for name, spec in load_functions().items() if spec.is_agent])

LABEL = r'"(?:[^"#<>`&;|\\\n]|#\d+;|<br/>)*"'
FORMS = (rf"\[{LABEL}\]", rf"\[\[{LABEL}\]\]", rf"\{{{LABEL}\}}", rf"\{{\{{{LABEL}\}}\}}", rf"\(\[{LABEL}\]\)", rf"\[/{LABEL}/\]")
NODE = re.compile(rf"    (s\d+)(?:{'|'.join(FORMS)}):::([A-Za-z]+)")
EDGE = re.compile(r"    (s\d+) (?:-->|-\.->) (s\d+)")
STYLE = re.compile(r"    classDef ([A-Za-z]+) [a-z-]+:[#a-z0-9-]+(?:,[a-z-]+:[#a-z0-9-]+)*")


def check(chart: str) -> dict[str, int]:
    """Hold a chart to the part of the grammar that is used here; how many lines there are of each kind."""
    head, *lines = chart.splitlines()
    assert head == "flowchart TD"
    nodes = [match for line in lines if (match := NODE.fullmatch(line))]
    edges = [match for line in lines if (match := EDGE.fullmatch(line))]
    styles = [match for line in lines if (match := STYLE.fullmatch(line))]
    unknown = [line for line in lines if not any(kind.fullmatch(line) for kind in (NODE, EDGE, STYLE))]
    assert unknown == []
    names = {node[1] for node in nodes}
    assert len(names) == len(nodes)
    assert {end for edge in edges for end in (edge[1], edge[2])} <= names
    assert {node[2] for node in nodes} == {style[1] for style in styles}
    return {"nodes": len(nodes), "edges": len(edges)}


@pytest.mark.parametrize("name", sorted(DEFINITIONS))
def test_every_workflow_is_a_sound_chart_with_all_its_steps_and_needs(name: str) -> None:
    one = DEFINITIONS[name]
    assert check(of_definition(one)) == {"nodes": len(one.steps), "edges": sum(len(step.needs) for step in one.steps)}


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "workflows").glob("*.md")), ids=lambda page: page.stem)
def test_the_chart_on_a_workflows_page_is_up_to_date(page: Path) -> None:
    charts = re.findall(r"```mermaid\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert charts in ([], [of_definition(DEFINITIONS[page.stem])]), f"say ./agent-team workflows show {page.stem} --mermaid"


def test_every_kind_of_step_has_a_form_of_its_own() -> None:
    chart = of_definition(
        definition(
            """
            - {id: one, agent: writer, on_failure: continue}
            - {id: many, agent: writer, needs: [one], for_each: "{{ input.list }}", input: {x: "{{ item }}"}}
            - {id: talk, pattern: debate, needs: [one], when: "{{ steps.one.output }}", with: {subject: x}}
            - {id: ask, needs: [one], approval: {prompt: "Send \\"it\\"?"}}
            - {id: night, needs: [ask], wait: {seconds: 60}}
            - {id: paid, needs: [ask], wait: {signal: payment}}
            """,
            input="{list: {type: array, default: [1]}}",
        )
    )
    assert check(chart) == {"nodes": 6, "edges": 5}
    for line in (
        's0["one<br/>agent writer<br/>goes on if it fails"]:::work',
        's1[["many<br/>agent writer<br/>for each of input.list"]]:::many',
        's2{{"talk<br/>pattern debate<br/>when steps.one.output"}}:::pattern',
        's3{"ask<br/>waits for an approval"}:::person',
        's4(["night<br/>waits for 60 s"]):::pause',
        's5(["paid<br/>waits for signal payment"]):::pause',
        "s0 --> s1",
        "s0 -.-> s2",
    ):
        assert f"    {line}\n" in chart


def step(id: str, status: str = "SUCCESS", **fields: Any) -> dict[str, Any]:
    return {"id": id, "parent": None, "agent": "writer", "status": status, "needs": [], **fields}


def test_a_run_shows_where_each_step_stands_and_counts_what_a_step_became() -> None:
    inside = [step(f"many/{number}", status, parent="many") for number, status in enumerate(("SUCCESS", "RUNNING", "PENDING"))]
    waiting = step("ask", "WAITING", agent="wait:approval", needs=["many"])
    chart = of_run({"steps": [step("many", "WAITING"), waiting, step("talk", "FAILED", agent="pattern:debate"), *inside]})
    assert check(chart) == {"nodes": 3, "edges": 1}
    assert 's0[["many<br/>writer<br/>WAITING<br/>1 of 3 steps done"]]:::WAITING' in chart
    assert 's1{"ask<br/>wait:approval<br/>WAITING"}:::WAITING' in chart
    assert 's2{{"talk<br/>pattern:debate<br/>FAILED"}}:::FAILED' in chart


def test_a_run_shows_a_nested_workflow_and_a_pause_as_what_they_are() -> None:
    chart = of_run({"steps": [step("sub", agent="workflow:report"), step("night", "SKIPPED", agent="wait:time")]})
    assert check(chart) == {"nodes": 2, "edges": 0}
    assert 's0[/"sub<br/>workflow:report<br/>SUCCESS"/]:::SUCCESS' in chart
    assert 's1(["night<br/>wait:time<br/>SKIPPED"]):::SKIPPED' in chart


@given(st.lists(st.text(min_size=1) | st.text('"#;<>`&|{}[]()-\\\n\r\0 end%', min_size=1), min_size=1, max_size=4, unique=True))
def test_no_text_can_break_out_of_a_label(texts: list[str]) -> None:
    assert check(of_run({"steps": [step(text, agent=text) for text in texts]}))["nodes"] == len(texts)
