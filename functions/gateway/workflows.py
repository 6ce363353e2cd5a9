"""`/v1/workflows`: start, list, show, follow and cancel workflows."""

import logging
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.models import (
    Accepted,
    CancelRequest,
    HistoryPage,
    SubmitRequest,
    Workflow,
    WorkflowPage,
    WorkflowStatus,
)
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, SWITCHED_OFF, TOO_LARGE, documented, problem
from functions.gateway.strict import StrictRoute
from shared.errors import Conflict, NotFound
from shared.ids import workflow_id
from shared.messages.payloads import Name, WorkflowId
from shared.runtime import Runtime
from shared.runtime.requests import request_event
from shared.telemetry import TraceContext, use_trace

_log = logging.getLogger(__name__)
PATH = "/v1/workflows"
_ID = TypeAdapter[str](WorkflowId)
MAX_SEQ = 2**31 - 1

workflows = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute)


async def _live(request: Request) -> Runtime:
    return cast("Runtime", request.app.state.live)


async def _known_form(id: Annotated[str, Path(description="`wf_` and a ULID.", examples=["wf_01KB3Q8ZJ5W3N0V7T4R2M6X9CD"])]) -> str:
    try:
        return _ID.validate_python(id)
    except ValidationError:
        raise NotFound("there is no such workflow; an id is wf_ and 26 letters and digits") from None


Live = Annotated[Runtime, Depends(_live)]
Id = Annotated[str, Depends(_known_form)]


@workflows.post("", status_code=202, response_model=Accepted, responses=documented(BAD_REQUEST, TOO_LARGE, INVALID))
async def submit(
    live: Live,
    wanted: SubmitRequest,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[\x21-\x7e]+$",
            max_length=255,
            description="Visible ASCII. The same key with the same body starts one workflow, however often it is sent.",
            examples=["order-4711"],
        ),
    ] = None,
    traceparent: Annotated[str | None, Header(description="W3C Trace Context; a new trace begins without a valid one.")] = None,
) -> Response:
    """Start a workflow. It is durable by the time of the answer, and goes on whatever happens to this instance."""
    if not live.settings.orch_enabled:
        return problem(SWITCHED_OFF, "workflows are switched off here; the operator can set ORCH_ENABLED=true")
    trace = TraceContext.parse(traceparent)
    if trace is None:
        trace = TraceContext.new()
    event = request_event(
        live,
        wanted,
        workflow=workflow_id(live.clock.now()),
        request_key=None if idempotency_key is None else f"gateway#{idempotency_key}",
        traceparent=trace.header,
    )
    with use_trace(trace):
        answer, *_ = await live.dispatcher("gateway").apply([event], traceparent=trace.header)
        if answer["type"] == "conflict":
            raise Conflict("this Idempotency-Key was used for another request; send a new key, or the same body as before")
        fields = {"workflowId": answer["workflow"], "workflow": wanted.workflow, "status": answer["status"]}
        _log.info("workflow requested" if answer["created"] else "workflow requested again", extra=fields)
    return accepted(answer["workflow"], answer["status"])


@workflows.get("", response_model=WorkflowPage, responses=documented(INVALID))
async def list_workflows(
    live: Live,
    status: Annotated[WorkflowStatus | None, Query(description="Only those in this status.")] = None,
    workflow: Annotated[Name | None, Query(description="Only runs of this definition.")] = None,
    cursor: Annotated[WorkflowId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """The newest workflows first, without their steps."""
    found = await live.store.recent(status=status, name=workflow, before=cursor, limit=limit + 1)
    items = found[:limit]
    return _json({"items": items, "next_cursor": items[-1]["id"] if len(found) > limit else None})


@workflows.get("/{id}", response_model=Workflow, responses=documented(NOT_FOUND))
async def show_workflow(live: Live, id: Id) -> Response:
    """One workflow with its steps and output; tokens and cost of each step, each model and all together."""
    return _json(await live.store.get(id))


@workflows.get("/{id}/history", response_model=HistoryPage, responses=documented(NOT_FOUND, INVALID))
async def show_history(
    live: Live,
    id: Id,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="The `seq` of the last entry that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """What happened to a workflow, the oldest first."""
    found = await live.store.history(id, after=after, limit=limit + 1)
    if not found and not await live.store.history(id, limit=1):
        raise NotFound(f"there is no workflow {id}")
    items = found[:limit]
    return _json({"items": items, "next_after": items[-1]["seq"] if len(found) > limit else None})


@workflows.post(
    "/{id}/cancel",
    status_code=202,
    response_model=Accepted,
    responses=documented(BAD_REQUEST, NOT_FOUND, TOO_LARGE, INVALID),
)
async def cancel(live: Live, id: Id, wanted: CancelRequest | None = None) -> Response:
    """Stop a workflow. One that has ended stays as it is; `status` of the answer tells."""
    reason = "" if wanted is None else wanted.reason
    answers = await live.dispatcher("gateway").apply([{"type": "workflow.cancelled", "workflow": id, "reason": reason}])
    if answers:
        raise NotFound(f"there is no workflow {id}")
    status = (await live.store.get(id))["status"]
    _log.info("workflow cancelled", extra={"workflowId": id, "status": status})
    return accepted(id, status)


def accepted(id: str, status: str) -> Response:
    """The answer to a request that a workflow will fulfil."""
    path = f"{PATH}/{id}"
    return _json({"id": id, "status": status, "links": {"self": path, "history": f"{path}/history"}}, 202, {"location": path})


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")
