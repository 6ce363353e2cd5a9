"""What the agents of the team can do, for those that plan with them: from their folders alone."""

from collections.abc import Collection
from functools import cache
from typing import Any

from shared.ai import load_prompt
from shared.errors import InputError
from shared.runtime.spec import FUNCTIONS, load_functions


def colleagues(names: Collection[str] | None = None) -> list[dict[str, Any]]:
    """Of each agent in `names`, or of all: `agent`, what it `does`, and as JSON Schema what it `takes` (null: anything).

    That is the `input` of its function.yaml, or of its prompt where its code makes nothing else of it. Reads files when it is first
    called. Raises InputError for an agent that is not there.
    """
    known = _known()
    asked = known if names is None else names
    missing = next((name for name in asked if name not in known), None)
    if missing is not None:
        raise InputError(f"there is no agent {missing[:60]!r}; there are: {', '.join(known)}")
    return [known[name] for name in asked]


@cache
def _known() -> dict[str, dict[str, Any]]:
    agents = {name: spec for name, spec in load_functions().items() if spec.is_agent}
    return {name: {"agent": name, "does": spec.description, "takes": _takes(name, spec.input)} for name, spec in agents.items()}


def _takes(name: str, declared: dict[str, Any] | None) -> Any:
    prompt = FUNCTIONS / name / "prompt.md"
    if declared is not None or not prompt.exists():
        return declared
    return load_prompt(prompt).input_schema
