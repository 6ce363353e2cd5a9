"""Puts a report together from what a plan, findings, a draft and a verdict hold. Every sentence stands in it once."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from shared.ai.offline.document import Document
from shared.ai.offline.language import closed

NOTICE = (
    "Written offline by the extractive model: statements are taken word for word from the material, nothing was added. "
    "Set GEMINI_API_KEY to have the report written."
)
"""What ends every text that the offline model puts together for people."""

OPEN_QUESTIONS = "Open questions"
OPEN_POINTS = "Open points"


def compose(material: Mapping[str, Any], document: Document, title: str, *, notice: str = NOTICE) -> str:
    """A Markdown report: a revised draft where there is one, else plan and findings, else the text's own sections.

    It ends with `notice`, which says who wrote it.
    """
    draft, plan = _mapping(material.get("draft")), _mapping(material.get("plan"))
    if isinstance(draft.get("text"), str) and draft["text"].strip():
        body = _revised(without_notice(draft["text"], notice), _mapping(material.get("verdict")))
    elif plan or _mappings(material.get("findings")):
        body = _drafted(plan, _mappings(material.get("findings")), title)
    else:
        body = _sectioned(document, title)
    return f"{body}\n\n---\n\n*{notice}*\n"


def without_notice(text: str, notice: str = NOTICE) -> str:
    """`text` without the notice that an earlier step put under it."""
    return re.sub(rf"\n*(?:---\n+)?\*?{re.escape(notice)}\*?\s*$", "", text)


def _drafted(plan: Mapping[str, Any], findings: Sequence[Mapping[str, Any]], title: str) -> str:
    summary = str(plan.get("summary") or "").strip()
    headings = _headings(plan)
    said = {_key(line) for line in summary.splitlines()}
    parts = [f"# {title}"] + ([summary] if summary else [])
    gaps: list[str] = []
    for place, found in enumerate(findings):
        question = str(found.get("question") or "")
        heading = headings.get(question) or question or f"Finding {place + 1}"
        claims = [one for one in _mappings(found.get("findings")) if str(one.get("claim") or "").strip()]
        fresh = [one for one in claims if _key(str(one["claim"])) not in said and not _contained(str(one["claim"]), summary)]
        said.update(_key(str(one["claim"])) for one in fresh)
        lines = _bullets(_claim(one) for one in fresh)
        missing = _strings(found.get("gaps"))
        gaps.extend(missing)
        # What the summary answers, and what only leads to further questions, needs no section of its own.
        if lines or not (claims or missing):
            parts.append(f"## {heading}\n\n{lines or 'The material says nothing about this.'}")
    if gaps:
        parts.append(f"## {OPEN_QUESTIONS}\n\n{_bullets(_unique(gaps))}")
    return "\n\n".join(parts)


def _revised(draft: str, verdict: Mapping[str, Any]) -> str:
    """The draft with its open questions and the verdict's changes gathered into one list, and the verdict at its end."""
    body, asked = _split_off(draft.strip(), OPEN_QUESTIONS)
    changes = _strings(verdict.get("changes"))
    points = _unique([*asked, *(change for change in changes if not any(_contained(question, change) for question in asked))])
    parts = [body] + ([f"## {OPEN_POINTS}\n\n{_bullets(points)}"] if points else [])
    if verdict:
        parts.append("\n\n".join(["## Verdict", *_verdict(verdict, said=points)]))
    return "\n\n".join(parts)


def _verdict(verdict: Mapping[str, Any], said: Sequence[str]) -> Iterator[str]:
    scores = _mapping(verdict.get("scores"))
    winner = verdict.get("winner")
    outcome = {
        "for": "The debate went in favour of the report",
        "against": "The debate went against the report; the open points above come first",
        "tie": "The debate ended in a tie",
    }.get(str(winner), f"The debate was won by “{winner}”" if winner else "The debate ended without a winner")
    # In an order of their own: a verdict comes from the state, which keeps none.
    listed = sorted(scores, key=lambda side: (side not in ("for", "against"), side == "against", side))
    rated = f" ({', '.join(f'{_number(scores[side])} {side}' for side in listed)})" if scores else ""
    yield f"{outcome}{rated}."
    known = {_key(point) for point in said}
    reasons = [reason for reason in _strings(verdict.get("reasons")) if _key(reason) not in known]
    reasons = [reason for reason in reasons if not any(_contained(point, reason) for point in said)]
    if reasons:
        yield "What decided it:"
        yield _bullets(reasons)
    dissent = str(verdict.get("dissent") or "")
    if dissent and (_key(dissent) in known or any(_contained(point, dissent) for point in said)):
        yield f"What the other side was right about stands under “{OPEN_POINTS}”."
    elif dissent and dissent not in reasons:
        yield f"What the other side was right about: {dissent}"


def _sectioned(document: Document, title: str) -> str:
    """The sections of a text, each reduced to what weighs most."""
    parts = [f"# {title}"]
    for heading, units in document.sections.items():
        best = sorted(sorted(units, key=lambda unit: -unit.weight)[:4], key=lambda unit: unit.index)
        section = _bullets(unit.text for unit in best)
        parts.append(f"## {heading}\n\n{section}" if heading and heading != title else section)
    return "\n\n".join(parts)


def _headings(plan: Mapping[str, Any]) -> dict[str, str]:
    """Question → the heading that the plan gives it."""
    questions, sections = plan.get("questions"), plan.get("sections")
    if isinstance(questions, list) and isinstance(sections, list) and len(questions) == len(sections):
        return {str(question): str(section) for question, section in zip(questions, sections, strict=True)}
    return {}


def _claim(finding: Mapping[str, Any]) -> str:
    claim = closed(str(finding["claim"]).strip())
    confidence = finding.get("confidence")
    return f"{claim} *(uncertain)*" if isinstance(confidence, int | float) and confidence < 0.5 else claim


def _split_off(text: str, heading: str) -> tuple[str, list[str]]:
    """`text` without the section `heading`, and that section's list items."""
    found = re.search(rf"^## {re.escape(heading)}\s*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if found is None:
        return text, []
    items = [line.strip()[2:].strip() for line in found[1].splitlines() if line.strip().startswith(("- ", "* "))]
    return (text[: found.start()] + text[found.end() :]).strip(), items


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _contained(part: str, whole: str) -> bool:
    return bool(_key(part)) and _key(part) in _key(whole)


def _key(text: str) -> str:
    """What makes two sentences the same: their words."""
    return re.sub(r"\W+", " ", text).casefold().strip()


def _unique(lines: Iterable[str]) -> list[str]:
    found: dict[str, str] = {}
    for line in lines:
        found.setdefault(_key(line), line)
    return list(found.values())


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else str(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _strings(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []
