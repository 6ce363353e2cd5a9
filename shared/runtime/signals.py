"""Telling a step that waits: an approval's decision, a signal, a word that wakes a pause before its time."""

from typing import Literal, cast

from shared.errors import Conflict, InputError, NotFound
from shared.messages import WorkflowSignalled
from shared.runtime.wiring import Runtime
from shared.workflows import signal_event

Outcome = Literal["woken", "kept"]


class Unfit(InputError):
    """A decision where none is waited for, or none where one is: nobody can tell without the workflow."""


async def send_signal(
    live: Runtime, payload: WorkflowSignalled, *, source: str, signal: str, later: bool = False
) -> tuple[Outcome, str]:
    """Write a signal down and move what waits for it; say what became of it, and the workflow's status.

    The same `signal` again changes nothing. With `later` the next tick moves the step, wherever that is sent. Raises NotFound where
    there is no such workflow or no step of it could ever take the signal, Conflict where what it is about was settled before, and
    Unfit where it is not what the step waits for.
    """
    (answer, *_) = await live.dispatcher(source).apply([signal_event(payload, signal=signal, later=later)])
    if answer["type"] == "ignored":
        raise NotFound(f"there is no workflow {payload.workflow}")
    if answer["type"] == "refused":
        raise _REFUSALS[answer["problem"]](answer["reason"])
    return cast("Outcome", answer["outcome"]), answer["status"]


_REFUSALS = {"unknown": NotFound, "ended": Conflict, "unfit": Unfit}
