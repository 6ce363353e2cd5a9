"""Another run from any point of a workflow's history, and going on from where it failed.

A fork keeps the version of the original, its steps and its limits; what its reused steps had used is counted with the original.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import Conflict, InputError
from shared.ids import workflow_id
from shared.runtime.wiring import Runtime
from shared.state import Command
from shared.workflows import Definition, changed_input, fork_hash, reusable

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fork:
    """The wish for a fork: after which history entry (None is the last), and with which input fields changed."""

    workflow: str
    at: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


async def fork(
    live: Runtime,
    wanted: Fork,
    *,
    function: str,
    request_key: str | None = None,
    traceparent: str | None = None,
    tenant: str = "",
    held: bool = False,
) -> Command:
    """Start the fork for `tenant` and return the state's answer: `{workflow, status, created, …}`. It is durable by then.

    With `held` it waits in the queue for whoever ticks next, and nothing is published here. Raises NotFound, InputError for an
    entry or a field that is not there, Conflict when `request_key` was used for another request.
    """
    plan = await live.store.fork_plan(wanted.workflow, wanted.at)
    at = plan["seq"] if wanted.at is None else wanted.at
    if not 1 <= at <= plan["seq"]:
        raise InputError(f"{wanted.workflow} has no history entry {at}; it has entries 1 to {plan['seq']}")
    input, changed = changed_input(plan, wanted.params, _definition_of(live, plan))
    reuse = reusable(plan["steps"], changed)
    event = {
        "from": wanted.workflow,
        "at": at,
        "workflow": workflow_id(live.clock.now()),
        "input": input,
        "finished": reuse.finished,
        "expanded": reuse.expanded,
        "request_key": request_key,
        "request_hash": fork_hash(wanted.workflow, wanted.at, wanted.params),
        "traceparent": traceparent,
        "tenant": tenant,
    }
    commands = await live.store.fork(event, held=held)
    answer, *_ = await live.dispatcher(function).carry_out(commands, traceparent=traceparent)
    if answer["type"] == "conflict":
        raise Conflict("this request key was used for another request; send a new key, or the same request as before")
    fields = {"workflowId": answer["workflow"], "workflow": answer["name"], "status": answer["status"]}
    verb = "forked" if answer["created"] else "forked before"
    _log.info("workflow %s %s, %d of its steps reused", wanted.workflow, verb, len(reuse.finished), extra=fields)
    return answer


def _definition_of(live: Runtime, plan: Mapping[str, Any]) -> Definition | None:
    """The definition that the workflow was started from, where it is still here."""
    definition = live.definitions.get(plan["workflow"])
    return definition if definition is not None and definition.version == plan["version"] else None


async def rerun(
    live: Runtime, workflow: str, *, function: str, step: str | None = None, request_key: str | None = None, held: bool = False
) -> Command:
    """Let a workflow that failed go on from the step that failed it, which `step` may name to be sure.

    Returns the state's answer: `rerun` (`{workflow, status, created}`), or `refused` (`{reason}`). With `held` see `fork`.
    Raises NotFound.
    """
    commands = await live.store.rerun(workflow, step=step, request_key=request_key, held=held)
    answer, *_ = await live.dispatcher(function).carry_out(commands)
    _log.info("workflow rerun" if answer["type"] == "rerun" else "rerun refused", extra={"workflowId": workflow})
    return answer
