"""What the simulated model says: extracted from the prompt itself by the offline model's pieces, the same every time.

A prompt of the team holds its input between `<untrusted>` and `</untrusted>`, each on a line of its own. What such a part is
follows from the paragraph before it, so that a plan is read as a plan and a draft as a draft. Any other prompt is one text.
"""

import re
from typing import Any, Final

import orjson

from shared.ai.offline.fill import fill
from shared.ai.offline.language import closed
from shared.ai.offline.material import Material
from shared.local.simulator.asked import Asked
from shared.local.simulator.schemas import plain

NOTICE: Final = (
    "Written by a simulated Gemini: statements are taken word for word from the input, and nobody thought about them. "
    "Leave out --simulate and set GEMINI_API_KEY to have it written."
)
"""What ends every text that is put together for people."""
BAD_OUTPUT: Final = 'Here is the JSON that you asked for:\n```json\n{"result": '
"""Not the JSON that anybody asked for."""
_PART: Final = re.compile(r"^<untrusted>\n(.*?)\n?^</untrusted>$", re.MULTILINE | re.DOTALL)
_NAMED: Final = {
    "question": "question",
    "brief": "brief",
    "plan": "plan",
    "findings": "findings",
    "draft": "draft",
    "verdict": "verdict",
    "ticket": "ticket",
    "decided": "decision",
    "arguments": "arguments",
    "said": "arguments",
    "side": "side",
    "sides": "sides",
    "rubric": "rubric",
    "text": "subject",
    "goal": "goal",
    "material": "material",
    "agents": "agents",
    "previous": "plan",
    "errors": "errors",
    "notes": "notes",
    "service": "service",
    "severity": "severity",
    "moments": "moments",
    "record": "record",
    "critique": "critique",
    "comment": "comment",
    "path": "path",
    "patch": "patch",
    "author": "about",
    "guidelines": "guidelines",
    "changed": "changed",
}
"""A word that says what a part is → what the team calls it."""
_ROUND: Final = re.compile(r"^This is round (\d{1,3})\.", re.MULTILINE)
_MOST_STEPS: Final = re.compile(r"^Plan as few steps as reach the goal, (\d{1,6}) at most\.", re.MULTILINE)
_ANGLE: Final = re.compile(r"^You look at: ([a-z]+)\.$", re.MULTILINE)


def read(prompt: str) -> Material:
    """What the prompt is about."""
    values: dict[str, Any] = {}
    end = 0
    for part in _PART.finditer(prompt):
        values[_name(prompt[end : part.start()], len(values))] = _value(part[1])
        end = part.end()
    if not values:
        return Material({"prompt": prompt}, prompt, notice=NOTICE)
    number = _ROUND.search(prompt)
    if number is not None:
        values["round"] = int(number[1])
    most = _MOST_STEPS.search(prompt)
    if most is not None:
        values["max_steps"] = int(most[1])
    angle = _ANGLE.search(prompt)
    if angle is not None:
        values["angle"] = angle[1]
    return Material(values, prompt, notice=NOTICE)


def write(asked: Asked, material: Material) -> str:
    """The text of the answer: JSON for the schema that was asked for, else what the prompt's own text says about it."""
    if asked.schema is not None:
        filled = fill(plain(asked.schema), material)
        return filled if isinstance(filled, str) and not asked.as_json else orjson.dumps(filled).decode()
    said = " ".join(closed(unit.text) for unit, _ in material.relevant) or "The prompt says nothing."
    return orjson.dumps({"answer": said}).decode() if asked.as_json else f"{said}\n\n{NOTICE}"


def _name(before: str, place: int) -> str:
    paragraph = before.strip().rpartition("\n\n")[2].lower()
    return next((_NAMED[word] for word in re.findall(r"[a-z]+", paragraph) if word in _NAMED), f"text{place}")


def _value(text: str) -> Any:
    """Objects and lists travel as JSON, texts as they are."""
    if text[:1] not in ("{", "["):
        return text
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
