"""Pausing a workflow, and letting it go on."""

from typing import Any

from shared.errors import Conflict, NotFound
from shared.runtime.wiring import Runtime
from shared.state import Command


async def pause(live: Runtime, workflow: str, *, by: str, reason: str, function: str) -> Command:
    """Start nothing more of a workflow: `{status, paused_at, paused_by}`. Raises NotFound, Conflict where it has ended."""
    return await _tell(live, "workflow.paused", workflow, function, by=by, reason=reason)


async def resume(live: Runtime, workflow: str, *, by: str, reason: str, function: str) -> Command:
    """Let a paused workflow go on: `{status}`; one that is not paused stays as it is. Raises as `pause`."""
    return await _tell(live, "workflow.unpaused", workflow, function, by=by, reason=reason)


async def _tell(live: Runtime, kind: str, workflow: str, function: str, **more: Any) -> Command:
    (answer, *_) = await live.dispatcher(function).apply([{"type": kind, "workflow": workflow, **more}])
    if answer["type"] == "ignored":
        raise NotFound(f"there is no workflow {workflow}")
    if answer["type"] == "refused":
        raise Conflict(answer["reason"])
    return answer
