from datetime import UTC, datetime
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.messages import (
    TYPE_OF,
    TYPES,
    Budget,
    Payload,
    SpawnedStep,
    StepCompleted,
    StepDeferred,
    StepDispatched,
    StepFailed,
    Usage,
    WorkflowCancelled,
    WorkflowFinished,
    WorkflowRequested,
)

WORKFLOW = "wf_01JGXV3Z8KQ4N5T6R7S8W9X0YZ"
STEP: dict[str, Any] = {"workflow": WORKFLOW, "step": "draft", "attempt": 1}
ERROR = {"type": "ModelUnavailable", "message": "no answer"}
COUNTS = st.integers(0, 10**12)
USAGES = st.builds(Usage, model_calls=st.integers(0, 10**6), input_tokens=COUNTS, output_tokens=COUNTS, cost_microdollars=COUNTS)


def test_every_message_has_one_type_and_every_type_one_message() -> None:
    assert {TYPES[name] for name in TYPES} == set(TYPE_OF)
    assert all(TYPES[name] is model for model, name in TYPE_OF.items())


@pytest.mark.parametrize("name", TYPES)
def test_a_type_is_named_after_its_message(name: str) -> None:
    prefix, subject, event, version = name.split(".")
    assert (prefix, version) == ("agentteam", "v1")
    assert TYPES[name].__name__ == f"{subject.title()}{event.title()}"
    assert f"`{name}`" in (TYPES[name].__doc__ or "")


@pytest.mark.parametrize("model", TYPES.values())
def test_a_message_refuses_fields_that_it_does_not_know(model: type[Payload]) -> None:
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"wrokflow": WORKFLOW})
    assert ("extra_forbidden", ("wrokflow",)) in {(mistake["type"], mistake["loc"]) for mistake in caught.value.errors()}


def test_a_message_cannot_be_changed() -> None:
    message = StepCompleted(**STEP)
    with pytest.raises(ValidationError):
        setattr(message, "attempt", 2)  # noqa: B010 - mypy knows, too


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("workflow", "wf_01JGXV3Z8KQ4N5T6R7S8W9X0Y"),
        ("workflow", "wf_01jgxv3z8kq4n5t6r7s8w9x0yz"),
        ("workflow", f"{WORKFLOW}\n"),
        ("step", ""),
        ("step", "/draft"),
        ("step", "draft/"),
        ("step", "draft\n"),
        ("step", "a//b"),
        ("step", "a.b"),
        ("step", "a" * 201),
        ("attempt", 0),
        ("attempt", 2**31),
        ("attempt", "9" * 30),
        ("attempt", 1.5),
        ("usage", {"input_tokens": -1}),
        ("usage", {"output_tokens": 2**63}),
        ("usage", {"model_calls": 2**31}),
        ("spawn", [{"id": "a/b", "agent": "writer"}]),
        ("spawn", [{"id": "a", "agent": "Writer"}]),
        ("spawn", [{"id": "a", "agent": "writer", "on_failure": "ignore"}]),
    ],
)
def test_a_completed_step_with_a_wrong_field_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        StepCompleted.model_validate({**STEP, field: value})


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_retry_delay_that_a_database_cannot_add_to_a_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValidationError):
        StepFailed.model_validate({**STEP, "error": ERROR, "retry_after_seconds": seconds})
    with pytest.raises(ValidationError):
        SpawnedStep(id="a", agent="writer", timeout_seconds=seconds)


@pytest.mark.parametrize("model", [StepDispatched, StepDeferred])
def test_a_moment_without_a_time_zone_is_refused(model: type[Payload]) -> None:
    field = "deadline" if model is StepDispatched else "not_before"
    fields = {**STEP, "agent": "writer"} if model is StepDispatched else STEP
    model.model_validate({**fields, field: "2026-01-01T00:00:00Z"})
    with pytest.raises(ValidationError):
        model.model_validate({**fields, field: "2026-01-01T00:00:00"})


def test_what_may_be_left_out_has_a_default() -> None:
    assert WorkflowRequested(workflow="report") == WorkflowRequested(workflow="report", input={}, budget=Budget(), priority=0)
    assert WorkflowCancelled(workflow=WORKFLOW).reason == ""
    assert WorkflowFinished(workflow=WORKFLOW, name="report", status="SUCCESS").error is None
    assert StepDeferred(**STEP, not_before=datetime(2026, 1, 1, tzinfo=UTC)).usage == Usage()


@given(USAGES, USAGES)
def test_usages_add_up_field_by_field(one: Usage, other: Usage) -> None:
    total = one + other
    assert all(getattr(total, name) == getattr(one, name) + getattr(other, name) for name in Usage.model_fields)
    assert total.tokens == one.tokens + other.tokens
    assert one + Usage() == one


def test_a_workflow_ends_in_one_of_three_ways() -> None:
    assert set(get_args(WorkflowFinished.model_fields["status"].annotation)) == {"SUCCESS", "FAILED", "CANCELLED"}
