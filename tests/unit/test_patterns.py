"""A pattern turns parameters into steps, and data never into templates."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.templates import paths, render
from shared.workflows import PATTERNS
from shared.workflows.patterns import Expanded, Stage, expand


def debate(step: str, values: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    outcome = expand("debate", Stage(step, values))
    assert isinstance(outcome, Expanded)
    return outcome.children, outcome.join


def by_id(children: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {child["id"]: child for child in children}


def test_a_debate_is_two_rounds_of_two_sides_and_a_verdict() -> None:
    children, join = debate("debate", {"subject": "s"})
    assert [(child["id"], child["agent"]) for child in children] == [
        ("debate/r1-for", "critic"),
        ("debate/r1-against", "critic"),
        ("debate/r2-for", "critic"),
        ("debate/r2-against", "critic"),
        ("debate/verdict", "judge"),
    ]
    assert join == "debate/verdict"
    assert not any(child["uses_input"] for child in children)


def test_the_sides_of_a_round_argue_in_parallel_after_the_round_before() -> None:
    steps = by_id(debate("d", {"subject": "s"})[0])
    assert steps["d/r1-for"]["needs"] == []
    assert steps["d/r2-for"]["needs"] == steps["d/r2-against"]["needs"] == ["d/r1-for", "d/r1-against"]
    assert steps["d/verdict"]["needs"] == ["d/r1-for", "d/r1-against", "d/r2-for", "d/r2-against"]


def test_a_critic_sees_the_subject_its_side_and_the_arguments_of_the_round_before() -> None:
    spec = by_id(debate("d", {"subject": {"text": "t"}, "rounds": 3})[0])["d/r3-against"]["spec"]
    steps = {f"d/r{number}-{side}": {"output": f"{side} {number}"} for number in (1, 2) for side in ("for", "against")}
    assert render(spec["template"], {"item": spec["item"], "steps": steps}) == {
        "subject": {"text": "t"},
        "side": "against",
        "round": 3,
        "arguments": [{"side": "for", "round": 2, "argument": "for 2"}, {"side": "against", "round": 2, "argument": "against 2"}],
    }


def test_the_judge_sees_the_subject_and_all_arguments() -> None:
    spec = by_id(debate("d", {"subject": "s", "sides": ["a", "b", "c"]})[0])["d/verdict"]["spec"]
    steps = {f"d/r{number}-{side}": {"output": side * number} for number in (1, 2) for side in "abc"}
    rendered = render(spec["template"], {"item": spec["item"], "steps": steps})
    assert rendered["subject"] == "s"
    assert [argument["argument"] for argument in rendered["arguments"]] == ["a", "b", "c", "aa", "bb", "cc"]


def test_a_debate_within_a_map_keeps_its_own_names() -> None:
    children, join = debate("debates/3", {"subject": "s", "rounds": 1})
    assert [child["id"] for child in children] == ["debates/3/r1-for", "debates/3/r1-against", "debates/3/verdict"]
    assert join == "debates/3/verdict"


def test_null_parameters_take_their_defaults() -> None:
    assert len(debate("d", {"subject": "s", "rounds": None, "sides": None})[0]) == 5


@given(
    subject=st.recursive(st.text() | st.integers() | st.just("{{ input.secret }}"), lambda inner: st.lists(inner)),
    rounds=st.integers(1, 10),
    sides=st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True), min_size=2, max_size=8, unique=True),
)
def test_every_debate_is_ordered_and_looks_up_only_what_it_needs(subject: Any, rounds: int, sides: list[str]) -> None:
    parent = "debate/0"
    children, join = debate(parent, {"subject": subject, "rounds": rounds, "sides": sides})
    assert len(children) == rounds * len(sides) + 1 == len(by_id(children))
    assert children[-1]["id"] == join
    earlier: set[str] = set()
    for child in children:
        assert set(child["needs"]) <= earlier
        assert child["spec"]["item"]["subject"] == subject
        found = list(paths(child["spec"]["template"]))
        assert {path[1] for path in found if path[0] == "steps"} == set(child["needs"])
        assert {path[0] for path in found} <= {"steps", "item"}
        earlier.add(child["id"])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "needs a value for 'subject'"),
        ({"subject": None}, "needs a value for 'subject'"),
        ({"subject": "s", "round": 1}, "has no 'round', did you mean 'rounds'?"),
        ({"subject": "s", "rounds": 0}, "'rounds' of pattern debate must be a whole number from 1 to 10"),
        ({"subject": "s", "rounds": 11}, "from 1 to 10"),
        ({"subject": "s", "rounds": True}, "from 1 to 10"),
        ({"subject": "s", "rounds": "2"}, "from 1 to 10"),
        ({"subject": "s", "sides": "for"}, "'sides' of pattern debate must be a list"),
        ({"subject": "s", "sides": ["for"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "for"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", 1]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "}} {{ input.secret"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "a\n"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "a" * 41]}, "2 to 8 different names"),
        ({"subject": "s", "sides": list("abcdefghi")}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["{{ input.secret }}", "b"]}, "2 to 8 different names"),
        ({"subject": "s", "rounds": "{{ input.rounds }}"}, "from 1 to 10"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        debate("d", values)
    assert reason in str(refused.value)


def test_all_wrong_parameters_are_named_on_one_line() -> None:
    with pytest.raises(InputError, match=r"'rounds' of .*; .*'sides' of .*; .* needs a value for 'subject'"):
        debate("d", {"rounds": 0, "sides": 1})


def test_before_rendering_look_ups_are_taken_on_trust_and_literals_are_not() -> None:
    values = {"subject": "{{ steps.a.output }}", "rounds": "{{ input.n }}", "sides": ["{{ no look-up"]}
    assert list(PATTERNS["debate"].problems(values, rendered=False)) == []
    assert [key for key, _ in PATTERNS["debate"].problems(values | {"rounds": "two"}, rendered=False)] == ["rounds"]


def test_an_unknown_pattern_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is no pattern 'debat', did you mean 'debate'\?"):
        expand("debat", Stage("d", {}))


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=str)
def test_a_pattern_is_registered_under_its_name(pattern: Any) -> None:
    assert PATTERNS[pattern.name] is pattern
