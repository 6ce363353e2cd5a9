"""Answers one question from the brief, the platform's documents, and pages that the brief names.

Input `{question, brief}`; output `{question, findings: [{claim, evidence, confidence}], gaps: [text]}`. Outputs of the steps that
it needs are read with the brief. The question is copied here, not asked of the model: the writer finds the plan's section by it.
"""

import json
from collections.abc import Mapping
from typing import Any

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model, which may look things up. Raises InputError when question or brief is missing or empty."""
    answer = await team.generate(values=_with_upstream(task.input, task.upstream))
    return Result(output={"question": task.input["question"], **answer})


def _with_upstream(given: Any, upstream: Mapping[str, Any]) -> Any:
    heard = {step: output for step, output in upstream.items() if output is not None}
    if not heard or not isinstance(given, Mapping) or not isinstance(given.get("brief"), str):
        return given  # the prompt's input schema refuses what is wrong by name
    return {**given, "brief": f"{given['brief']}\n\n{json.dumps(heard, ensure_ascii=False, indent=1)}"}
