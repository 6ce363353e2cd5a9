"""A debate's verdict: what the judges' scores, in both orders of the sides, come to. Pure; no model is asked.

`{winner: side|tie, scores: {side: 0..1}, reasons: [text], dissent, changes: [text], disagreement: {agrees: bool|null, orders},
rounds, ended_by: agreement|settled|rounds|tokens, tokens, transcript: [{round, side, argument, points, concedes_to, score}]}`;
`orders` is `{given: {scores, winner}|null, reversed: {scores, winner}|null}`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from shared.errors import InputError

TIE_WITHIN = 0.05
"""The best two scores lie this close: nobody has won."""
CLEARLY = 0.1
"""Where the orders name different winners, the mean scores have to lie further apart than this for anybody to win."""
MOVED_LESS_THAN = 0.05
"""Scores that all moved less than this in a round, in each order, have settled."""
RESERVED = "tie"
"""What no side may be called."""

Scores = dict[str, float]


class Order(StrEnum):
    """In which order a judge was shown the sides."""

    GIVEN = "given"
    REVERSED = "reversed"


@dataclass(frozen=True, slots=True)
class Round:
    """What was heard in a round: the arguments of the sides that spoke, the judges' answers, and their scores for every side."""

    number: int
    arguments: Mapping[str, Mapping[str, Any]]
    answers: Mapping[Order, Mapping[str, Any]]
    scores: Mapping[Order, Scores]

    @classmethod
    def of(cls, number: int, sides: Sequence[str], arguments: Mapping[str, Any], answers: Mapping[Order, Any]) -> "Round":
        """From the outputs of critics and judges; whoever failed and was let go has none."""
        spoke = {side: said for side, said in arguments.items() if isinstance(said, Mapping) and said.get("argument")}
        scores = {order: sheet for order, answer in answers.items() if (sheet := _sheet(answer, sides)) is not None}
        return cls(number, spoke, {order: answers[order] for order in scores}, scores)

    @property
    def tokens(self) -> int:
        """What its critics and judges used."""
        return sum(int(_number(one.get("tokens"))) for one in (*self.arguments.values(), *self.answers.values()))

    def means(self, sides: Sequence[str]) -> Scores:
        """Each side's mean score over the judges that answered."""
        return {side: round(sum(sheet[side] for sheet in self.scores.values()) / len(self.scores), 4) for side in sides}


def merged(heard: Sequence[Round], sides: Sequence[str], *, rounds: int, max_tokens: int | None) -> dict[str, Any] | None:
    """The verdict after these rounds, None while the debate goes on.

    Raises InputError when no judge answered in the last one, or when fewer than two sides spoke in the first.
    """
    last = heard[-1]
    if len(heard[0].arguments) < 2:
        raise InputError("fewer than two sides were heard in round 1; see why the critics' steps failed, then run the debate again")
    if not last.scores:
        raise InputError(f"neither judge answered in round {last.number}; see why their steps failed, then run the debate again")
    conceded = _conceded_to(last, sides)
    ended_by = "agreement" if conceded is not None else _ended_by(heard, rounds, max_tokens)
    if ended_by is None:
        return None
    scores, winners = last.means(sides), {order: winner(sheet) for order, sheet in last.scores.items()}
    won = _won(scores, winners) if conceded is None else conceded
    # Whoever named the winner gives the reasons first; the other judge's follow.
    answers = [last.answers[order] for order in sorted(winners, key=lambda order: winners[order] != won)]
    sheets = {order: {"scores": last.scores[order], "winner": named} for order, named in winners.items()}
    disagreement = {
        "agrees": len(set(winners.values())) == 1 if len(winners) == len(Order) else None,
        "orders": {order.value: sheets.get(order) for order in Order},
    }
    return {
        "winner": won,
        "scores": scores,
        "reasons": _unique([*_remarks(conceded, winners), *_texts(answers, "reasons")]),
        "dissent": next((text for answer in answers if isinstance(text := answer.get("dissent"), str)), ""),
        "changes": _unique(_texts(answers, "changes")),
        "disagreement": disagreement,
        "rounds": len(heard),
        "ended_by": ended_by,
        "tokens": sum(one.tokens for one in heard),
        "transcript": _transcript(heard, sides),
    }


def winner(scores: Scores, *, apart: float = TIE_WITHIN) -> str:
    """The side whose score is more than `apart` above all others, else `tie`."""
    first, second, *_ = sorted(scores, key=lambda side: -scores[side])
    return first if round(scores[first] - scores[second], 6) > apart else RESERVED


def _won(scores: Scores, winners: Mapping[Order, str]) -> str:
    named = set(winners.values())
    return named.pop() if len(named) == 1 else winner(scores, apart=CLEARLY)


def _conceded_to(last: Round, sides: Sequence[str]) -> str | None:
    """The side that all others conceded to in this round, and that conceded to nobody. One that was silent concedes nothing."""
    said = {side: argument.get("concedes_to") for side, argument in last.arguments.items()}
    for side in sides:
        if said.get(side) is None and all(said.get(other) == side for other in sides if other != side):
            return side
    return None


def _ended_by(heard: Sequence[Round], rounds: int, max_tokens: int | None) -> str | None:
    if len(heard) > 1 and _settled(heard[-2].scores, heard[-1].scores):
        return "settled"
    if len(heard) >= rounds:
        return "rounds"
    # The next round is taken to cost what this one did, so that the cap is kept and not only noticed.
    if max_tokens is not None and sum(one.tokens for one in heard) + heard[-1].tokens > max_tokens:
        return "tokens"
    return None


def _settled(before: Mapping[Order, Scores], after: Mapping[Order, Scores]) -> bool:
    both = before.keys() & after.keys()
    moved = (abs(after[order][side] - before[order][side]) for order in both for side in after[order])
    return bool(both) and all(round(one, 6) < MOVED_LESS_THAN for one in moved)


def _remarks(conceded: str | None, winners: Mapping[Order, str]) -> list[str]:
    remarks = [] if conceded is None else [f"Every other side conceded to “{conceded}”."]
    if len(set(winners.values())) > 1:
        given, turned = (winners[order] for order in Order)
        remarks.append(f"The judge's outcome depended on the order of the sides: {given} as given, {turned} reversed.")
    return remarks


def _transcript(heard: Sequence[Round], sides: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "round": one.number,
            "side": side,
            "argument": said["argument"],
            "points": said.get("points", []),
            "concedes_to": said.get("concedes_to"),
            "score": one.means(sides)[side],
        }
        for one in heard
        for side, said in one.arguments.items()
    ]


def _sheet(answer: Any, sides: Sequence[str]) -> Scores | None:
    """A judge's scores, from 0 to 1, for every side; None when it gave none. A side that it left out has lost."""
    given = answer.get("scores") if isinstance(answer, Mapping) else None
    if not isinstance(given, Mapping):
        return None
    return {side: min(1.0, max(0.0, _number(given.get(side)))) for side in sides}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _texts(answers: Iterable[Mapping[str, Any]], key: str) -> list[str]:
    lists = (answer.get(key) for answer in answers)
    return [text for texts in lists if isinstance(texts, list) for text in texts if isinstance(text, str)]


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))
