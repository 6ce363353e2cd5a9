"""`/v1/workflows`: start, list, show and cancel workflows."""

import logging
from typing import Annotated, Any, cast

import orjson
from fastapi import APIRouter, Depends, Header, Path, Query
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.approvals import links_for
from functions.gateway.auth import allowed
from functions.gateway.control_models import Cancelled, CancelRequest
from functions.gateway.models import (
    EXAMPLE_ID,
    Accepted,
    HistoryPage,
    Snapshot,
    Workflow,
    WorkflowPage,
    WorkflowStatus,
)
from functions.gateway.problems import (
    BAD_REQUEST,
    INVALID,
    NOT_FOUND,
    TOO_LARGE,
    UNSUPPORTED,
    documented,
    switched_off,
)
from functions.gateway.request_models import SubmitRequest
from functions.gateway.strict import StrictRoute
from shared.errors import Conflict, NotFound
from shared.ids import workflow_id
from shared.messages.payloads import Name, WorkflowId
from shared.references import linked, references
from shared.runtime import Runtime
from shared.runtime.requests import request_event
from shared.telemetry import TraceContext, current_trace, use_trace

_log = logging.getLogger(__name__)
PATH = "/v1/workflows"
_ID = TypeAdapter[str](WorkflowId)
_FORM = _ID.json_schema()["pattern"]
MAX_SEQ = 2**31 - 1

workflows = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("read"))])


async def _live(request: Request) -> Runtime:
    return cast("Runtime", request.app.state.live)


async def _known_form(
    id: Annotated[str, Path(description="`wf_` and a ULID.", examples=[EXAMPLE_ID], json_schema_extra={"pattern": _FORM})],
) -> str:
    try:
        return _ID.validate_python(id)
    except ValidationError:
        raise NotFound("there is no such workflow; an id is wf_ and 26 letters and digits") from None


Live = Annotated[Runtime, Depends(_live)]
Id = Annotated[str, Depends(_known_form)]


IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]+$",
        max_length=255,
        description="Visible ASCII. The same key with the same body starts one workflow, however often it is sent.",
        examples=["order-4711"],
    ),
]
Traceparent = Annotated[
    str | None,
    Header(
        description="W3C Trace Context; a new trace begins without a valid one.",
        examples=["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
    ),
]


@workflows.post("", status_code=202, response_model=Accepted, responses=documented(BAD_REQUEST, TOO_LARGE, UNSUPPORTED, INVALID))
async def submit(
    request: Request,
    live: Live,
    wanted: SubmitRequest,
    idempotency_key: IdempotencyKey = None,
    traceparent: Traceparent = None,
) -> Response:
    """Start a workflow. It is durable by the time of the answer, and goes on whatever happens to this instance."""
    if not live.settings.orch_enabled:
        return switched_off()
    trace = trace_of(traceparent)
    event = request_event(
        live,
        wanted,
        workflow=workflow_id(live.clock.now()),
        request_key=request_key(idempotency_key),
        traceparent=trace.header,
    )
    return await start(live, {**event, "tenant": tenant_of(request)}, trace)


def tenant_of(request: Request) -> str:
    """Whose share of the slots a request takes: the caller's; all share one while the API is open."""
    return asked_by(request, "")


def asked_by(request: Request, said: str) -> str:
    """Who asks: the caller by the name that was proved, else whoever they say they are."""
    caller: str | None = request.state.caller
    return said if caller is None else caller[:200]


def trace_of(traceparent: str | None) -> TraceContext:
    """The request's span, which is below the one that the caller named."""
    return current_trace() or TraceContext.parse(traceparent) or TraceContext.new()


def request_key(idempotency_key: str | None) -> str | None:
    """What a request is known by: the API's keys are nobody else's."""
    return None if idempotency_key is None else f"gateway#{idempotency_key}"


async def start(live: Runtime, event: dict[str, Any], trace: TraceContext) -> Response:
    """Apply a `workflow.requested` event and answer with what it led to. Raises Conflict for a key of another request."""
    with use_trace(trace):
        answer, *_ = await live.dispatcher("gateway").apply([event], traceparent=trace.header)
        if answer["type"] == "conflict":
            raise Conflict("this Idempotency-Key was used for another request; send a new key, or the same body as before")
        fields = {"workflowId": answer["workflow"], "workflow": answer["name"], "status": answer["status"]}
        _log.info("workflow requested" if answer["created"] else "workflow requested again", extra=fields)
    return accepted(answer["workflow"], answer["status"])


@workflows.get("", response_model=WorkflowPage, responses=documented(INVALID))
async def list_workflows(
    live: Live,
    status: Annotated[WorkflowStatus | None, Query(description="Only those in this status.")] = None,
    workflow: Annotated[Name | None, Query(description="Only runs of this definition.")] = None,
    cursor: Annotated[WorkflowId | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 50,
) -> Response:
    """The newest workflows first, without their steps."""
    found = await live.store.recent(status=status, name=workflow, before=cursor, limit=limit + 1)
    items = found[:limit]
    return json_answer({"items": items, "next_cursor": items[-1]["id"] if len(found) > limit else None})


@workflows.get("/{id}", response_model=Workflow, responses=documented(NOT_FOUND))
async def show_workflow(request: Request, live: Live, id: Id) -> Response:
    """One workflow with its steps and output; tokens and cost of each step, each model and all together.

    An output of more than 64 KB is kept apart. In its place stands `{"$output": {"sha256", "bytes", "href"}}`, and `href` leads to
    it; the workflow's own output stands here as long as it fits a message. Who may `submit` also gets, with each approval that is
    waited for, the link for the person who decides.
    """
    document = await shown(live, await live.store.get(id))
    link = await links_for(request)
    if link is not None:
        for step in document["steps"]:
            if step["waiting"] is not None and step["waiting"]["for"] == "approval":
                about = {"step": step["id"], "attempt": step["attempt"], "waiting": step["waiting"]}
                step["links"] = link(workflow=id, **about, now=live.clock.now())
    return json_answer(document)


@workflows.get("/{id}/history", response_model=HistoryPage, responses=documented(NOT_FOUND, INVALID))
async def show_history(
    live: Live,
    id: Id,
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="The `seq` of the last entry that is known.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at most.")] = 1000,
) -> Response:
    """What happened to a workflow, the oldest first."""
    found = await live.store.history(id, after=after, limit=limit + 1)
    if not found and not await live.store.history(id, limit=1):
        raise NotFound(f"there is no workflow {id}")
    items = found[:limit]
    return json_answer({"items": items, "next_after": items[-1]["seq"] if len(found) > limit else None})


@workflows.get("/{id}/snapshots/{seq}", response_model=Snapshot, responses=documented(NOT_FOUND, INVALID))
async def show_snapshot(
    live: Live, id: Id, seq: Annotated[int, Path(ge=1, le=MAX_SEQ, description="The number of a history entry.", examples=[7])]
) -> Response:
    """A workflow as it was after one entry of its history."""
    found = await live.store.snapshot(id, seq)
    if found["seq"] != seq:
        raise NotFound(f"{id} has no history entry {seq}; its last one is {found['seq']}")
    return json_answer(found)


@workflows.post(
    "/{id}/cancel",
    status_code=202,
    response_model=Cancelled,
    responses=documented(BAD_REQUEST, NOT_FOUND, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def cancel(request: Request, live: Live, id: Id, wanted: CancelRequest | None = None) -> Response:
    """Stop a workflow with all its steps, and answer with a receipt of what was stopped.

    One that has ended stays as it is; `status` of the answer tells. Asked again, the receipt is the same.
    """
    given = CancelRequest() if wanted is None else wanted
    event = {"type": "workflow.cancelled", "workflow": id, "reason": given.reason, "by": asked_by(request, given.by)}
    answers = await live.dispatcher("gateway").apply([event])
    if answers:
        raise NotFound(f"there is no workflow {id}")
    status = (await live.store.get(id))["status"]
    receipt = await live.store.cancel_receipt(id) if status == "CANCELLED" else None
    _log.info("workflow cancelled", extra={"workflowId": id, "status": status})
    return accepted(id, status, receipt=None if receipt is None else {**receipt, "usage_may_grow": receipt["running"] > 0})


async def shown(live: Runtime, document: dict[str, Any]) -> dict[str, Any]:
    """A workflow with its output in place where it fits a message, and links to what is stored apart."""
    path = f"{PATH}/{document['id']}"
    stored = references(document["output"])
    if stored and sum(one.size_bytes for one in stored) <= live.settings.max_payload_bytes:
        document["output"] = await live.outputs.whole(document["output"])
    document["output"] = linked(document["output"], f"{path}/output")
    for step in document["steps"]:
        step["output"] = linked(step["output"], f"{path}/steps/{step['id']}/output")
    return document


def accepted(id: str, status: str, **more: Any) -> Response:
    """The answer that tells where to look next, and `more`."""
    path = f"{PATH}/{id}"
    links = {"self": path, "history": f"{path}/history", "events": f"{path}/events"}
    return json_answer({"id": id, "status": status, "links": links, **more}, 202, {"location": path})


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """An answer as it is, held to its model by tests alone."""
    return Response(orjson.dumps(content), status_code=status, headers=headers, media_type="application/json")
