"""Which steps a fork may reuse, told from what the state knows of the original."""

from collections.abc import Mapping
from typing import Any

import pytest

from shared.errors import InputError
from shared.workflows import changed_input, reusable
from tests.support.live import definition


def step(id: str, *needs: str, last: str | None = "step.completed", **more: Any) -> dict[str, Any]:
    """A step of a plan; `parent` is told by its id."""
    parent = id.rpartition("/")[0]
    common: dict[str, Any] = {"parent": parent or None, "needs": list(needs), "spec": {}, "on_failure": "fail", "last": last}
    return {"id": id, **common, **more}


PLAN = [
    step("plan", spec={"template": {"brief": "{{ input.brief }}"}}),
    step("tone", spec={"template": {"tone": "{{ input.tone }}"}}),
    step("research", "plan", spec={"for_each": "{{ steps.plan.output.questions }}"}),
    step("research/0", spec={"input": "{{ input.tone }} is data here"}),
    step("research/1"),
    step("write", "research", "tone", spec={"template": "{{ steps.research.output }}"}),
    step("check", "write", spec={"when": "{{ input.check }}"}, last="step.skipped"),
    step("debate", "plan", spec={"pattern": "debate", "with": {"subject": "{{ input.subject }}"}}),
    step("debate/r1-for"),
    step("debate/verdict", "debate/r1-for"),
    step("alone", spec={"template": "text"}),
]


def rerun(*changed: str) -> set[str]:
    """The steps of PLAN that are not reused when these fields change."""
    reuse = reusable(PLAN, changed)
    return {one["id"] for one in PLAN} - {*reuse.finished, *reuse.expanded}


def test_without_changes_everything_that_ended_is_reused() -> None:
    assert rerun() == set()


@pytest.mark.parametrize(
    ("field", "again"),
    [
        ("check", {"check"}),
        ("tone", {"tone", "write", "check"}),
        ("subject", {"debate", "debate/r1-for", "debate/verdict"}),
        ("unused", set()),
        ("brief", {one["id"] for one in PLAN} - {"tone", "alone"}),
    ],
)
def test_a_changed_field_runs_exactly_what_it_had_a_part_in(field: str, again: set[str]) -> None:
    assert rerun(field) == again


def test_several_changed_fields_run_what_any_of_them_had_a_part_in() -> None:
    assert rerun("check", "subject") == rerun("check") | rerun("subject")


def test_a_template_that_takes_the_whole_input_depends_on_every_field() -> None:
    assert reusable([step("a", spec={"template": "{{ input }}"})], ["brief"]).finished == []


@pytest.mark.parametrize(
    ("last", "on_failure", "reused"),
    [
        ("step.completed", "fail", True),
        ("step.skipped", "fail", True),
        ("step.failed", "continue", True),
        ("step.failed", "fail", False),
        ("step.dispatched", "continue", False),
        ("step.retried", "fail", False),
        ("step.redriven", "fail", False),
        (None, "fail", False),
    ],
)
def test_a_step_is_reused_if_it_had_ended_and_the_workflow_went_on(last: str | None, on_failure: str, reused: bool) -> None:
    assert reusable([step("a", last=last, on_failure=on_failure)], ()).finished == (["a"] if reused else [])


def test_a_step_that_had_become_many_keeps_those_of_them_that_had_ended() -> None:
    family = [step("a", last="step.expanded"), step("a/0"), step("a/1", last="step.dispatched")]
    reuse = reusable(family, ())
    assert (reuse.finished, reuse.expanded) == (["a/0"], ["a"])


# Input

SMALL = definition(
    "- {id: a, agent: writer, input: {}}",
    input="{brief: {type: string, required: true}, count: {type: integer}, deep: {type: boolean, default: false}}",
)
KNOWN: Mapping[str, Any] = {"workflow": "small", "input": {"brief": "old", "count": None, "deep": False}}


def test_what_is_given_replaces_the_original_s_and_only_what_differs_is_changed() -> None:
    complete, changed = changed_input(KNOWN, {"brief": "old", "count": 1}, SMALL)
    assert complete == {"brief": "old", "count": 1, "deep": False}
    assert changed == ["count"]


def test_numbers_and_truths_that_python_takes_for_the_same_differ() -> None:
    plan = {**KNOWN, "input": {"brief": 1}}
    assert changed_input(plan, {"brief": True}, None) == ({"brief": True}, ["brief"])
    assert changed_input(plan, {"brief": 1.0}, None) == ({"brief": 1.0}, ["brief"])


def test_without_params_the_input_stays_as_it_is_even_if_the_definition_would_not_take_it_today() -> None:
    plan = {**KNOWN, "input": {"other": 1}}
    assert changed_input(plan, {}, SMALL) == ({"other": 1}, [])


@pytest.mark.parametrize(
    ("params", "complaint"), [({"bref": "new"}, "did you mean 'brief'"), ({"count": "many"}, "'count' must be of type integer")]
)
def test_a_field_that_the_definition_does_not_take_is_refused(params: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        changed_input(KNOWN, params, SMALL)


def test_without_the_definition_only_fields_of_the_original_can_change() -> None:
    assert changed_input(KNOWN, {"brief": "new"}, None)[1] == ["brief"]
    with pytest.raises(InputError, match="'bref' is unknown, did you mean 'brief'"):
        changed_input(KNOWN, {"bref": "new"}, None)
