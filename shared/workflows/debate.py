"""The debate: sides argue in rounds, a judge scores every round twice, and the scores decide.

Round k is one critic per side, in parallel, which sees what all sides said in the round before; then the judge twice, with the
sides in order and reversed, because models favour what comes first (or last); then a stage of this pattern, which ends the debate
or begins the next round. The stage is a pure function of what critics and judges said: nobody is asked again to merge it.

A critic that fails only leaves its side silent in that round. The debate itself fails when neither judge answers in a round, or
when fewer than two sides were heard in the first: what nobody answered or judged is no verdict.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shared.workflows.stages import Child, Completed, Expanded, Parameter, Pattern, Stage
from shared.workflows.verdict import RESERVED, Order, Round, merged

QUESTION = "Should this text stand as it is?"
RUBRIC = (
    "A point counts that names its place in the text and can be checked there; one that misquotes the text, or would fit any text, "
    "counts for nothing.",
    "A point weighs what it would cost the reader if it were ignored: one serious error outweighs ten matters of taste.",
    "A point that was answered and not defended is lost.",
)
POSITIONS = {"for": "The answer is yes.", "against": "The answer is no."}
"""What a side stands for when it is only named."""

_SIDE = re.compile(r"[A-Za-z0-9_-]{1,40}")
_LONGEST_TEXT = 2000


def _stage(stage: Stage) -> Expanded | Completed:
    """The first round, or what comes after the round that has ended."""
    values = {**stage.values, "sides": _sides(stage.values["sides"]), "rubric": list(stage.values["rubric"])}
    if stage.state is None:
        return _round(stage.step, 1, values)
    root, number = stage.state["root"], stage.state["round"]
    names = [side["name"] for side in values["sides"]]
    heard = [_heard(root, one, names, stage.upstream) for one in range(1, number + 1)]
    verdict = merged(heard, names, rounds=values["rounds"], max_tokens=values["max_tokens"])
    return _round(root, number + 1, values) if verdict is None else Completed(verdict)


def _round(root: str, number: int, values: Mapping[str, Any]) -> Expanded:
    sides: list[dict[str, str]] = values["sides"]
    common = {key: values[key] for key in ("subject", "question", "sides")} | {"round": number}
    before = list(_arguments(root, [number - 1], sides)) if number > 1 else []
    critics = [
        _member(_critic(root, number, side["name"]), "critic", common | {"side": side["name"]}, before, on_failure="continue")
        for side in sides
    ]
    judges = [
        _member(
            _judge(root, number, order),
            "judge",
            common | {"rubric": values["rubric"], "sides": ordered},
            list(_arguments(root, range(1, number + 1), ordered)),
            on_failure="continue",
        )
        for order, ordered in ((Order.GIVEN, sides), (Order.REVERSED, sides[::-1]))
    ]
    outcome: Child = {
        "id": f"{root}/r{number}/outcome",
        "agent": "pattern:debate",
        "needs": list(_spoken(root, number, [side["name"] for side in sides])),
        "spec": {
            "pattern": "debate",
            "with": {key: f"{{{{ item.{key} }}}}" for key in values},
            "item": dict(values),
            "state": {"root": root, "round": number},
        },
        "uses_input": False,
    }
    return Expanded([*critics, *judges, outcome], join=outcome["id"])


def _member(child: str, agent: str, item: dict[str, Any], arguments: list[dict[str, Any]], *, on_failure: str) -> Child:
    template = {key: f"{{{{ item.{key} }}}}" for key in item} | {
        "arguments": [{**one, "argument": f"{{{{ steps.{one['argument']}.output }}}}"} for one in arguments]
    }
    needs = [one["argument"] for one in arguments]
    spec = {"template": template, "item": item}
    return {"id": child, "agent": agent, "needs": needs, "spec": spec, "uses_input": False, "on_failure": on_failure}


def _arguments(root: str, rounds: Iterable[int], sides: list[dict[str, str]]) -> Iterator[dict[str, Any]]:
    """What was said in these rounds, the sides in this order; `argument` is the step that says it."""
    for number in rounds:
        for side in sides:
            yield {"side": side["name"], "round": number, "argument": _critic(root, number, side["name"])}


def _spoken(root: str, rounds: int, names: list[str]) -> Iterator[str]:
    """Every critic and judge of the rounds so far."""
    for number in range(1, rounds + 1):
        yield from (_critic(root, number, name) for name in names)
        yield from (_judge(root, number, order) for order in Order)


def _critic(root: str, number: int, name: str) -> str:
    return f"{root}/r{number}-{name}"


def _judge(root: str, number: int, order: Order) -> str:
    # Behind a slash, which no side has in its name: a side may be called judge.
    return f"{root}/r{number}/judge" + ("-reversed" if order is Order.REVERSED else "")


def _heard(root: str, number: int, names: list[str], upstream: Mapping[str, Any]) -> Round:
    arguments = {name: upstream.get(_critic(root, number, name)) for name in names}
    answers = {order: upstream.get(_judge(root, number, order)) for order in Order}
    return Round.of(number, names, arguments, answers)


def _sides(value: Any) -> list[dict[str, str]]:
    """Sides in their one form, from names or `{name, position}`."""
    given = [one if isinstance(one, Mapping) else {"name": one} for one in value]
    return [{"name": one["name"], "position": one.get("position", POSITIONS.get(one["name"], ""))} for one in given]


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) <= _LONGEST_TEXT


def _is_side(value: Any) -> bool:
    name, position = (value.get("name"), value.get("position", "")) if isinstance(value, Mapping) else (value, "")
    if isinstance(value, Mapping) and not value.keys() <= {"name", "position"}:
        return False
    # A side becomes part of a step's id, of a look-up and of a schema: these characters only.
    named = isinstance(name, str) and _SIDE.fullmatch(name) is not None and name != RESERVED
    return named and isinstance(position, str) and len(position) <= _LONGEST_TEXT


def _sides_objection(value: Any) -> str | None:
    if isinstance(value, list | tuple) and all(_is_side(side) for side in value):
        names = {side["name"] for side in _sides(value)}
        if 2 <= len(value) <= 8 and len(names) == len(value):
            return None
    return f"a list of 2 to 8 different names of letters, digits, _ and - (not {RESERVED}), or of {{name, position}}"


def _rubric_objection(value: Any) -> str | None:
    fits = isinstance(value, list | tuple) and 1 <= len(value) <= 20 and all(_is_text(one) for one in value)
    return None if fits else f"a list of 1 to 20 criteria, each a text of at most {_LONGEST_TEXT} characters"


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


DEBATE = Pattern(
    name="debate",
    agents=("critic", "judge"),
    parameters={
        "subject": Parameter(lambda value: None, required=True),
        "question": Parameter(
            lambda value: None if _is_text(value) else f"a text of at most {_LONGEST_TEXT} characters", default=QUESTION
        ),
        "sides": Parameter(_sides_objection, default=("for", "against")),
        "rounds": Parameter(lambda value: None if _whole(value, 1, 10) else "a whole number from 1 to 10", default=2),
        "rubric": Parameter(_rubric_objection, default=RUBRIC),
        "max_tokens": Parameter(lambda value: None if _whole(value, 1, 10**12) else "a whole number from 1 on", default=None),
    },
    expand=_stage,
)
"""`pattern: debate`; docs/workflows/debate.md says what its parameters and its verdict mean."""
