"""`/v1/workflows/{id}/signals/{name}`: approve, answer, wake."""

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path
from starlette.responses import Response
from ulid import ULID

from functions.gateway.auth import allowed
from functions.gateway.models import Signalled, SignalRequest
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, SETTLED, TOO_LARGE, UNSUPPORTED, documented, problem
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import PATH, Id, Live, accepted
from shared.errors import Conflict
from shared.messages import WorkflowSignalled
from shared.messages.payloads import SignalName
from shared.runtime.signals import send_signal

_log = logging.getLogger(__name__)

signals = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("submit"))])


@signals.post(
    "/{id}/signals/{name}",
    status_code=202,
    response_model=Signalled,
    responses=documented(BAD_REQUEST, NOT_FOUND, SETTLED, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def send(
    live: Live,
    id: Id,
    name: Annotated[SignalName, Path(description="The step that waits, or the signal that it waits for.", examples=["approve"])],
    wanted: SignalRequest | None = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[\x21-\x7e]+$",
            max_length=255,
            description="Visible ASCII. The same key for this workflow is the same signal.",
            examples=["ticket-4711"],
        ),
    ] = None,
) -> Response:
    """Decide on an approval, or send a signal that a step waits for. One that comes early is kept; the first one counts."""
    said = {} if wanted is None else wanted.model_dump()
    key = f"call#{ULID()}" if idempotency_key is None else f"key#{idempotency_key}"
    payload = WorkflowSignalled(workflow=id, name=name, **said)
    try:
        outcome, status = await send_signal(live, payload, source="gateway", signal=f"gateway/{key}")
    except Conflict as error:
        return problem(SETTLED, str(error))
    _log.info("workflow signalled", extra={"workflowId": id, "status": status})
    return accepted(id, status, name=name, outcome=outcome)
