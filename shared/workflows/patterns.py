"""Patterns: ways of working together that take several steps.

A pattern is a pure function from a parent step and parameters to child steps. Parameters travel in the children's `item`; they are
never written into a template, where they would be evaluated.
"""

import re
from dataclasses import replace
from typing import Any

from shared.errors import InputError
from shared.workflows.planning import PLAN
from shared.workflows.stages import Child, Completed, Expanded, Parameter, Pattern, Stage
from shared.workflows.suggestions import quoted, suggestion

__all__ = ["PATTERNS", "Child", "Completed", "Expanded", "Parameter", "Pattern", "Stage", "expand"]


def expand(name: str, stage: Stage) -> Expanded | Completed:
    """What comes of a stage of pattern `name`.

    Raises InputError for a pattern that is not there or rendered values that do not fit it.
    """
    pattern = PATTERNS.get(name)
    if pattern is None:
        raise InputError(f"there is no pattern {quoted(name)}, {suggestion(name, PATTERNS, what='patterns')}")
    return pattern.expand(replace(stage, values=pattern.complete(stage.values)))


_SIDE = re.compile(r"[A-Za-z0-9_-]{1,40}")


def _rounds_objection(value: Any) -> str | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10
    return None if fits else "a whole number from 1 to 10"


def _sides_objection(value: Any) -> str | None:
    # A side becomes part of a step's id and of a look-up: these characters only.
    named = isinstance(value, list) and all(isinstance(side, str) and _SIDE.fullmatch(side) for side in value)
    fits = named and 2 <= len(value) <= 8 and len(set(value)) == len(value)
    return None if fits else "a list of 2 to 8 different names of letters, digits, _ and -"


def _debate(stage: Stage) -> Expanded:
    """Each round, one critic per side sees all arguments of the round before; then a judge sees them all."""
    parent, values = stage.step, stage.values
    subject, sides = values["subject"], values["sides"]
    children: list[Child] = []
    heard: list[dict[str, Any]] = []
    previous: list[dict[str, Any]] = []
    for number in range(1, values["rounds"] + 1):
        said = []
        for side in sides:
            child = f"{parent}/r{number}-{side}"
            item = {"subject": subject, "side": side, "round": number}
            children.append(_member(child, "critic", item, previous, parent))
            said.append({"side": side, "round": number, "argument": f"{{{{ steps.{child}.output }}}}"})
        previous = said
        heard += said
    verdict = f"{parent}/verdict"
    children.append(_member(verdict, "judge", {"subject": subject}, heard, parent))
    return Expanded(children, join=verdict)


def _member(child: str, agent: str, item: dict[str, Any], arguments: list[dict[str, Any]], parent: str) -> Child:
    template = {key: f"{{{{ item.{key} }}}}" for key in item} | {"arguments": arguments}
    needs = [f"{parent}/r{argument['round']}-{argument['side']}" for argument in arguments]
    return {"id": child, "agent": agent, "needs": needs, "spec": {"template": template, "item": item}, "uses_input": False}


PATTERNS: dict[str, Pattern] = {
    "debate": Pattern(
        name="debate",
        agents=("critic", "judge"),
        parameters={
            "subject": Parameter(lambda value: None, required=True),
            "rounds": Parameter(_rounds_objection, default=2),
            "sides": Parameter(_sides_objection, default=("for", "against")),
        },
        expand=_debate,
    ),
    "plan": PLAN,
}
"""Every pattern, by the name that a definition uses."""
