"""What steps that wait wait for, and what comes of it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.messages import WorkflowSignalled
from shared.workflows import decide, signal_event
from shared.workflows.waiting import seconds_objection, until_objection

WORKFLOW = "wf_01ARZ3NDEKTSV4RRFFQ69G5FAV"
AT = "2026-01-31T12:00:00+00:00"
APPROVAL = {"approval": {"prompt": "Send {{ steps.draft.output }}?"}}
SIGNAL = {"wait": {"signal": "paid", "timeout_seconds": 60.0}}


def command(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    about = {"type": "dispatch", "workflow": WORKFLOW, "step": "draft", "attempt": 2, "spec": spec, "upstream": {}, "woken": None}
    return about | changes


def event(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    decided = decide(command(spec, **changes))
    assert isinstance(decided, dict)
    return decided


def failure(spec: dict[str, Any], **changes: Any) -> str:
    failed = event(spec, **changes)
    assert (failed["type"], failed["permanent"], failed["error"]["type"]) == ("step.failed", True, "InputError")
    return str(failed["error"]["message"])


def waits(spec: dict[str, Any], **changes: Any) -> dict[str, Any]:
    decided = event(spec, **changes)
    assert (decided.pop("type"), decided.pop("workflow"), decided.pop("step")) == ("step.waiting", WORKFLOW, "draft")
    assert decided.pop("attempt") == 2
    return decided


def comes_to(spec: dict[str, Any], **woken: Any) -> Any:
    """The output, or the error's type."""
    decided = event(spec, woken={"at": AT, **woken})
    if decided["type"] == "step.failed":
        assert decided["permanent"] is True
        return decided["error"]["type"]
    return decided["output"]


def test_an_approval_asks_with_what_was_looked_up() -> None:
    upstream = {"draft": "{{ input.secret }}"}
    assert waits(APPROVAL, upstream=upstream) == {
        "wait": {"for": "approval", "name": "draft", "prompt": "Send {{ input.secret }}?"}
    }  # fmt: skip
    only = {"approval": {"prompt": "{{ steps.draft.output }}", "timeout_seconds": 9.0}}
    assert waits(only, upstream={"draft": {"a": 1}})["wait"]["prompt"] == '{\n  "a": 1\n}'
    assert waits(only, upstream={"draft": "x" * 5000})["wait"]["prompt"] == "x" * 4000 + "…"
    assert waits(only, upstream={"draft": ""})["seconds"] == 9.0


def test_a_wait_says_how_long() -> None:
    assert waits(SIGNAL) == {"wait": {"for": "signal", "name": "paid"}, "seconds": 60.0}
    assert waits({"wait": {"seconds": "{{ input.n }}"}}, input={"n": 5}) == {"wait": {"for": "time", "name": "draft"}, "seconds": 5}
    until = {"wait": {"until": "{{ input.day }}T09:00:00+01:00"}}
    assert waits(until, input={"day": "2026-01-31"})["until"] == "2026-01-31T08:00:00+00:00"


def test_what_cannot_be_waited_for_fails_the_step() -> None:
    assert "wait.seconds of step draft should be a number" in failure({"wait": {"seconds": "{{ input.n }}"}}, input={"n": "5"})
    assert "wait.until of step draft should be a moment" in failure({"wait": {"until": "{{ input.n }}"}}, input={"n": "soon"})
    assert "has no value" in failure(APPROVAL)


def test_a_condition_that_does_not_hold_skips_the_wait_and_is_not_asked_again_once_it_is_over() -> None:
    spec = {**APPROVAL, "when": "{{ input.ask }}"}
    assert event(spec, input={"ask": False})["type"] == "step.skipped"
    assert event(spec, woken={"woken_by": "signal", "decision": "approve", "at": AT})["type"] == "step.completed"


def test_a_decision_becomes_the_output_with_who_and_when() -> None:
    approved = comes_to(APPROVAL, woken_by="signal", decision="approve", by="ann")
    assert approved == {"decision": "approve", "by": "ann", "at": AT}
    amended = comes_to(APPROVAL, woken_by="signal", decision="amend", by="ann", comment="shorter", data={"text": "No."})
    assert amended == {"decision": "amend", "by": "ann", "at": AT, "comment": "shorter", "value": {"text": "No."}}
    assert comes_to(APPROVAL, woken_by="signal", decision="approve")["by"] is None


def test_a_rejection_fails_the_step() -> None:
    assert comes_to(APPROVAL, woken_by="signal", decision="reject", by="ann") == "Rejected"
    told = event(APPROVAL, woken={"woken_by": "signal", "decision": "reject", "at": AT, "by": "ann", "comment": "private"})
    assert told["error"]["message"] == "rejected by ann"


def test_an_approval_that_nobody_gives_in_time_comes_to_its_default() -> None:
    def by_default(**default: str) -> Any:
        return comes_to({"approval": {"prompt": "?", "timeout_seconds": 1.0, **default}}, woken_by="time")

    assert by_default() == "TimedOut"
    assert by_default(default="approve") == {"decision": "approve", "by": "timeout", "at": AT}
    assert by_default(default="reject") == "Rejected"


def test_a_wait_tells_what_woke_it() -> None:
    assert comes_to(SIGNAL, woken_by="signal", data=[1]) == {"woken_by": "signal", "data": [1]}
    assert comes_to(SIGNAL, woken_by="time") == {"woken_by": "timeout"}
    assert comes_to({"wait": {"seconds": 1}}, woken_by="time") == {"woken_by": "time"}
    assert comes_to({"wait": {"seconds": 1}}, woken_by="signal") == {"woken_by": "signal"}


@given(st.sampled_from([APPROVAL, SIGNAL]), st.sampled_from(["approve", "reject", "amend"]))
def test_deciding_again_decides_the_same(spec: dict[str, Any], decision: str) -> None:
    again = command(spec, upstream={"draft": 1}, woken={"woken_by": "signal", "decision": decision, "data": 1, "at": AT})
    assert decide(again) == decide(again)


@pytest.mark.parametrize("moment", ["2026-01-31", "2026-01-31T12:00:00", "0001-01-01T00:00:00+23:59", "soon", 5, None, ["a"]])
def test_a_moment_has_its_offset(moment: Any) -> None:
    assert until_objection(moment) is not None
    assert until_objection("2026-01-31t12:00:00z") is None


@pytest.mark.parametrize("seconds", [True, -1, float("nan"), float("inf"), "5", None, 366 * 86_400 + 1])
def test_seconds_are_a_number_up_to_a_year(seconds: Any) -> None:
    assert seconds_objection(seconds) is not None
    assert seconds_objection(0) is seconds_objection(366 * 86_400) is None


def test_a_signal_holds_only_what_was_given_and_can_be_stored() -> None:
    payload = WorkflowSignalled(workflow=WORKFLOW, name="ask", decision="amend", data={"a": None}, by="ann")
    assert signal_event(payload, signal="s") == {
        "type": "step.signalled", "signal": "s", "workflow": WORKFLOW, "name": "ask", "decision": "amend", "data": {"a": None},
        "by": "ann",
    }  # fmt: skip
    with pytest.raises(InputError, match="the signal paid holds a NUL character"):
        signal_event(WorkflowSignalled(workflow=WORKFLOW, name="paid", data="\0"), signal="s")
    with pytest.raises(ValueError, match="amend needs the value"):
        WorkflowSignalled(workflow=WORKFLOW, name="ask", decision="amend")
