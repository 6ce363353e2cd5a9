import re
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shared.ids import dispatch_id, reply_id, workflow_id, workflow_id_for

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
WORKFLOW = re.compile(r"wf_[0-9A-HJKMNP-TV-Z]{26}")
# The form that the messages allow for a step's name.
steps = st.from_regex(r"[A-Za-z0-9_-]{1,8}(/[A-Za-z0-9_-]{1,8}){0,3}", fullmatch=True)
dispatches = st.tuples(st.sampled_from(["wf_1", "wf_2"]), steps, st.integers(1, 20), st.integers(0, 20))


def test_a_workflow_id_is_wf_and_a_ulid() -> None:
    assert WORKFLOW.fullmatch(workflow_id(NOON))
    assert WORKFLOW.fullmatch(workflow_id_for("key", NOON))


def test_two_workflows_of_one_moment_have_two_ids() -> None:
    assert len({workflow_id(NOON) for _ in range(100)}) == 100


@given(st.timedeltas(timedelta(milliseconds=1), timedelta(days=3650)))
def test_workflow_ids_sort_by_the_time_of_the_request(later: timedelta) -> None:
    assert workflow_id(NOON) < workflow_id(NOON + later)
    assert workflow_id_for("z", NOON) < workflow_id_for("a", NOON + later)


@given(st.text(), st.text())
def test_the_same_key_and_time_give_the_same_id_and_another_key_another(key: str, other: str) -> None:
    assert (workflow_id_for(key, NOON) == workflow_id_for(other, NOON)) == (key == other)


def test_the_id_of_a_key_is_the_same_in_every_version() -> None:
    assert workflow_id_for("key", NOON) == "wf_01KDWPVNG05HRE2AVT0S3FJ8KS"


def test_a_dispatch_names_workflow_step_and_attempt() -> None:
    assert dispatch_id("wf_1", "research/0", 2) == "wf_1/research/0/2"
    assert dispatch_id("wf_1", "plan", 1, 3) == "wf_1/plan/1.3"


@given(dispatches, dispatches)
def test_two_dispatches_share_an_id_only_if_they_are_the_same(
    one: tuple[str, str, int, int], other: tuple[str, str, int, int]
) -> None:
    assert (dispatch_id(*one) == dispatch_id(*other)) == (one == other)


@given(dispatches, dispatches, st.sampled_from(["completed", "failed", "deferred"]))
def test_a_reply_is_never_taken_for_a_dispatch(
    one: tuple[str, str, int, int], other: tuple[str, str, int, int], outcome: str
) -> None:
    assert reply_id(dispatch_id(*one), outcome) != dispatch_id(*other)


def test_replies_to_one_dispatch_differ_by_outcome() -> None:
    assert reply_id("wf_1/plan/1", "completed") == "wf_1/plan/1/completed"
    assert reply_id("wf_1/plan/1", "failed") != reply_id("wf_1/plan/1", "completed")
