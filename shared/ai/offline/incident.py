"""What an incident's notes tell, found by times and by words: moments, impact, contributing causes, work to do, what is open.

Notes are protocols (`- 14:06 Support reports …`) and chat logs (`[14:06] ines: …`, or name and time on a line of their own).
Nothing is reworded: every statement is a sentence of the notes, and its own quote. A sentence belongs to the angle whose words it
uses most, so that no two angles find the same.
"""

# ruff: noqa: RUF001 -- real notes hold typographic dashes

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared.ai.offline.document import LIMIT_CHARACTERS
from shared.ai.offline.language import capitalised, closed, figures, hedges, is_dangling, is_question, sentences, terms

ANGLES = ("trigger", "spread", "detection", "recovery")
_MOST = {"impact": 6, "moments": 60, "went_well": 6, "causes": 5, "actions": 8, "unknown": 6}
_TIME = r"(?:\d{4}-\d{2}-\d{2}[ T])?\d{1,2}:\d{2}(?::\d{2})?(?:\s?(?:UTC|Z|CES?T|[AaPp]\.?[Mm]\.?)(?![\w]))?"
_STAMPED = re.compile(rf"(?:[-*•]\s+)?[\[(]?({_TIME})[\])]?\s*[-–—:|,]?\s+(\S.*)$")
_NAME_AND_TIME = re.compile(rf"(@?\w[\w .'’-]{{1,40}}?)\s{{1,3}}[\[(]?({_TIME})[\])]?$")
_SPEAKER = re.compile(r"<?@?([\w.-]{2,30}(?: [A-Z][\w-]+)?)>?:\s+(\S.*)$", re.DOTALL)
_HEADING = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
_ITEM = re.compile(r"(?:[-*+•]|\d{1,3}[.)])\s+")


def _any(*words: str) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)


_ANGLE_WORDS: Mapping[str, re.Pattern[str]] = {
    "trigger": _any(
        r"deploy\w*|releas\w*|version|roll(?:ed|s)? ?out|is live|merged|migrat\w*|config\w*|flag|expir\w*|certificate|cron",
        r"changed?|adds?|added|upgrad\w*|load test|stub|staging|now (?:made|done|run)",
    ),
    "spread": _any(
        r"pools?|connections?|retr(?:y|ies|ied|ying)|queues?|exhaust\w*|time-?outs?|saturat\w*|backlog|full|limits?|memory|cpu",
        r"threads?|locks?|transactions?|held|holds?|block(?:s|ed|ing)?|workers?|cascad\w*|slow(?:ed)?",
    ),
    "detection": _any(
        r"alerts?|alarms?|monitor\w*|pag(?:e|es|ed|er|ers)|dashboards?|notic\w*|detect\w*|thresholds?|average|percentile|p9\d",
        r"complain\w*|came from customers|tickets?|status page",
    ),
    "recovery": _any(
        r"roll(?:ed|s)? ?back|restart\w*|revert\w*|access|runbook|took|suspect\w*|nothing changes?d?|registry|went into",
        r"switch\w* (?:it |them )?off|wrong|escalat\w*|cache|manual\w*|by hand|wait(?:ed|ing)|permissions?|for nothing",
    ),
}
_CAUSAL = _any(
    r"because|caus(?:e|es|ed|ing)|due to|root cause|so (?:it|they|each|every|the|that)|led to|which is why|turns? out",
    r"(?:has|have|had|with|is|was) no|no (?:time-?out|limit|alert|runbook|access)|nobody|was not|had not|did not|does not|never",
    r"instead of|went into|took|when|since|for nothing|nothing to do with|only after|never saw",
)
_CAUSE_HEADING = _any(r"causes?|why|happened|did not|went wrong|went badly|analysis|findings?|lessons?")
_IMPACT = _any(
    r"customers?|users?|shops?|sellers?|tickets?|complaints?|orders?|payments?|requests|revenue|lost|fail(?:s|ed|ing)?|errors?",
    r"error rate|affected|unavailable|down|outage|cannot|could not|abandoned|refunds?|data|uploads?|checkouts?",
)
_SPARED = re.compile(r"\bno\b[^.]{0,40}\b(?:lost|exposed|charged|affected|leaked|corrupted)\b", re.IGNORECASE)
_WELL = _any(
    r"went well|on the first try|worked (?:as|on|at)|held up|(?:was|were|had) ready|without (?:duplicates|data loss|loss)|good:",
    r"had .{0,40} ready within .{0,20}|(?:rollback|failover|backup) (?:worked|took only)",
)
_WELL_HEADING = _any(r"went well|good|worked")
_ORDER = re.compile(r"\b(?:TODO|FIXME|[Aa]ction(?: item)?s?\b:?|[Ff]ollow[- ]?up\b|must|should|needs? to|ought to)(?!\s+have\b)")
_ORDER_HEADING = _any(r"actions?|todos?|next steps?|follow[- ]?ups?")
_ORDER_MARK = re.compile(
    r"^(?:TODO|FIXME|[Aa]ction(?: item)?|[Ff]ollow[- ]?up)\b\s*(?:\(@?([\w. -]{2,40})\)|@?([\w.-]{2,30})(?=:))?\s*[:-]?\s*"
)
_OWNER = re.compile(
    r"(?i:owner:?|assigned to)\s+@?([\w.-]+)|@([\w.-]{2,30})|"
    r"^(?:[Tt]he\s+)?([\w-]+ team|[A-Z][\w-]+(?: [A-Z][\w-]+)?)\s+(?:must|should|needs? to|will)\b"
)
_SOMEBODY = "the we it they this that these those somebody someone there you i everyone nobody what who alerts clients"
_NOBODY = frozenset(_SOMEBODY.split())
_URGENT = _any(r"must|urgent\w*|asap|today|immediately|at once|before the next|p1|blocker|first thing")
_VOLUNTEER = re.compile(r"\bI(?:[’']ll| will| can)\b")
_IDLE = _any(r"nice to have|eventually|some ?day|could|consider|low prio\w*|p3|when there is time")
_LACKING = _any(r"(?:have|has|had) no")
_CLOSED = re.compile(
    r"^(?:incident )?(?:closed|resolved|all clear|over)\b|\bincident (?:is )?(?:closed|resolved|over)\b", re.IGNORECASE
)
_ABOUT_FACTS = re.compile(r"“(?!Summary|Timeline|What is not known|Postmortem)")
_OPEN = _any(r"unknown|unclear|nobody knows|don[’']t know|do not know|still open|open question|to be confirmed|tbd")


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence of the notes, with one that points back to it."""

    text: str
    time: str
    """When it was written or happened; empty where the notes do not tell."""
    speaker: str
    heading: str
    whole: str
    """All that was said at once."""


def told(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the notes in `values` tell, by the names under which chronicler and investigator are asked for it."""
    statements = read_notes(values["notes"])
    angle = values.get("angle")
    if angle not in ANGLES:
        return {
            "title": _title(values["notes"]),
            "impact": _quoting(_impact(statements)),
            "moments": list(_moments(statements))[: _MOST["moments"]],
            "went_well": _quoting([one for one in statements if _went_well(one)][: _MOST["went_well"]]),
        }
    mine = [one for one in statements if _angle(one) == angle]
    return {
        "causes": [
            {"statement": one.text, "certainty": "suspected" if hedges(one.text) else "stated", "quote": one.text}
            for one in _causes(mine, angle)
        ],
        "actions": [_action(one) for one in mine if _is_order(one)][: _MOST["actions"]],
        "unknown": [one.text for one in mine if _is_open(one)][: _MOST["unknown"]],
    }


def written(values: Mapping[str, Any], notice: str) -> dict[str, Any]:
    """What stands around the facts of a postmortem: all of it taken from the record, the critique and the comment."""
    record, critique, comment = values["record"], values.get("critique"), values.get("comment")
    # Of the points that can be counted, those about the facts: the others are answered by the quotes.
    points = [one for one in critique.get("points", []) if _ABOUT_FACTS.match(str(one))] if isinstance(critique, Mapping) else []
    ownerless = [f"Who does this: {one['action']}" for one in record.get("actions", []) if not one["owner"]]
    said = [f"Asked for by the person who decided, and not worked in: {comment}"] if comment else []
    return {
        "title": record.get("title", ""),
        "summary": record.get("summary") or _summary(record),
        "open_questions": list(
            dict.fromkeys([*(record.get("open_questions") or record.get("unknown", [])), *ownerless, *points, *said])
        ),
        "caveats": notice,
    }


@lru_cache(maxsize=8)
def read_notes(text: str) -> tuple[Statement, ...]:
    """The sentences of notes, each with when, by whom and under which heading it was said."""
    return tuple(statement for entry in _entries(text) for statement in _apart(entry))


def _entries(text: str) -> Iterator[Statement]:
    """What was said at once: an entry with a time, a list item or a paragraph."""
    heading, time, speaker = "", "", ""
    gathered: list[str] = []
    lines = text[:LIMIT_CHARACTERS].strip().splitlines()
    if lines and _is_title(lines[0]):
        heading = lines.pop(0).lstrip("# ")
    for raw in [*lines, ""]:
        line = raw.strip()
        found = _HEADING.match(line)
        stamped, named = _STAMPED.match(line), _NAME_AND_TIME.match(line)
        if gathered and (not line or found or stamped or named or _ITEM.match(line)):
            whole = " ".join(gathered)
            yield Statement(whole, time, speaker, heading, whole)
            gathered = []
            # Under a name and time of their own, what was said may hold empty lines.
            time, speaker = (time, speaker) if not line and speaker else ("", "")
        if found:
            heading, time, speaker = found[1], "", ""
        elif named:
            speaker, time = named[1], named[2]
        elif stamped:
            said = _SPEAKER.match(stamped[2])
            time, speaker = stamped[1], said[1] if said else ""
            gathered.append(said[2] if said else stamped[2])
        elif line:
            gathered.append(_ITEM.sub("", line, count=1) if _ITEM.match(line) else line)


def _apart(entry: Statement) -> Iterator[Statement]:
    held = ""
    for sentence in sentences(entry.text):
        if held and is_dangling(sentence) and not is_question(held) and not is_question(sentence):
            held = f"{held} {sentence}"
            continue
        if held:
            yield Statement(held, entry.time, entry.speaker, entry.heading, entry.whole)
        held = sentence
    if held:
        yield Statement(held, entry.time, entry.speaker, entry.heading, entry.whole)


def _title(notes: str) -> str:
    first = notes.strip().partition("\n")[0]
    return first.lstrip("# ").strip() if _is_title(first) else "An incident without a title"


def _is_title(line: str) -> bool:
    return len(line) <= 120 and not line.endswith(".") and not _STAMPED.match(line) and not _NAME_AND_TIME.match(line)


def _moments(statements: Sequence[Statement]) -> Iterator[dict[str, str]]:
    entries = dict.fromkeys((one.time, one.whole) for one in statements if one.time and not _is_order(one))
    last = max((place for place, (_, whole) in enumerate(entries) if _CLOSED.search(whole)), default=len(entries))
    for time, whole in list(entries)[: last + 1]:  # what was written after it is looking back
        # Greetings and chatter; and what was only asked.
        if len(terms(whole)) >= 3 and not all(map(is_question, sentences(whole))):
            yield {"time": time, "what": whole, "quote": whole}


def _impact(statements: Sequence[Statement]) -> list[Statement]:
    rated = []
    for place, one in enumerate(statements):
        named = "impact" in one.heading.casefold()
        hits = len({hit.casefold() for hit in _IMPACT.findall(one.text)})
        if not is_question(one.text) and (named or _SPARED.search(one.text) or (hits >= 2 and figures(one.text))):
            rated.append((hits + 2 * bool(figures(one.text)) + 4 * named, -place, one))
    rated.sort(key=lambda one: one[:2], reverse=True)
    return [one for _, _, one in sorted(rated[: _MOST["impact"]], key=lambda one: -one[1])]


def _went_well(one: Statement) -> bool:
    return not is_question(one.text) and bool(_WELL_HEADING.search(one.heading) or _WELL.search(one.text))


def _angle(one: Statement) -> str:
    """The angle whose words the statement uses most, of several the one whose words tell most; the first one without any."""
    best = max(reversed(ANGLES), key=lambda angle: _hits(one.text, angle))
    return best if _hits(one.text, best) else ANGLES[0]


def _hits(text: str, angle: str) -> int:
    return len({hit.casefold() for hit in _ANGLE_WORDS[angle].findall(text)})


def _causes(statements: Sequence[Statement], angle: str) -> list[Statement]:
    rated = []
    for place, one in enumerate(statements):
        asked = is_question(one.text) and not _LACKING.search(one.text)
        if asked or _is_order(one) or _went_well(one) or "impact" in one.heading.casefold():
            continue
        hits, causal = _hits(one.text, angle), len({hit.casefold() for hit in _CAUSAL.findall(one.text)})
        weight = hits + causal + 2 * bool(_CAUSE_HEADING.search(one.heading))
        if hits and weight >= 2:
            rated.append((weight, -place, one))
    rated.sort(key=lambda one: one[:2], reverse=True)
    best = rated[: _MOST["causes"]]
    if angle == "trigger":  # what came first
        best.sort(key=lambda one: -one[1])
    return [one for _, _, one in best]


def _is_order(one: Statement) -> bool:
    return not is_question(one.text) and bool(_ORDER.search(one.text) or _ORDER_HEADING.search(one.heading))


def _action(one: Statement) -> dict[str, str]:
    mark = _ORDER_MARK.match(one.text)
    text = one.text[mark.end() :] if mark and mark.end() < len(one.text) else one.text
    marked = (mark[1] or mark[2]) if mark else None
    named = (name for found in _OWNER.finditer(text) for name in found.groups() if name and name.casefold() not in _NOBODY)
    owner = marked or next(named, "")
    if not owner and _VOLUNTEER.search(text):
        owner = one.speaker
    priority = "high" if _URGENT.search(one.text) else "low" if _IDLE.search(one.text) else "medium"
    return {"action": capitalised(text), "owner": owner, "priority": priority, "quote": text}


def _is_open(one: Statement) -> bool:
    # In a chat most questions are answered a line later.
    return bool(_OPEN.search(one.text)) or (is_question(one.text) and not one.time)


def _quoting(statements: Sequence[Statement]) -> list[dict[str, str]]:
    return [{"statement": one.text, "quote": one.text} for one in statements]


def _summary(record: Mapping[str, Any]) -> str:
    """What of its impact has most numbers, the first of what set it off and why it spread, and how it ended."""
    moments = record.get("moments", [])
    angles = {cause["angle"]: capitalised(closed(cause["quote"])) for cause in reversed(record.get("causes", []))}
    impact = [one["quote"] for one in record.get("impact", [])]
    said = [capitalised(closed(max(impact, key=lambda quote: len(figures(quote)))))] if impact else []
    said += [angles[angle] for angle in ("trigger", "spread") if angle in angles]
    said += [f"{one['time']}: {closed(sentences(one['quote'])[0])}" for one in moments[-1:]]
    return " ".join(dict.fromkeys(said)) or "The notes hold neither times nor causes that could be recognised."
