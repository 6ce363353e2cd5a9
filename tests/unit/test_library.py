"""What every workflow that comes with the platform has: an example, a page, a line in the README."""

import re

import pytest

from tests.support.library import ROOT, WORKFLOWS, definitions, differences, documented_output, example, page


def test_every_workflow_is_told_of_in_the_readme_with_a_command_that_runs_it() -> None:
    told = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[([a-z-]+)\]\(docs/workflows/\1\.md\) \|.*`\./agent-team run \1 [^`]+` \|$", told, re.MULTILINE)
    assert sorted(listed) == WORKFLOWS == sorted(definitions())
    assert all((ROOT / file).exists() for file in re.findall(r"--input (examples/[\w./-]+)", told))


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_every_workflow_has_an_example_and_a_page_that_tells_of_its_input_and_steps(workflow: str) -> None:
    definition = definitions()[workflow]
    assert set(example(workflow)) <= set(definition.input)
    told = page(workflow)
    assert [name for name in definition.input if f"`{name}`" not in told] == []
    assert [step.id for step in definition.steps if f"`{step.id}`" not in told] == []


def test_another_shape_than_the_page_shows_is_found() -> None:
    shown = {"title": "T", "findings": [{"line": 1}], "files": []}
    assert differences({"title": "U", "findings": [{"line": 2}, {"line": 3}], "files": [{}]}, shown) == []
    assert differences({"title": "U", "findings": []}, shown) == ["output.files is only in one of them"]
    assert differences({"title": None, "findings": [{"line": 1}, {"lines": "2"}], "files": []}, shown) == [
        "output.findings[1].line is only in one of them",
        "output.findings[1].lines is only in one of them",
        "output.title is NoneType, not str",
    ]


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_the_output_that_a_page_shows_is_json(workflow: str) -> None:
    assert documented_output(workflow)
