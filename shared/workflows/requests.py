"""What somebody wants → the event for `advance`: a definition or one agent and an input start a workflow, a signal moves it."""

import hashlib
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import orjson

from shared.errors import InputError
from shared.messages import Budget, WorkflowSignalled
from shared.references import refuse_reserved
from shared.workflows.definitions import Definition, Step, budget_problems
from shared.workflows.suggestions import quoted, suggestion

TASK_STEP: Final = "task"
"""The only step of a workflow that is one agent's task."""
TASK_BUDGET: Final = Budget(max_steps=50, max_tokens=200_000, max_cost_usd=1.0, deadline_seconds=3600)
"""Of one agent's task: no definition says what is too much for it."""
# In JSON text an escaped backslash before u0000 is not a NUL.
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def requested(
    definition: Definition,
    *,
    workflow: str,
    input: Mapping[str, Any],
    default_max_retries: int,
    definitions: Mapping[str, Definition] = MappingProxyType({}),
    budget: Budget | None = None,
    priority: int = 0,
    request_key: str | None = None,
    callback_url: str | None = None,
    traceparent: str | None = None,
) -> dict[str, Any]:
    """The `workflow.requested` event for one run of `definition`, known as `workflow`.

    `definitions` has those that it nests, by name; the run keeps them as they are now. Limits given in `budget` replace the
    definition's. `request_hash` tells whether two requests with the same `request_key` ask for the same: it covers what the caller
    gave, so that a default that changes between them makes no difference.

    Raises InputError for an input that the definition does not take or that cannot be stored, and for a budget beyond measure.
    """
    complete = definition.check_input(input)
    own = {} if budget is None else budget.model_dump(exclude_none=True)
    return {
        "type": "workflow.requested",
        "workflow": workflow,
        "request_key": request_key,
        "request_hash": _request_hash(definition.name, input, own, priority, callback_url),
        "name": definition.name,
        "version": definition.version,
        "input": complete,
        "output": definition.output_template,
        "output_needs": list(definition.output_needs),
        "output_uses_input": definition.output_uses_input,
        **_limits(definition.budget, own),
        "priority": priority,
        "callback_url": callback_url,
        "traceparent": traceparent,
        "steps": [_step(step, default_max_retries, definitions) for step in definition.steps],
    }


def requested_task(
    agent: str,
    *,
    workflow: str,
    input: Mapping[str, Any],
    default_max_retries: int,
    budget: Budget | None = None,
    priority: int = 0,
    request_key: str | None = None,
    callback_url: str | None = None,
    traceparent: str | None = None,
) -> dict[str, Any]:
    """The `workflow.requested` event for a workflow of one step: `agent` takes `input` literally, and its output is the workflow's.

    The workflow bears the agent's name. Limits given in `budget` replace those of `TASK_BUDGET`. Raises InputError as `requested`.
    """
    own = {} if budget is None else budget.model_dump(exclude_none=True)
    step = _step(Step(id=TASK_STEP, agent=agent), default_max_retries, {})
    return {
        "type": "workflow.requested",
        "workflow": workflow,
        "request_key": request_key,
        "request_hash": _request_hash(f"agent:{agent}", input, own, priority, callback_url),
        "name": agent,
        "version": 1,
        "input": dict(input),
        "output": f"{{{{ steps.{TASK_STEP}.output }}}}",
        "output_needs": [TASK_STEP],
        "output_uses_input": False,
        **_limits(TASK_BUDGET, own),
        "priority": priority,
        "callback_url": callback_url,
        "traceparent": traceparent,
        "steps": [{**step, "spec": {"input": dict(input)}}],
    }


def _limits(budget: Budget, own: dict[str, Any]) -> dict[str, Any]:
    limits = budget.model_copy(update=own)
    reasons = [reason for _, reason in budget_problems(limits)]
    if reasons:
        raise InputError("; ".join(reasons))
    cost = limits.max_cost_usd
    return {
        "max_steps": limits.max_steps,
        "max_tokens": limits.max_tokens,
        "max_cost_microdollars": None if cost is None else round(cost * 1_000_000),
        "deadline_seconds": limits.deadline_seconds,
    }


def fork_hash(workflow: str, at: int | None, params: Mapping[str, Any]) -> str:
    """What tells whether two requests for a fork ask for the same. Raises InputError for a value that cannot be stored."""
    return _request_hash(workflow, params, {"at": at}, 0, None)


def signal_event(payload: WorkflowSignalled, *, signal: str, later: bool = False) -> dict[str, Any]:
    """The `step.signalled` event; `signal` is what makes its repetition recognisable.

    `later` is for callers that cannot publish what comes of it: whoever sends the next tick does. Raises InputError for data that
    cannot be stored.
    """
    event = {"type": "step.signalled", "signal": signal, **payload.model_dump(mode="json", exclude_defaults=True)}
    _canonical(event, f"the signal {payload.name}")
    return {**event, "later": True} if later else event


def _request_hash(name: str, input: Mapping[str, Any], budget: dict[str, Any], priority: int, callback_url: str | None) -> str:
    # Requests that were made before there were callbacks keep their hash.
    asked = [name, input, budget, priority, *([] if callback_url is None else [callback_url])]
    return hashlib.sha256(_canonical(asked, f"input of {name}")).hexdigest()


def _canonical(value: Any, what: str) -> bytes:
    try:
        canonical = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as exc:
        raise InputError(f"{what} cannot be written as JSON; send text, numbers, booleans, null, lists and objects") from exc
    refuse_reserved(canonical, what)
    if _NUL.search(canonical):
        # PostgreSQL's jsonb has no NUL, and one such event would fail the whole batch.
        raise InputError(f"{what} holds a NUL character, which cannot be stored; remove it")
    return canonical


def _step(step: Step, default_max_retries: int, definitions: Mapping[str, Definition]) -> dict[str, Any]:
    spec = step.spec
    if step.workflow is not None:
        spec = {**spec, "workflow": _embedded(step.workflow, default_max_retries, definitions)}
    return {
        "id": step.id,
        "agent": step.kind,
        "needs": list(step.needs),
        "spec": spec,
        "signal": step.signal,
        "uses_input": step.uses_input,
        "max_retries": default_max_retries if step.max_retries is None else step.max_retries,
        "timeout_seconds": step.timeout_seconds,
        "on_failure": step.on_failure,
    }


def _embedded(name: str, default_max_retries: int, definitions: Mapping[str, Definition]) -> dict[str, Any]:
    """A nested definition as its step carries it, with those that it nests itself. That this ends is checked when it is loaded."""
    nested = definitions.get(name)
    if nested is None:
        raise InputError(f"there is no workflow {quoted(name)} to nest, {suggestion(name, definitions, what='workflows')}")
    return {
        "name": name,
        "version": nested.version,
        "input": {field: declared.model_dump() for field, declared in nested.input.items()},
        "steps": [_step(step, default_max_retries, definitions) for step in nested.steps],
        "output": nested.output_template,
    }
