"""Deciding where values are stored apart: what is looked into is read first, what comes out large is kept apart.

The decisions themselves stay pure: they are made again with the values in place that they asked for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from shared.errors import InputError, Permanent
from shared.messages import StepDispatched
from shared.outputs import Outputs
from shared.references import Unopened, references, replaced
from shared.state import Command, Event
from shared.workflows import decide, render_output

_Decision = TypeVar("_Decision")
_DATA = ("input", "item", "state")
"""What a child's spec holds as data; the rest are templates."""


async def decided(command: Command, outputs: Outputs, *, switched_off: Mapping[str, str]) -> StepDispatched | Event:
    """What `decide` makes of a `dispatch` command; large data of an event are kept apart. Errors as `Outputs.read` and `.keep`."""
    decision = await _opened(partial(decide, switched_off=switched_off), command, outputs)
    if isinstance(decision, StepDispatched) or not outputs.opened:
        return decision
    if "output" in decision:
        decision["output"] = await outputs.keep_parts(decision["output"])
    known: dict[int, Any] = {}
    for child in decision.get("children", ()):
        spec = child["spec"]
        child["spec"] = spec | {name: await outputs.keep_parts(spec[name], known) for name in _DATA if name in spec}
    return decision


async def rendered(command: Command, outputs: Outputs) -> Event:
    """What `render_output` makes of a `render` command; a large output is kept apart."""
    try:
        event = await _opened(render_output, command, outputs)
        if "output" in event:
            event["output"] = await outputs.keep_parts(event["output"])
    except Permanent as error:
        failure = {"type": error.code, "message": str(error)[:2000]}
        return {"type": "workflow.failed", "workflow": command["workflow"], "error": failure}
    return event


async def output_of_message(output: Any, outputs: Outputs, *, max_bytes: int) -> Any:
    """A workflow's output whole. Raises InputError for one that no message of `max_bytes` holds, before it is read."""
    size = sum(one.size_bytes for one in references(output))
    if size > max_bytes:
        raise InputError(f"its {size} bytes are over the {max_bytes} of MAX_PAYLOAD_BYTES")
    return await outputs.whole(output)


async def _opened(decision: Callable[[Command], _Decision], command: Command, outputs: Outputs) -> _Decision:
    while True:
        try:
            return decision(command)
        except Unopened as missing:
            command = replaced(command, await outputs.load(missing.references))
