"""What becomes of an attempt on the bus: its result, or why there is none, and what it has spent either way."""

from datetime import timedelta
from typing import Any, Final

import orjson
from pydantic import ValidationError

from shared.ai.budget import WorkflowAccount
from shared.clock import Clock
from shared.errors import AgentTeamError, InputError, OutputInvalid, Permanent, RateLimited, Transient
from shared.messages import ErrorInfo, Payload, PromptUsed, StepCompleted, StepDeferred, StepDispatched, StepFailed
from shared.outputs import Outputs
from shared.references import refuse_reserved
from shared.runtime.contract import Result

_LONGEST_WAIT_SECONDS: Final = 7 * 86_400.0


async def completed(
    order: StepDispatched, result: Result, account: WorkflowAccount, outputs: Outputs, prompts: tuple[PromptUsed, ...] = ()
) -> StepCompleted:
    """The answer of an attempt that gave `result`; what is large of it is kept apart.

    Raises OutputInvalid when that is none, or cannot be sent, and StoreUnavailable when it cannot be kept now.
    """
    if not isinstance(result, Result):
        raise OutputInvalid(f"agent {order.agent} returned {type(result).__name__}; return shared.runtime.Result(output=…)")
    try:
        encoded = orjson.dumps(result.output)
        reply = StepCompleted(
            workflow=order.workflow,
            step=order.step,
            attempt=order.attempt,
            output=result.output,
            usage=account.usage,
            models=account.models,
            prompts=prompts,
            spawn=result.spawn,
            join=result.join,
        )
        for one in (encoded, *(orjson.dumps(child.input) for child in reply.spawn)):
            refuse_reserved(one, "what it returned")
        output = await outputs.keep(result.output, encoded=encoded)
        spawn = [child.model_copy(update={"input": await outputs.keep(child.input)}) for child in reply.spawn]
        return reply.model_copy(update={"output": output, "spawn": tuple(spawn)})
    except InputError as error:
        raise OutputInvalid(f"agent {order.agent}: {error}") from error
    except TypeError as error:
        raise OutputInvalid(f"agent {order.agent} returned what is not JSON: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise OutputInvalid(f"agent {order.agent} returned a Result whose {place} is wrong ({first['type']})") from None


def unfinished(
    order: StepDispatched, error: Exception, account: WorkflowAccount, clock: Clock, prompts: tuple[PromptUsed, ...] = ()
) -> tuple[str, Payload]:
    """The answer of an attempt that gave no result, after the word for how it ended: deferred or failed."""
    about: dict[str, Any] = {
        "workflow": order.workflow,
        "step": order.step,
        "attempt": order.attempt,
        "usage": account.usage,
        "models": account.models,
        "prompts": prompts,
    }
    retry_after = _bounded(error.retry_after_seconds) if isinstance(error, Transient) else None
    if isinstance(error, RateLimited) and retry_after is not None:
        not_before = clock.now() + timedelta(seconds=retry_after)
        return "deferred", StepDeferred(**about, deferrals=order.deferrals, not_before=not_before)
    # What an unknown exception says may be a payload or a secret; its class says enough to look it up in the log.
    known = isinstance(error, AgentTeamError)
    info = ErrorInfo(type=type(error).__name__[:100], message=(str(error) if known else "unexpected error; see the log")[:2000])
    return "failed", StepFailed(**about, error=info, permanent=isinstance(error, Permanent), retry_after_seconds=retry_after)


def _bounded(seconds: float | None) -> float | None:
    # It may be what a server said, and whatever that was, the step's failure must be told.
    return None if seconds is None else min(max(seconds, 0.0), _LONGEST_WAIT_SECONDS)
