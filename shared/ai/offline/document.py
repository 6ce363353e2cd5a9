"""What a text is made of and about: sections, units, their weight, key phrases, topics.

A unit is what may be quoted on its own: a sentence, a short list item, or a sentence together with the one that it points back to.
Weight follows SumBasic: a sentence weighs what its words weigh, and words weigh by how often the text uses them. Key phrases come,
as in RAKE, from the runs of words between stop words, and weigh by how often and in how many words they are said. Neither needs
a model or training.
"""

# ruff: noqa: RUF001 -- real texts hold typographic quotes and dashes

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from shared.ai.offline.language import STOPWORDS, figures, is_dangling, is_question, sentences, terms, words

_MEASURES = frozenset(
    ("second", "minute", "hour", "day", "week", "month", "year", "time", "percent", "euro", "dollar", "people", "number")
)
"""Terms that count something else: alone they are no topic."""

LIMIT_CHARACTERS = 200_000
"""No more of a text than this is read, so that no input can cost more than a bounded time."""
UNIT_CHARACTERS = 320
"""Sentences are joined into one unit only up to this length."""

_HEADING = re.compile(r"(#{1,6})\s+(.*?)\s*#*$")
_ITEM = re.compile(r"(?:[-*+•–]|\d{1,3}[.)])\s+(?=\S)")
_STAMP = re.compile(r"(?:\d{4}-\d{2}-\d{2}|\[?\d{1,2}:\d{2})\b")
_RULE = re.compile(r"[-=_*|:\s]{3,}$")
_MARKUP = re.compile(r"\*\*|__|(?<!\w)[*_](?=\S)|(?<=\S)[*_](?!\w)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")
_CLAUSE = re.compile(r"[^\w\s'’.-]+|\s[-–—]\s|\.(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of text that can be quoted on its own."""

    text: str
    heading: str
    """The nearest heading above it; empty when there is none."""
    index: int
    """Its place in the document, from 0."""
    terms: frozenset[str]
    about: frozenset[str]
    """Its own terms and those of its heading."""
    weight: float
    """How much of what the document is about it holds, 0 to 1, relative to the document's best unit."""
    question: bool


@dataclass(frozen=True)
class Document:
    """A text, taken apart."""

    title: str
    """Its first heading when that stands above everything else, else empty."""
    units: tuple[Unit, ...]

    @property
    def statements(self) -> list[Unit]:
        """The units that state something."""
        return [unit for unit in self.units if not unit.question]

    @cached_property
    def sections(self) -> dict[str, list[Unit]]:
        """Heading → its units, in the order of the text."""
        found: dict[str, list[Unit]] = {}
        for unit in self.units:
            found.setdefault(unit.heading, []).append(unit)
        return found

    @cached_property
    def rarity(self) -> dict[str, float]:
        """Term → how telling it is: the fewer units hold it, the more."""
        held = Counter(term for unit in self.units for term in unit.about)
        return {term: math.log(1 + len(self.units) / count) for term, count in held.items()}

    @cached_property
    def phrases(self) -> list[str]:
        """Key phrases, the best first."""
        return _phrases([unit.text for unit in self.statements])

    def summary(self, count: int = 3) -> list[Unit]:
        """The units that together say most, each from another section where possible, in the order of the text."""
        chosen: list[Unit] = []
        left = [unit for unit in self.statements if len(unit.text) <= 2 * UNIT_CHARACTERS]
        while left and len(chosen) < count:
            best = max(left, key=lambda unit: (unit.weight * _novelty(unit, chosen), -unit.index))
            chosen.append(best)
            left.remove(best)
        return sorted(chosen, key=lambda unit: unit.index)

    def topics(self, low: int, high: int) -> list[str]:
        """What the text is about, `low` to `high` topics if it has that many: its sections, else key phrases, in reading order."""
        mass = {
            heading: sum(unit.weight for unit in units)
            for heading, units in self.sections.items()
            if heading not in ("", self.title)
        }
        best = sorted(mass, key=lambda heading: -mass[heading])[:high]
        topics = [heading for heading in mass if heading in best]
        if len(topics) < low:
            topics.extend(self._phrases_covering(high - len(topics), set(terms(" ".join(topics)))))
        return topics

    def relevant(self, focus: str, limit: int) -> list[tuple[Unit, float]]:
        """Up to `limit` statements about `focus`, in the order of the text, each with its relevance from 0 to 1."""
        sought = {term: self.rarity.get(term, 0.0) for term in terms(focus)}
        total = sum(sought.values())
        named = focus.casefold()
        rated = []
        for unit in self.statements:
            # A section named word for word is meant as a whole, also where its name is made of words that say nothing.
            whole = bool(unit.heading) and unit.heading.casefold() in named
            share = 1.0 if whole else sum(weight for term, weight in sought.items() if term in unit.about) / total if total else 0.0
            if share >= 0.25:
                rated.append((unit, 0.7 * share + 0.3 * unit.weight))
        rated.sort(key=lambda one: (-one[1], one[0].index))
        return sorted(rated[:limit], key=lambda one: one[0].index)

    def open_questions(self, focus: str, found: Iterable[Unit]) -> list[str]:
        """The text's own questions in a section named in `focus`, about what was `found`, or about nothing that it states."""
        known = frozenset(term for unit in found for term in unit.terms)
        stated = frozenset(term for unit in self.statements for term in unit.terms)
        named = focus.casefold()
        return [
            unit.text
            for unit in self.units
            if unit.question
            and (unit.terms & known or not unit.terms & stated or (unit.heading and unit.heading.casefold() in named))
        ]

    def _phrases_covering(self, count: int, covered: set[str]) -> list[str]:
        """Phrases that each bring in statements which no earlier one did, in the order in which the text comes to them."""
        left = list(self.statements)
        chosen: list[tuple[int, str]] = []
        for phrase in self.phrases[:80]:
            own = frozenset(terms(phrase))
            held = [unit for unit in left if own <= unit.terms]
            if len(chosen) < count and held and not own & covered:
                chosen.append((held[0].index, phrase))
                covered |= own
                left = [unit for unit in left if unit not in held[:3]]
        return [phrase for _, phrase in sorted(chosen)]


@lru_cache(maxsize=16)
def read(text: str) -> Document:
    """Take `text` apart: Markdown or plain, wrapped or one entry per line. What is beyond LIMIT_CHARACTERS is not read."""
    blocks = list(_blocks(text[:LIMIT_CHARACTERS]))
    headings = [(level, heading) for level, heading, kind, _ in blocks if kind == "heading"]
    title = headings[0][1] if headings and all(level > headings[0][0] for level, _ in headings[1:]) else ""
    pieces: dict[str, tuple[str, frozenset[str]]] = {}
    for _, heading, kind, body in blocks:
        if kind != "heading":
            for piece in _pieces(kind, body):
                # The same sentence twice is one unit: what is quoted is quoted once.
                pieces.setdefault(piece, (heading, frozenset(terms(piece))))
    weights = _weights(pieces)
    units = (
        Unit(
            text=piece,
            heading=heading,
            index=index,
            terms=held,
            about=held.union(terms(heading)),
            weight=weights[piece],
            question=is_question(piece),
        )
        for index, (piece, (heading, held)) in enumerate(pieces.items())
    )
    return Document(title=title, units=tuple(units))


def _blocks(text: str) -> Iterator[tuple[int, str, str, str]]:
    """(level, heading, kind, body) of every heading, list item and paragraph; a heading's own block has no body."""
    heading = ""
    kind, gathered = "paragraph", list[str]()
    fenced = False
    for raw in [*text.splitlines(), ""]:
        line = raw.strip().removeprefix(">").strip()
        if line.startswith(("```", "~~~")):
            fenced = not fenced
        found = None if fenced else _heading(line)
        starts = (
            found or not line or fenced or _RULE.fullmatch(line) or _ITEM.match(line) or _STAMP.match(line) or line.startswith("|")
        )
        if starts and gathered:
            yield 0, heading, kind, " ".join(gathered)
            gathered = []
        if found:
            heading = found[1]
            yield found[0], heading, "heading", ""
        elif line and not fenced and not _RULE.fullmatch(line) and not line.startswith(("```", "~~~")):
            if starts:
                kind = "item"
            elif not gathered:
                kind = "paragraph"
            gathered.append(_plain(line))


def _heading(line: str) -> tuple[int, str] | None:
    """Level and text of a heading: `## Text`, or a short line of its own that ends with a colon."""
    marked = _HEADING.match(line)
    if marked:
        return len(marked[1]), _plain(marked[2])
    if line.endswith(":") and len(line) <= 60 and not _ITEM.match(line) and len(words(line)) <= 6:
        return 7, _plain(line.rstrip(":"))
    return None


def _plain(line: str) -> str:
    """A line of Markdown without its list mark, emphasis, link targets and table bars."""
    bare = _ITEM.sub("", line, count=1) if _ITEM.match(line) else line
    if bare.startswith("|"):
        bare = " · ".join(cell.strip() for cell in bare.strip("|").split("|") if cell.strip())
    return " ".join(_MARKUP.sub("", _LINK.sub(r"\1", bare)).split())


def _pieces(kind: str, body: str) -> Iterator[str]:
    """The texts of a block's units."""
    if kind == "item" and len(body) <= UNIT_CHARACTERS:
        yield body
        return
    held = ""
    for sentence in sentences(body):
        if held and is_dangling(sentence) and len(held) + len(sentence) < UNIT_CHARACTERS and not is_question(held):
            held = f"{held} {sentence}"
            continue
        if held:
            yield held
        held = sentence
    if held:
        yield held


def _weights(pieces: dict[str, tuple[str, frozenset[str]]]) -> dict[str, float]:
    """Text of a unit → its weight, 0 to 1."""
    used = Counter(term for _, held in pieces.values() for term in held)
    seen: set[str] = set()
    weights = {}
    for index, (piece, (heading, held)) in enumerate(pieces.items()):
        weight = sum(math.log(1 + used[term]) for term in held) / (6 + len(held))
        opens_section = heading not in seen
        seen.add(heading)
        weights[piece] = weight * _standing(piece, len(words(piece))) * (1.15 if index == 0 else 1.05 if opens_section else 1.0)
    heaviest = max(weights.values(), default=0.0)
    return {piece: round(weight / heaviest, 4) if heaviest else 0.0 for piece, weight in weights.items()}


def _standing(piece: str, length: int) -> float:
    """How well a unit stands on its own: questions, fragments, log entries and back references do badly, figures help."""
    factor = 1.15 if figures(piece) else 1.0
    if is_question(piece):
        factor *= 0.3
    if length < 5:
        factor *= 0.4
    elif length > 50:
        factor *= 0.7
    if is_dangling(piece) or _STAMP.match(piece):
        factor *= 0.6
    return factor


def _novelty(unit: Unit, chosen: Sequence[Unit]) -> float:
    """1 for a unit unlike everything chosen, less the more it shares with one of them or when it comes from the same section."""
    novelty = 1.0
    for other in chosen:
        shared = len(unit.terms & other.terms) / max(1, len(unit.terms | other.terms))
        novelty = min(novelty, (1 - shared) ** 2 * (0.6 if unit.heading and unit.heading == other.heading else 1.0))
    return novelty


def _phrases(texts: Iterable[str]) -> list[str]:
    """Key phrases of one to three words, the best first: what is said again and again, in as many words as possible."""
    counted: Counter[tuple[str, ...]] = Counter()
    written: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    whole: set[tuple[str, ...]] = set()
    for text in texts:
        for run in _runs(text):
            folded = [_fold(word) for word in run]
            for size in range(1, min(3, len(run)) + 1):
                for at in range(len(run) - size + 1):
                    key = tuple(folded[at : at + size])
                    counted[key] += 1
                    written[key][" ".join(run[at : at + size])] += 1
            whole.add(tuple(folded))
    score: dict[tuple[str, ...], float] = {}
    for key, count in counted.items():
        form = written[key].most_common(1)[0][0]
        # Said once, only a whole run is a phrase; a part of it would be any two neighbours.
        if (count > 1 or key in whole) and (len(key) > 1 or (len(form) > 3 and key[0] not in _MEASURES)):
            named = 1.2 if form[:1].isupper() and count > 1 else 1.0
            score[key] = (count - 0.7) * (1 + 0.6 * (len(key) - 1)) * named
    best = sorted(score, key=lambda key: (-score[key], key))
    return [written[key].most_common(1)[0][0] for key in best]


def _fold(word: str) -> str:
    """What makes two forms of a word one."""
    return next(iter(terms(word)), word.casefold())


def _runs(text: str) -> Iterator[list[str]]:
    """The runs of meaningful words in `text`: what stands between stop words, numbers and punctuation."""
    for clause in _CLAUSE.split(text):
        run: list[str] = []
        for word in [*words(clause), "the"]:
            if word.casefold() in STOPWORDS or word[0].isdigit() or len(word) < 2:
                if run:
                    yield run
                run = []
            else:
                run.append(word)
