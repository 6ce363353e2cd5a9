"""`/v1/agents/{name}/tasks`: work for one agent, without a definition of a workflow."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.models import Accepted
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, TOO_LARGE, UNSUPPORTED, documented
from functions.gateway.request_models import TaskRequest
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import IdempotencyKey, Live, Traceparent, request_key, start, tenant_of, trace_of
from shared.ids import workflow_id
from shared.runtime.requests import task_event

tasks = APIRouter(prefix="/v1/agents", tags=["agents"], route_class=StrictRoute, dependencies=[Depends(allowed("submit"))])


@tasks.post(
    "/{name}/tasks",
    status_code=202,
    response_model=Accepted,
    responses=documented(BAD_REQUEST, NOT_FOUND, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def call_agent(
    request: Request,
    live: Live,
    name: Annotated[str, Path(description="The agent.", examples=["planner"])],
    wanted: TaskRequest,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> Response:
    """Give one agent a task. It runs as a workflow of one step, `task`, and is followed, shown and cancelled like any other.

    Agents can be called this way while workflows are switched off, too.
    """
    trace = trace_of(traceparent)
    event = task_event(
        live,
        name,
        wanted.input,
        workflow=workflow_id(live.clock.now()),
        budget=wanted.budget,
        priority=wanted.priority,
        callback_url=wanted.callback_url,
        request_key=request_key(idempotency_key),
        traceparent=trace.header,
    )
    return await start(live, {**event, "tenant": tenant_of(request)}, trace)
