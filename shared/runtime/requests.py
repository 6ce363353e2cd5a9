"""A request for a workflow, or for one agent's work → the event that starts it."""

from collections.abc import Mapping
from typing import Any

from shared.errors import ConfigurationError, InputError, NotFound
from shared.messages import Budget, WorkflowRequested
from shared.runtime.wiring import Runtime
from shared.telemetry import TraceContext, current_trace
from shared.workflows import requested, requested_task


def request_event(
    live: Runtime, wanted: WorkflowRequested, *, workflow: str, request_key: str | None = None, traceparent: str | None = None
) -> dict[str, Any]:
    """The `workflow.requested` event; without a `traceparent` it belongs to the running span, else to a new trace.

    Raises InputError for a workflow that is not there or does not take the input, and for a `callback_url` that may not be called.
    """
    if not live.settings.orch_enabled:
        raise ConfigurationError("workflows are switched off; set ORCH_ENABLED=true to run them")
    definition = live.definitions.get(wanted.workflow)
    if definition is None:
        known = ", ".join(sorted(live.definitions))
        raise InputError(f"there is no workflow {wanted.workflow!r}; there are: {known}")
    check_callback(live, wanted.callback_url)
    if traceparent is None:
        traceparent = (current_trace() or TraceContext.new()).header
    return requested(
        definition,
        definitions=live.definitions,
        workflow=workflow,
        input=wanted.input,
        budget=wanted.budget,
        priority=wanted.priority,
        request_key=request_key,
        callback_url=wanted.callback_url,
        default_max_retries=live.max_retries,
        traceparent=traceparent,
    )


def check_callback(live: Runtime, url: str | None) -> None:
    """Raises InputError for an address that may not be called, as far as that can be told without asking where its name leads."""
    if url is None:
        return
    from shared.http.addresses import parse

    try:
        parse(url, live.callback_gate)
    except InputError as refusal:
        raise InputError(f"callback_url: {refusal}") from None


def task_event(
    live: Runtime,
    agent: str,
    input: Mapping[str, Any],
    *,
    workflow: str,
    budget: Budget | None = None,
    priority: int = 0,
    callback_url: str | None = None,
    request_key: str | None = None,
    traceparent: str | None = None,
) -> dict[str, Any]:
    """The `workflow.requested` event for one task of one agent. Raises NotFound for an agent that is not there, InputError.

    It does not ask whether workflows are switched on: agents can be called one at a time without them.
    """
    agents = [name for name, spec in live.functions.items() if spec.is_agent]
    if agent not in agents:
        raise NotFound(f"there is no agent {agent[:60]!r}; there are: {', '.join(agents)}")
    check_callback(live, callback_url)
    return requested_task(
        agent,
        workflow=workflow,
        input=input,
        budget=budget,
        priority=priority,
        callback_url=callback_url,
        request_key=request_key,
        default_max_retries=live.max_retries,
        traceparent=traceparent,
    )
