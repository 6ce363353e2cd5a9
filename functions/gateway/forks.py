"""`/v1/workflows/{id}/fork` and `/rerun`: another run from any point of a workflow's history, and going on from where it failed."""

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.models import Accepted
from functions.gateway.problems import (
    BAD_REQUEST,
    CONFLICT,
    INVALID,
    NOT_FOUND,
    TOO_LARGE,
    UNSUPPORTED,
    documented,
    problem,
    switched_off,
)
from functions.gateway.request_models import ForkRequest, RerunRequest
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import PATH, Id, IdempotencyKey, Live, Traceparent, accepted, request_key, tenant_of, trace_of
from shared.runtime.travel import Fork, fork, rerun
from shared.telemetry import use_trace

forks = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("submit"))])


@forks.post(
    "/{id}/fork",
    status_code=202,
    response_model=Accepted,
    responses=documented(BAD_REQUEST, NOT_FOUND, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def fork_workflow(
    request: Request,
    live: Live,
    id: Id,
    wanted: ForkRequest | None = None,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> Response:
    """Start a workflow that reuses what this one had finished by entry `at` of its history.

    With `params` it reuses only what the changed input fields had no part in. Reused steps call no model, and show `reused` and no
    usage. The answer's links are the new workflow's.
    """
    if not live.settings.orch_enabled:
        return switched_off()
    given = ForkRequest() if wanted is None else wanted
    trace = trace_of(traceparent)
    with use_trace(trace):
        answer = await fork(
            live,
            Fork(id, given.at, given.params),
            function="gateway",
            request_key=request_key(idempotency_key),
            traceparent=trace.header,
            tenant=tenant_of(request),
        )
    return accepted(answer["workflow"], answer["status"])


@forks.post(
    "/{id}/rerun",
    status_code=202,
    response_model=Accepted,
    responses=documented(BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def rerun_workflow(
    live: Live, id: Id, wanted: RerunRequest | None = None, idempotency_key: IdempotencyKey = None
) -> Response:
    """Let a workflow that failed go on from the step that failed it, with all its retries. 409 for one that did not fail in a step.

    Asked again while it goes on, nothing more happens. To ask again safely however it ends, send an `Idempotency-Key`.
    """
    if not live.settings.orch_enabled:
        return switched_off()
    answer = await rerun(
        live,
        id,
        function="gateway",
        step=None if wanted is None else wanted.step,
        request_key=request_key(idempotency_key),
    )
    if answer["type"] == "refused":
        return problem(CONFLICT, f"workflow {id} cannot be rerun: {answer['reason']}")
    return accepted(id, answer["status"])
