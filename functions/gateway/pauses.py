"""`/v1/workflows/{id}/pause` and `/resume`: nothing more of a workflow starts, and it goes on."""

import logging

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.control_models import Pause, PauseRequest
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, SETTLED, TOO_LARGE, UNSUPPORTED, documented, problem
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import PATH, Id, Live, accepted, asked_by
from shared.errors import Conflict
from shared.runtime.pauses import pause, resume

_log = logging.getLogger(__name__)
_RESPONSES = documented(BAD_REQUEST, NOT_FOUND, SETTLED, TOO_LARGE, UNSUPPORTED, INVALID)

pauses = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("submit"))])


@pauses.post("/{id}/pause", status_code=202, response_model=Pause, responses=_RESPONSES)
async def pause_workflow(request: Request, live: Live, id: Id, wanted: PauseRequest | None = None) -> Response:
    """Start nothing more of a workflow: no step, no retry, no step that is woken. It goes on with `/resume`.

    Attempts under way end and their results count; then its slot is free for others, and its status is WAITING. Its deadline runs
    on. Signals and decisions are taken, and have their effect once it goes on. Asked again, the answer is the same; 409 for a
    workflow that has ended.
    """
    given = PauseRequest() if wanted is None else wanted
    try:
        answer = await pause(live, id, by=asked_by(request, given.by), reason=given.reason, function="gateway")
    except Conflict as error:
        return problem(SETTLED, str(error))
    _log.info("workflow paused", extra={"workflowId": id, "status": answer["status"]})
    return accepted(id, answer["status"], paused_at=answer["paused_at"], paused_by=answer["paused_by"])


@pauses.post("/{id}/resume", status_code=202, response_model=Pause, responses=_RESPONSES)
async def resume_workflow(request: Request, live: Live, id: Id, wanted: PauseRequest | None = None) -> Response:
    """Let a paused workflow go on with all that became ready meanwhile: at once, or with the next free slot.

    One that is not paused stays as it is; 409 for a workflow that has ended.
    """
    given = PauseRequest() if wanted is None else wanted
    try:
        answer = await resume(live, id, by=asked_by(request, given.by), reason=given.reason, function="gateway")
    except Conflict as error:
        return problem(SETTLED, str(error))
    _log.info("workflow goes on", extra={"workflowId": id, "status": answer["status"]})
    return accepted(id, answer["status"], paused_at=None, paused_by=None)
