"""What can be said for and against a text by counting: which sections can be checked, which hedge, what is left open.

For a side of any other name it is what the text says about that name and its position.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shared.ai.offline.document import Document, Unit
from shared.ai.offline.language import figures, hedges

SIDES = ("for", "against")
TIE_WITHIN = 0.05
_POINTS_PER_ROUND = 3
_MOST = 30
_NOTHING = "Nothing is left to add"


@dataclass(frozen=True, slots=True)
class Argument:
    """One side's case in one round."""

    text: str
    points: list[str]
    score: float
    concedes_to: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a debate ended."""

    winner: str
    scores: dict[str, float]
    reasons: list[str]
    dissent: str
    changes: list[str]


def argue(subject: Document, side: str, earlier: Sequence[Mapping[str, Any]], *, number: int = 1, position: str = "") -> Argument:
    """The case of `side` in round `number`, from 1. Each round makes the next points; none that an earlier argument made.

    A side that has no points left concedes to the strongest one, if that is stronger than itself.
    """
    said = {point for argument in earlier for point in _points(argument)}
    stance = f"{side} {position}"
    turn = _case(subject, side, stance)[(number - 1) * _POINTS_PER_ROUND : number * _POINTS_PER_ROUND]
    points = [point for point in turn if point not in said]
    opening = _opening(subject, side, stance)
    rebuttal = _rebuttal(side, earlier)
    score, conceded = _strength(subject, side, stance), ""
    if not points:
        conceded = _stronger(side, score, earlier)
        points = [f"{_NOTHING} {side} the text; the points made so far stand." if side in SIDES else f"{_NOTHING} for “{side}”."]
    text = " ".join([*([rebuttal] if rebuttal else [opening]), *points])
    return Argument(text=text, points=points, score=score, concedes_to=conceded)


def judge(arguments: Sequence[Mapping[str, Any]]) -> Verdict:
    """Weigh the arguments by their scores. What speaks against the text is what must change."""
    named = {str(one["side"]) for one in arguments if isinstance(one.get("side"), str)}
    # In an order of their own: in which order the sides are shown must not matter.
    sides = sorted(named if len(named) > 1 else named.union(SIDES), key=lambda side: (side not in SIDES, side == "against", side))
    scores = {side: round(_mean(_score(one) for one in arguments if one.get("side") == side), 2) for side in sides}
    best, second = sorted(sides, key=lambda side: -scores[side])[:2]
    winner = "tie" if scores[best] - scores[second] <= TIE_WITHIN else best
    points = {side: _made(arguments, side) for side in sides}
    loser = second if winner != "tie" else sides[1]
    reasons = [point for side in sides for point in points[side][:1]] if winner == "tie" else points[winner][:3]
    dissent = points[loser][0] if points[loser] else f"Nothing was said {loser} the text."
    return Verdict(
        winner=winner,
        scores=scores,
        reasons=reasons or ["No argument made a point."],
        dissent=dissent,
        changes=points.get("against", []),
    )


def _stronger(side: str, score: float, earlier: Sequence[Mapping[str, Any]]) -> str:
    """The strongest of the other sides; empty when none is stronger than `score`."""
    others = {one["side"]: _score(one) for one in earlier if isinstance(one.get("side"), str) and one["side"] != side}
    best = max(sorted(others), key=lambda other: others[other], default="")
    return best if best and others[best] > score else ""


def _case(subject: Document, side: str, stance: str) -> list[str]:
    """All points for one side, the strongest first."""
    if side not in SIDES:
        return [f"The text says: {unit.text}" for unit, _ in sorted(subject.relevant(stance, limit=_MOST), key=lambda one: -one[1])]
    rated = _strengths(subject) if side == "for" else _weaknesses(subject)
    return [point for _, point in sorted(rated, key=lambda one: -one[0])]


def _strengths(subject: Document) -> Iterator[tuple[float, str]]:
    for heading, units in subject.sections.items():
        found = _unique(figure for unit in units if not unit.question for figure in figures(unit.text))
        if found:
            listed = _listed(sorted(found, key=lambda figure: (not figure[0].isdigit(), " " not in figure))[:3])
            yield len(found) / len(units), f"{_named(heading, subject)} can be checked: it names {listed}."
    asked = [unit for unit in subject.units if unit.question]
    if asked:
        yield (
            0.5,
            f"The text says openly what it does not know: {_counted(len(asked), 'question is', 'questions are')} put as such.",
        )


def _weaknesses(subject: Document) -> Iterator[tuple[float, str]]:
    asked = [unit for unit in subject.units if unit.question]
    if asked:
        yield 3.0, f"{_counted(len(asked), 'question stays', 'questions stay')} without an answer, among them: {asked[0].text}"
    for heading, units in subject.sections.items():
        stated = [unit for unit in units if not unit.question]
        hedged = [unit for unit in stated if hedges(unit.text)]
        if hedged:
            wording = _listed([f"“{word}”" for word in _unique(word for unit in hedged for word in hedges(unit.text))[:3]])
            yield (
                2.0 + len(hedged) / len(stated),
                f"{_named(heading, subject)} rests in part on hedged wording ({wording}): say who can confirm it, and by when.",
            )
        if stated and heading not in ("", subject.title) and not any(figures(unit.text) for unit in stated):
            yield 1.0, f"{_named(heading, subject)} gives no number or date that could be checked."
        if len(stated) == 1 and heading not in ("", subject.title):
            yield 0.5, f"{_named(heading, subject)} stands on a single statement."


def _opening(subject: Document, side: str, stance: str) -> str:
    stated = subject.statements
    if side not in SIDES:
        held = _counted(len(subject.relevant(stance, limit=_MOST)), "sentence of the text is", "sentences of the text are")
        return f"{held} about “{side}”."
    if side == "for":
        checkable = sum(_is_checkable(unit) for unit in stated)
        counted = _counted(len(stated), "statement", "statements")
        return f"The text can stand: {checkable} of its {counted} can be checked by the numbers given."
    weak = len(subject.units) - sum(_is_checkable(unit) for unit in stated)
    counted = _counted(len(subject.units), "sentence", "sentences")
    return f"The text should not stand as it is: {weak} of its {counted} are hedged, open or without a number."


def _rebuttal(side: str, earlier: Sequence[Mapping[str, Any]]) -> str:
    """An answer to the other side's latest point; empty when it has not spoken."""
    other = next((one for one in reversed(earlier) if isinstance(one.get("side"), str) and one["side"] != side), None)
    points = _points(other) if other is not None else []
    if not points:
        return ""
    place = points[0].split("”")[0] + "”" if points[0].startswith("“") else "the open questions"
    if other is not None and {side, other["side"]} != set(SIDES):
        return f"What was said for “{other['side']}” does not answer this."
    if side == "for":
        return f"What was said against it about {place} is a reason to add to the text, not to reject it."
    return f"What was said for it about {place} is granted; it does not mend the rest."


def _strength(subject: Document, side: str, stance: str) -> float:
    """The share of the text's units that speak for the side."""
    if not subject.units:
        return 0.0
    if side not in SIDES:
        return round(min(1.0, len(subject.relevant(stance, limit=_MOST)) / len(subject.units)), 2)
    checkable = sum(_is_checkable(unit) for unit in subject.statements)
    share = checkable / len(subject.units)
    return round(share if side == "for" else 1 - share, 2)


def _is_checkable(unit: Unit) -> bool:
    return bool(figures(unit.text)) and not hedges(unit.text)


def _score(argument: Mapping[str, Any]) -> float:
    score = argument.get("score")
    return float(score) if isinstance(score, int | float) else 0.5


def _points(argument: Mapping[str, Any]) -> list[str]:
    points = argument.get("points")
    if isinstance(points, list) and points:
        return [str(point) for point in points]
    text = argument.get("argument")
    return [text] if isinstance(text, str) and text else []


def _made(arguments: Sequence[Mapping[str, Any]], side: str) -> list[str]:
    """The points that a side made in all rounds, each once."""
    made = (point for one in arguments if one.get("side") == side for point in _points(one))
    return _unique(point for point in made if not point.startswith(_NOTHING))


def _mean(values: Iterable[float]) -> float:
    gathered = list(values)
    return sum(gathered) / len(gathered) if gathered else 0.0


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _named(heading: str, subject: Document) -> str:
    if heading in ("", subject.title):
        return "The opening" if len(subject.sections) > 1 else "The text"
    return f"“{heading}”"


def _listed(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{', '.join(values[:-1])} and {values[-1]}"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
