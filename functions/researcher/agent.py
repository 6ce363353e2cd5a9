"""Answers one question from the brief, the platform's documents, and pages that the brief names.

Input `{question, brief}`; output `{question, findings: [{claim, evidence, confidence}], gaps: [text]}`. The question is copied
here, not asked of the model: the writer finds the plan's section by it.
"""

from shared.runtime import Result, Task, Team


async def run(task: Task, team: Team) -> Result:
    """Ask the model, which may look things up. Raises InputError when question or brief is missing or empty."""
    answer = await team.generate()
    return Result(output={"question": task.input["question"], **answer})
