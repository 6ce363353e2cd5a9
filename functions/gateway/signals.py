"""`/v1/workflows/{id}/signals/{name}`: approve, answer, wake."""

import logging
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Path
from pydantic import ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response
from ulid import ULID

from functions.gateway.auth import allowed
from functions.gateway.models import Accepted, Part
from functions.gateway.problems import (
    BAD_REQUEST,
    CONFLICT,
    INVALID,
    NOT_FOUND,
    SETTLED,
    TOO_LARGE,
    UNSUPPORTED,
    documented,
    problem,
)
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import PATH, Id, Live, accepted, asked_by
from shared.errors import Conflict
from shared.messages import Decision, WorkflowSignalled
from shared.messages.payloads import SignalName
from shared.runtime.signals import Unfit, send_signal

_log = logging.getLogger(__name__)

signals = APIRouter(prefix=PATH, tags=["workflows"], route_class=StrictRoute, dependencies=[Depends(allowed("submit"))])


class SignalRequest(Part):
    """What a step that waits is told."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={
            "examples": [{"decision": "approve", "comment": "Good to go.", "by": "ann@example.com"}],
            "not": {"required": ["decision"], "properties": {"decision": {"const": "amend"}, "data": {"type": "null"}}},
        },
    )

    decision: Decision | None = Field(default=None, description="For an approval, and for nothing else.", examples=["approve"])
    data: Any = Field(
        default=None,
        description="What the step's output shall hold; of `amend`, the value that counts instead.",
        examples=[None],
    )
    comment: str = Field(default="", max_length=2000, description="Kept in the history.", examples=["Good to go."])
    by: str = Field(
        default="",
        max_length=200,
        description="Who says so. Nobody checks it while the API is open; else it is the caller's own name, whatever stands here.",
        examples=["ann@example.com"],
    )

    @model_validator(mode="after")
    def _has_its_value(self) -> "SignalRequest":
        if self.decision == "amend" and self.data is None:
            raise ValueError("amend needs the value that is to count instead, as data")
        return self


class Signalled(Accepted):
    """A signal, durable by now."""

    name: str = Field(description="As in the address.", examples=["approve"])
    outcome: Literal["woken", "kept"] = Field(
        description="`kept`: no step waits for it yet, and the first that will is going to find it.", examples=["woken"]
    )


@signals.post(
    "/{id}/signals/{name:path}",
    status_code=202,
    response_model=Signalled,
    responses=documented(BAD_REQUEST, NOT_FOUND, CONFLICT, TOO_LARGE, UNSUPPORTED, INVALID),
)
async def send(
    request: Request,
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
    said["by"] = asked_by(request, said.get("by", ""))
    key = f"call#{ULID()}" if idempotency_key is None else f"key#{idempotency_key}"
    payload = WorkflowSignalled(workflow=id, name=name, **said)
    try:
        outcome, status = await send_signal(live, payload, source="gateway", signal=f"gateway/{key}")
    except Conflict as error:
        return problem(SETTLED, str(error))
    except Unfit as error:
        # Right by the description, which cannot say what a step of some workflow waits for.
        return problem(CONFLICT, str(error))
    _log.info("workflow signalled", extra={"workflowId": id, "status": status})
    return accepted(id, status, name=name, outcome=outcome)
