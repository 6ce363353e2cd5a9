"""Fills a JSON Schema with what the material holds: a property's name says what belongs there, its type and bounds in what form.

Texts: `title`, `summary`, `text` or `report` (Markdown), `argument`, `concedes_to`, `dissent`, `notice`, `claim`, `evidence`.
Lists: `questions`, `sections`, `findings` (or any list of objects: one per relevant statement), `gaps`, `points`, `reasons`,
`changes`, `keywords`, `steps` where agents are to be planned with, and the `result` of such a plan. Numbers: `score`, `confidence`,
a side of a debate by its name. Choices: `winner`. A text for which the request itself has a value takes it. Any other name gets the
statements that weigh most, or the share of what was looked for that the text holds. Of an incident's notes and of a patch more is
known (`Material.facts`), and taken first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import Any

from shared.ai.offline.document import Unit
from shared.ai.offline.language import capitalised, closed, shortened, terms
from shared.ai.offline.material import ASKING, PLAIN_QUESTIONS, Material
from shared.ai.offline.report import compose
from shared.ai.schema import problems

_DEFAULT_ITEMS = 5
_MOST_ITEMS = 1000


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the answer a value is needed."""

    name: str
    unit: Unit | None = None
    """The statement that the surrounding object is about, and how relevant it is."""
    relevance: float = 0.0


def fill(schema: Mapping[str, Any], material: Material) -> Any:
    """A value for `schema`. It fits whenever the schema can be fitted at all."""
    return _value(schema, material, _Place(""))


def _value(schema: Mapping[str, Any], material: Material, place: _Place) -> Any:
    if place.name in material.facts:
        taken = _taken(schema, material.facts[place.name])
        # Somebody else's schema may mean another thing by that name.
        if next(problems(taken, schema), None) is None:
            return taken
    if "enum" in schema:
        return _choice(schema["enum"], material, place)
    kind = _kind(schema)
    if kind == "object":
        return {
            name: _value(child, material, _Place(name, place.unit, place.relevance))
            for name, child in schema.get("properties", {}).items()
        }
    if kind == "array":
        return _array(schema, material, place)
    if kind in ("number", "integer"):
        return _number(schema, _measure(material, place), whole=kind == "integer")
    if kind == "boolean":
        return _measure(material, place) >= 0.5
    return None if kind == "null" else _string(schema, material, place)


def _taken(schema: Mapping[str, Any], fact: Any) -> Any:
    """`fact` within the bounds of `schema`."""
    if isinstance(fact, str):
        return _fitted(fact, schema)
    if isinstance(fact, list):
        return [_taken(schema.get("items", {}), one) for one in fact[: int(min(schema.get("maxItems", _MOST_ITEMS), _MOST_ITEMS))]]
    if isinstance(fact, Mapping):
        fields = schema.get("properties", {})
        return {name: _taken(fields.get(name, {}), one) for name, one in fact.items()}
    return fact


def _kind(schema: Mapping[str, Any]) -> str:
    declared = schema.get("type")
    if isinstance(declared, list | tuple):
        declared = next((name for name in declared if name != "null"), "null")
    if declared is not None:
        return str(declared)
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _title(material: Material) -> str:
    return material.echo("title") or material.title


def _summary(material: Material) -> str:
    return material.echo("summary") or " ".join(closed(unit.text) for unit in material.document.summary())


def _report(material: Material) -> str:
    return compose(material.values, material.document, _title(material), notice=material.notice)


def _argument(material: Material) -> str:
    return material.argument.text if material.argument is not None else _statements(material)


def _concession(material: Material) -> str:
    return material.argument.concedes_to if material.argument is not None else ""


def _dissent(material: Material) -> str:
    return material.verdict.dissent if material.verdict is not None else "Nobody disagreed."


def _statements(material: Material) -> str:
    return " ".join(closed(unit.text) for unit, _ in material.relevant[:3])


_TEXTS: Mapping[str, Callable[[Material], str]] = {
    "title": _title,
    "headline": _title,
    "summary": _summary,
    "abstract": _summary,
    "text": _report,
    "report": _report,
    "markdown": _report,
    "argument": _argument,
    "dissent": _dissent,
    "concedes_to": _concession,
    "notice": lambda material: material.notice,
}
_EMPTY = frozenset({"concedes_to"})
"""Texts that may say nothing."""
_UNIT_TEXTS: Mapping[str, Callable[[Unit, int], str]] = {
    "evidence": lambda unit, total: _location(unit, total),
    "source": lambda unit, total: _location(unit, total),
    "section": lambda unit, _: unit.heading or "The text",
    "heading": lambda unit, _: unit.heading or "The text",
}


def _string(schema: Mapping[str, Any], material: Material, place: _Place) -> str:
    if place.unit is not None:
        written = _UNIT_TEXTS.get(place.name)
        text = place.unit.text if written is None else written(place.unit, len(material.document.units))
    elif place.name in _TEXTS:
        text = _TEXTS[place.name](material)
    elif place.name == "result" and material.plan is not None:
        text = material.plan["result"]
    else:
        text = material.echo(place.name) or _statements(material)
    if not text and place.name not in _EMPTY:
        text = "The material says nothing about this."
    return _fitted(text, schema)


def _location(unit: Unit, total: int) -> str:
    where = f"under “{unit.heading}”, " if unit.heading else ""
    return f"Stated in the material: {where}statement {unit.index + 1} of {total}."


def _fitted(text: str, schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if len(text) > high:
        text = shortened(text, int(high))
    return text if len(text) >= low else text.ljust(math.ceil(low), "…")


def _questions(material: Material, low: int, high: int) -> list[str]:
    asked = [f"What does the material say about “{topic}”?" for topic in material.document.topics(low, high)]
    return [*asked, *(one for one in PLAIN_QUESTIONS if len(asked) < low)][: max(low, len(asked))]


_PLAIN_SECTIONS = ("The material", "What follows", "What is left open")


def _sections(material: Material, low: int, high: int) -> list[str]:
    topics = [capitalised(topic) for topic in material.document.topics(low, high)]
    return [*topics, *(one for one in _PLAIN_SECTIONS if len(topics) < low)][: max(low, len(topics))]


def _gaps(material: Material, _low: int, _high: int) -> list[str]:
    if not material.focus:
        return [unit.text for unit in material.document.units if unit.question]
    known = {term for unit in material.document.units for term in unit.about}
    missing = [term for term in dict.fromkeys(terms(material.focus)) if term not in known and term not in ASKING]
    unsaid = [f"The material does not mention “{term}”." for term in missing]
    return [*material.document.open_questions(material.focus, [unit for unit, _ in material.relevant]), *unsaid]


def _points(material: Material, _low: int, _high: int) -> list[str]:
    return material.argument.points if material.argument is not None else _key_statements(material)


def _reasons(material: Material, _low: int, _high: int) -> list[str]:
    return material.verdict.reasons if material.verdict is not None else _key_statements(material)


def _changes(material: Material, _low: int, _high: int) -> list[str]:
    return material.verdict.changes if material.verdict is not None else []


def _keywords(material: Material, _low: int, _high: int) -> list[str]:
    return material.document.phrases


def _key_statements(material: Material) -> list[str]:
    return [unit.text for unit, _ in material.relevant]


_LISTS: Mapping[str, Callable[[Material, int, int], Sequence[str]]] = {
    "questions": _questions,
    "sections": _sections,
    "headings": _sections,
    "gaps": _gaps,
    "open_questions": _gaps,
    "points": _points,
    "reasons": _reasons,
    "changes": _changes,
    "keywords": _keywords,
    "phrases": _keywords,
    "topics": _sections,
    "tags": _keywords,
}


def _array(schema: Mapping[str, Any], material: Material, place: _Place) -> list[Any]:
    low, high = math.ceil(schema.get("minItems", 0)), schema.get("maxItems", _DEFAULT_ITEMS)
    high = math.floor(min(max(low, high), _MOST_ITEMS))
    items = schema.get("items", {"type": "string"})
    if place.name == "steps" and material.plan is not None:
        planned: list[Any] = material.plan["steps"][:high]
        return planned
    if _kind(items) != "string" or "enum" in items:
        return _rows(items, material, place, low=low, high=high)
    named = _LISTS.get(place.name)
    texts = list(named(material, low, high)) if named is not None else _key_statements(material)
    if len(texts) < low:
        spare = chain(_key_statements(material), material.document.phrases, (f"Nothing more is said ({n})." for n in count(1)))
        texts.extend(islice((one for one in spare if one not in texts), low - len(texts)))
    return [_fitted(text, items) for text in texts[:high]]


def _rows(items: Mapping[str, Any], material: Material, place: _Place, *, low: int, high: int) -> list[Any]:
    """A list of anything but texts: one item per relevant statement, or the same over again where there are too few."""
    found = material.relevant[:high]
    rows = [_value(items, material, _Place(place.name, unit, relevance)) for unit, relevance in found]
    return [*rows, *(_value(items, material, place) for _ in range(low - len(rows)))]


def _measure(material: Material, place: _Place) -> float:
    """What a number of this name measures, from 0 to 1."""
    if place.unit is not None:
        return round(0.35 + 0.6 * min(1.0, place.relevance), 2)
    if material.argument is not None and place.name in ("score", "strength"):
        return material.argument.score
    if material.verdict is not None and place.name in material.verdict.scores:
        return material.verdict.scores[place.name]
    return material.coverage


def _number(schema: Mapping[str, Any], measure: float, *, whole: bool) -> float | int:
    """`measure` stretched over the schema's bounds; with one bound or none, cut off at it."""
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    bounded = math.isfinite(low) and math.isfinite(high)
    value = float(low + measure * (high - low) if bounded else min(max(measure, low), high))
    if not whole:
        return round(value, 2) if (low, high) == (0, 1) else value
    lowest = math.ceil(low) if math.isfinite(low) else round(value)
    highest = math.floor(high) if math.isfinite(high) else round(value)
    return max(lowest, min(highest, round(value)))


def _choice(allowed: Sequence[Any], material: Material, place: _Place) -> Any:
    """The debate's winner, what the request itself says, or the choice whose words the text uses most."""
    if material.verdict is not None and material.verdict.winner in allowed:
        return material.verdict.winner
    echoed = material.echo(place.name)
    if echoed in allowed:
        return echoed
    used = [unit.terms for unit in material.document.units]
    return max(allowed, key=lambda one: sum(len(held.intersection(terms(str(one)))) for held in used))
