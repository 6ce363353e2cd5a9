"""A debate: rounds of critics, judges in both orders, and a verdict that follows from what they said."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError
from shared.templates import paths, render
from shared.workflows.patterns import Completed, Expanded, Stage, expand
from shared.workflows.stages import Child

Say = Callable[[str, int], Any]
"""(side, round) → what its critic puts out."""
Score = Callable[[int, bool], Any]
"""(round, reversed) → what the judge puts out."""


def opened(step: str, values: dict[str, Any]) -> tuple[list[Child], str]:
    outcome = expand("debate", Stage(step, values))
    assert isinstance(outcome, Expanded)
    return outcome.children, outcome.join


def by_id(children: list[Child]) -> dict[str, Child]:
    return {child["id"]: child for child in children}


def argues(side: str, number: int) -> dict[str, Any]:
    return {"side": side, "round": number, "argument": f"{side} {number}", "points": [side], "score": 0.5, "tokens": 10}


def scores(*sheets: Mapping[str, float], tokens: int = 5, **more: Any) -> Score:
    """Both judges give the sheet of their round, and the last one from then on."""
    told = {"reasons": ["Because."], "dissent": "However.", "changes": ["Change it."], "tokens": tokens} | more
    return lambda number, reversed: {"scores": dict(sheets[min(number, len(sheets)) - 1]), **told}


class Play:
    """A debate played to its end, as the platform would: each step once, after those that it needs."""

    def __init__(self, values: dict[str, Any], *, say: Say = argues, score: Score, step: str = "d") -> None:
        self.inputs: dict[str, Any] = {}
        self.needs: dict[str, list[str]] = {}
        self.outputs: dict[str, Any] = {}
        stage = Stage(step, {"subject": "s", **values})
        while True:
            outcome = expand("debate", stage)
            if isinstance(outcome, Completed):
                self.verdict = outcome.output
                return
            *members, following = outcome.children
            for child in members:
                self._run(child, say, score)
            assert outcome.join == following["id"]
            self.needs[following["id"]] = following["needs"]
            spec = following["spec"]
            upstream = {need: self.outputs[need] for need in following["needs"]}
            stage = Stage(following["id"], render(spec["with"], {"item": spec["item"]}), spec["state"], upstream)

    def _run(self, child: Child, say: Say, score: Score) -> None:
        assert child["id"] not in self.inputs, "no turn is taken twice"
        looked_up = {"item": child["spec"]["item"], "steps": {need: {"output": self.outputs[need]} for need in child["needs"]}}
        given = render(child["spec"]["template"], looked_up)
        self.inputs[child["id"]], self.needs[child["id"]] = given, child["needs"]
        said = (
            say(given["side"], given["round"]) if child["agent"] == "critic" else score(given["round"], "reversed" in child["id"])
        )
        self.outputs[child["id"]] = said


# The steps


def test_a_round_is_a_critic_per_side_a_judge_for_each_order_and_its_outcome() -> None:
    children, join = opened("debate", {"subject": "s"})
    assert [(child["id"], child["agent"], child.get("on_failure")) for child in children] == [
        ("debate/r1-for", "critic", "continue"),
        ("debate/r1-against", "critic", "continue"),
        ("debate/r1/judge", "judge", "continue"),
        ("debate/r1/judge-reversed", "judge", "continue"),
        ("debate/r1/outcome", "pattern:debate", None),
    ]
    assert join == "debate/r1/outcome"
    assert not any(child["uses_input"] for child in children)
    steps = by_id(children)
    assert steps["debate/r1-for"]["needs"] == steps["debate/r1-against"]["needs"] == []
    assert set(steps["debate/r1/judge"]["needs"]) == {"debate/r1-for", "debate/r1-against"}


def test_a_critic_sees_the_subject_its_side_and_what_all_sides_said_in_the_round_before() -> None:
    play = Play(
        {"subject": {"text": "t"}, "rounds": 3},
        score=scores({"for": 0.1, "against": 0.9}, {"for": 0.5, "against": 0.5}, {"for": 0.9, "against": 0.1}),
    )
    assert play.inputs["d/r1-for"]["arguments"] == []
    given = play.inputs["d/r3-against"]
    assert (given["subject"], given["side"], given["round"]) == ({"text": "t"}, "against", 3)
    assert given["sides"] == [
        {"name": "for", "position": "The answer is yes."},
        {"name": "against", "position": "The answer is no."},
    ]
    assert given["arguments"] == [
        {"side": "for", "round": 2, "argument": argues("for", 2)},
        {"side": "against", "round": 2, "argument": argues("against", 2)},
    ]


def test_the_judges_see_all_rounds_with_the_sides_in_both_orders() -> None:
    play = Play({"sides": ["a", {"name": "b", "position": "B it is."}, "c"], "rubric": ["Wit."]}, score=scores({"a": 1}, {"b": 1}))
    first, second = play.inputs["d/r2/judge"], play.inputs["d/r2/judge-reversed"]
    assert [(one["round"], one["side"]) for one in first["arguments"]] == [(n, side) for n in (1, 2) for side in "abc"]
    assert [(one["round"], one["side"]) for one in second["arguments"]] == [(n, side) for n in (1, 2) for side in "cba"]
    assert first["sides"] == second["sides"][::-1]
    assert first["sides"][1] == {"name": "b", "position": "B it is."}
    assert first["rubric"] == second["rubric"] == ["Wit."]


def test_a_side_may_be_called_judge() -> None:
    assert Play({"sides": ["judge", "judge-reversed"], "rounds": 1}, score=scores({"judge": 1})).verdict["winner"] == "judge"


SIDES = st.lists(st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True).filter(lambda side: side != "tie"), min_size=2, max_size=8)


@given(
    subject=st.recursive(st.text() | st.integers() | st.just("{{ input.secret }}"), lambda inner: st.lists(inner)),
    rounds=st.integers(1, 10),
    sides=SIDES.filter(lambda sides: len(set(sides)) == len(sides)),
    data=st.data(),
)
def test_every_debate_is_ordered_and_bounded(subject: Any, rounds: int, sides: list[str], data: st.DataObject) -> None:
    share = st.floats(0, 1)
    critic = st.sampled_from([None, "lost"]) | st.sampled_from([None, *sides]).map(lambda to: {"argument": "a", "concedes_to": to})
    judge = st.none() | st.fixed_dictionaries({side: share for side in sides}).map(lambda sheet: {"scores": sheet})
    try:
        play = Play(
            {"subject": subject, "rounds": rounds, "sides": sides},
            say=lambda side, number: data.draw(critic),
            score=lambda number, reversed: data.draw(judge),
            step="debates/0",
        )
    except InputError as refused:
        assert "neither judge answered" in str(refused) or "fewer than two sides" in str(refused)  # noqa: PT017
        return
    verdict, ran = play.verdict, len(play.needs)
    assert 1 <= verdict["rounds"] <= rounds
    assert ran == verdict["rounds"] * (len(sides) + 3)
    earlier: set[str] = set()
    for id, needs in play.needs.items():
        assert set(needs) <= earlier
        assert id.startswith("debates/0/")
        earlier.add(id)
    assert all(given["subject"] == subject for given in play.inputs.values()), "what looks like a look-up stays text"
    assert verdict["winner"] in [*sides, "tie"]
    assert verdict["scores"].keys() == set(sides)
    assert all(0 <= score <= 1 for score in verdict["scores"].values())


def test_templates_look_up_only_what_a_step_needs() -> None:
    for child in opened("d", {"subject": "{{ input.secret }}", "question": "{{ steps.x.output }}"})[0]:
        found = list(paths([child["spec"].get("template"), child["spec"].get("with")]))
        assert {path[1] for path in found if path[0] == "steps"} <= set(child["needs"])
        assert {path[0] for path in found} <= {"steps", "item"}


# How it ends


def test_a_debate_ends_when_the_scores_stop_moving_in_both_orders() -> None:
    sheets = [{"for": 0.5, "against": 0.6}, {"for": 0.6, "against": 0.6}, {"for": 0.64, "against": 0.56}]
    verdict = Play({"rounds": 10}, score=scores(*sheets)).verdict
    assert (verdict["rounds"], verdict["ended_by"]) == (3, "settled")


def test_scores_that_move_by_as_much_as_the_limit_have_not_settled() -> None:
    verdict = Play(
        {"rounds": 3}, score=scores({"for": 0.5, "against": 0}, {"for": 0.55, "against": 0}, {"for": 0.6, "against": 0})
    ).verdict
    assert (verdict["rounds"], verdict["ended_by"]) == (3, "rounds")


def test_means_that_stand_still_while_both_orders_move_have_not_settled() -> None:
    def score(number: int, reversed: bool) -> Any:
        return {"scores": {"for": 0.5 + (0.1 if reversed else -0.1) * number, "against": 0.5}}

    assert Play({"rounds": 3}, score=score).verdict["ended_by"] == "rounds"


def test_the_first_round_cannot_have_settled() -> None:
    assert Play({"rounds": 1}, score=scores({"for": 0, "against": 0})).verdict["ended_by"] == "rounds"


def test_a_debate_ends_when_all_others_concede_to_one_side_which_has_won_whatever_the_scores() -> None:
    def say(side: str, number: int) -> Any:
        return argues(side, number) | {"concedes_to": "b" if number == 2 and side != "b" else None}

    moving = [{"a": 1.0, "b": 0.2, "c": 0.2}, {"a": 0.1, "b": 0.2, "c": 0.9}]
    verdict = Play({"sides": ["a", "b", "c"], "rounds": 9}, say=say, score=scores(*moving)).verdict
    assert (verdict["rounds"], verdict["ended_by"], verdict["winner"]) == (2, "agreement", "b")
    assert verdict["reasons"] == ["Every other side conceded to “b”.", "Because."]


@pytest.mark.parametrize(
    "conceded",
    [{"a": "b", "b": "a", "c": "b"}, {"a": "b"}, {"a": "b", "c": "a"}, {}],
    ids=["to each other", "not all", "not to the same", "nobody"],
)
def test_anything_less_is_no_agreement(conceded: dict[str, str]) -> None:
    def say(side: str, number: int) -> Any:
        return argues(side, number) | {"concedes_to": conceded.get(side)}

    verdict = Play({"sides": ["a", "b", "c"], "rounds": 1}, say=say, score=scores({"a": 1})).verdict
    assert (verdict["ended_by"], verdict["winner"]) == ("rounds", "a")


def test_a_silent_side_agrees_to_nothing() -> None:
    def say(side: str, number: int) -> Any:
        return None if side == "c" else argues(side, number) | {"concedes_to": "b" if side == "a" else None}

    assert Play({"sides": ["a", "b", "c"], "rounds": 1}, say=say, score=scores({"a": 1})).verdict["ended_by"] == "rounds"


@pytest.mark.parametrize(("max_tokens", "rounds"), [(1, 1), (59, 1), (60, 2), (89, 2), (90, 3)])
def test_no_round_begins_that_would_go_over_the_cap_on_tokens(max_tokens: int, rounds: int) -> None:
    moving = [{"for": 0.1 * number, "against": 0} for number in range(1, 10)]
    verdict = Play({"rounds": 9, "max_tokens": max_tokens}, score=scores(*moving)).verdict
    assert (verdict["rounds"], verdict["ended_by"], verdict["tokens"]) == (rounds, "tokens", 30 * rounds)


# The verdict


def sheets(given: dict[str, float] | None, turned: dict[str, float] | None) -> Score:
    def score(number: int, reversed: bool) -> Any:
        sheet, name = (turned, "reversed") if reversed else (given, "given")
        told = {"reasons": ["Both.", f"{name} reason"], "dissent": f"{name} dissent", "changes": [f"{name} change", "both"]}
        return None if sheet is None else {"scores": sheet, **told}

    return score


@pytest.mark.parametrize(
    ("given", "turned", "winner", "agrees"),
    [
        ({"for": 0.8, "against": 0.3}, {"for": 0.6, "against": 0.5}, "for", True),
        ({"for": 0.55, "against": 0.5}, {"for": 0.5, "against": 0.5}, "tie", True),
        ({"for": 0.6, "against": 0.5}, {"for": 0.5, "against": 0.6}, "tie", False),
        ({"for": 0.7, "against": 0.5}, {"for": 0.5, "against": 0.5}, "tie", False),
        ({"for": 0.9, "against": 0.2}, {"for": 0.4, "against": 0.5}, "for", False),
        ({"for": 0.71, "against": 0.5}, {"for": 0.5, "against": 0.5}, "for", False),
        ({"for": 0.8, "against": 0.3}, None, "for", None),
        (None, {"for": 0.4, "against": 0.42}, "tie", None),
    ],
)
def test_the_winner_is_who_wins_in_both_orders_or_clearly(
    given: dict[str, float] | None, turned: dict[str, float] | None, winner: str, agrees: bool | None
) -> None:
    verdict = Play({"rounds": 1}, score=sheets(given, turned)).verdict
    assert (verdict["winner"], verdict["disagreement"]["agrees"]) == (winner, agrees)
    orders = verdict["disagreement"]["orders"]
    assert [orders[name] and orders[name]["scores"] for name in ("given", "reversed")] == [given, turned]
    assert any("depended on the order of the sides" in reason for reason in verdict["reasons"]) == (agrees is False)


def test_what_the_judge_says_who_named_the_winner_comes_first_and_nothing_twice() -> None:
    verdict = Play({"rounds": 1}, score=sheets({"for": 0.4, "against": 0.5}, {"for": 0.9, "against": 0.2})).verdict
    assert verdict["winner"] == "for"
    assert verdict["reasons"] == [
        "The judge's outcome depended on the order of the sides: against as given, for reversed.",
        "Both.",
        "reversed reason",
        "given reason",
    ]
    assert verdict["changes"] == ["reversed change", "both", "given change"]
    assert verdict["dissent"] == "reversed dissent"


def test_the_transcript_holds_every_argument_with_the_score_of_its_round() -> None:
    verdict = Play({}, score=scores({"for": 0.2, "against": 0.6}, {"for": 0.8, "against": 0.4})).verdict
    assert verdict["scores"] == {"for": 0.8, "against": 0.4}
    assert [(one["round"], one["side"], one["argument"], one["score"]) for one in verdict["transcript"]] == [
        (1, "for", "for 1", 0.2),
        (1, "against", "against 1", 0.6),
        (2, "for", "for 2", 0.8),
        (2, "against", "against 2", 0.4),
    ]
    assert (verdict["transcript"][0]["points"], verdict["transcript"][0]["concedes_to"]) == (["for"], None)


# Who fails


def test_a_side_that_is_lost_in_a_round_is_silent_in_it_and_no_more() -> None:
    def say(side: str, number: int) -> Any:
        return None if (side, number) == ("for", 2) else argues(side, number)

    moving = [{"for": 0.9, "against": 0.1}, {"for": 0.7, "against": 0.3}, {"for": 0.8, "against": 0.2}]
    verdict = Play({"rounds": 3}, say=say, score=scores(*moving)).verdict
    assert (verdict["winner"], verdict["rounds"]) == ("for", 3)
    assert [(one["round"], one["side"]) for one in verdict["transcript"]] == [
        (1, "for"),
        (1, "against"),
        (2, "against"),
        (3, "for"),
        (3, "against"),
    ]


def test_a_side_without_a_score_has_none() -> None:
    verdict = Play({"sides": ["a", "b", "c"], "rounds": 1}, score=scores({"a": 0.4, "b": 7})).verdict
    assert verdict["scores"] == {"a": 0.4, "b": 1.0, "c": 0.0}


def test_a_debate_that_only_one_side_was_heard_in_is_none() -> None:
    with pytest.raises(InputError, match="fewer than two sides were heard in round 1"):
        Play({}, say=lambda side, number: argues(side, number) if side == "for" else None, score=scores({"for": 1}))


@pytest.mark.parametrize("answer", [None, {"winner": "for"}, {"scores": None}, "for"])
def test_a_round_that_neither_judge_scored_fails_the_debate(answer: Any) -> None:
    moving = scores({"for": 0.9, "against": 0.1})
    with pytest.raises(InputError, match="neither judge answered in round 2"):
        Play({}, score=lambda number, reversed: moving(number, reversed) if number == 1 else answer)


# Parameters


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
        ({"subject": "s", "rounds": "{{ input.rounds }}"}, "from 1 to 10"),
        ({"subject": "s", "max_tokens": 0}, "'max_tokens' of pattern debate must be a whole number from 1 on"),
        ({"subject": "s", "question": " "}, "'question' of pattern debate must be a text"),
        ({"subject": "s", "rubric": []}, "'rubric' of pattern debate must be a list of 1 to 20 criteria"),
        ({"subject": "s", "rubric": ["ok", 1]}, "a list of 1 to 20 criteria"),
        ({"subject": "s", "sides": "for"}, "'sides' of pattern debate must be a list"),
        ({"subject": "s", "sides": ["for"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "for"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", {"name": "for"}]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", 1]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "tie"]}, "(not tie)"),
        ({"subject": "s", "sides": ["for", {"name": "b", "positions": "x"}]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", {"name": "b", "position": 1}]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", {"position": "b"}]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "}} {{ input.secret"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "a\n"]}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["for", "a" * 41]}, "2 to 8 different names"),
        ({"subject": "s", "sides": list("abcdefghi")}, "2 to 8 different names"),
        ({"subject": "s", "sides": ["{{ input.secret }}", "b"]}, "2 to 8 different names"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        opened("d", values)
    assert reason in str(refused.value)


def test_all_wrong_parameters_are_named_on_one_line() -> None:
    with pytest.raises(InputError, match=r"'rounds' of .*; .*'sides' of .*; .* needs a value for 'subject'"):
        opened("d", {"rounds": 0, "sides": 1})


def test_null_parameters_take_their_defaults() -> None:
    nothing: dict[str, None] = dict.fromkeys(("rounds", "sides", "question", "rubric", "max_tokens"))
    assert opened("d", {"subject": "s", **nothing}) == opened("d", {"subject": "s"})
