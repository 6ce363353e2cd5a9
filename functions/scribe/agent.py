"""Writes a blameless postmortem, and revises it after a critique or a person's decision.

Input `{timeline, causes}` (what chronicler and investigators found), `{draft, critique}`, or `{draft, decision}`. Output: the
record `{title, service, severity, impact, moments, causes, went_well, actions}` with `summary`, `open_questions`, `caveats` and
`text`, the whole postmortem in Markdown. The model words what stands around the facts; the facts themselves are put in from the
record, with their quotes.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from functions.scribe.postmortem import postmortem
from shared.runtime import InputError, Result, Task, Team

_PRIORITIES = ("high", "medium", "low")


async def run(task: Task, team: Team) -> Result:
    """Ask the model once, or not at all where there is nothing to revise. Raises InputError when timeline or draft are missing."""
    given = task.input if isinstance(task.input, Mapping) else {}
    if "draft" not in given:
        return await _written(team, _record(given), critique={}, comment="")
    draft = given["draft"]
    if not isinstance(draft, Mapping) or not isinstance(draft.get("text"), str):
        raise InputError("the draft to revise holds no text; give what the scribe wrote before")
    if given.get("critique") is not None:
        return await _written(team, draft, critique=given["critique"], comment="")
    decision = given.get("decision") or {}
    if decision.get("value") is not None:
        if not isinstance(decision["value"], str):
            raise InputError("what the person wants instead is no text; amend with the postmortem's Markdown as a JSON string")
        return Result(output={**draft, "text": decision["value"]})
    if decision.get("comment"):
        return await _written(team, draft, critique={}, comment=decision["comment"])
    return Result(output=draft)


async def _written(team: Team, record: Mapping[str, Any], *, critique: Any, comment: str) -> Result:
    known = {name: value for name, value in record.items() if name != "text"}
    answer = await team.generate(values={"record": known, "critique": critique, "comment": comment})
    whole = {**known, **answer}
    return Result(output={**whole, "text": postmortem(whole)})


def _record(given: Mapping[str, Any]) -> dict[str, Any]:
    timeline, found = given.get("timeline"), given.get("causes")
    if not isinstance(timeline, Mapping) or not isinstance(found, list):
        raise InputError("timeline and causes are missing; give what chronicler and investigators found, or a draft to revise")
    # An angle whose investigation failed and was let go found nothing.
    angles: list[Mapping[str, Any]] = [one for one in found if isinstance(one, Mapping)]
    actions = _once((action for one in angles for action in one["actions"]), "action")
    return {
        **{name: timeline[name] for name in ("title", "service", "severity", "impact", "moments", "went_well")},
        "causes": [{"angle": one["angle"], **cause} for one in angles for cause in one["causes"]],
        "actions": sorted(actions, key=lambda action: _PRIORITIES.index(action["priority"])),
        "unknown": list(dict.fromkeys(text for one in angles for text in one["unknown"])),
    }


def _once(found: Iterable[Mapping[str, Any]], name: str) -> Sequence[Mapping[str, Any]]:
    """Each of `found` once: several angles may come to the same."""
    return list({" ".join(one[name].casefold().split()): one for one in reversed(list(found))}.values())[::-1]
