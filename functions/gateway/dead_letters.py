"""`/v1/dead-letters`: messages that used up their delivery attempts, and sending them again."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.dead_letter_models import MAX_ID, DeadLetterPage, DeadLetterWhole, Moment, RedriveAnswer, RedriveRequest
from functions.gateway.problems import BAD_REQUEST, INVALID, NOT_FOUND, TOO_LARGE, UNSUPPORTED, documented
from functions.gateway.strict import StrictRoute
from functions.gateway.workflows import Live, json_answer
from shared.errors import NotFound
from shared.messages.payloads import Name, WorkflowId
from shared.runtime.redrive import Wanted, redrive_page
from shared.state import LetterState

dead_letters = APIRouter(
    prefix="/v1/dead-letters", tags=["dead letters"], route_class=StrictRoute, dependencies=[Depends(allowed("admin"))]
)


@dead_letters.get("", response_model=DeadLetterPage, responses=documented(INVALID))
async def list_dead_letters(
    live: Live,
    cause: Annotated[
        str | None, Query(max_length=200, pattern=r"^[^\x00]+$", description="A cause, or the part before its colon.")
    ] = None,
    function: Annotated[Name | None, Query(description="Only messages that this function gave up.")] = None,
    workflow: Annotated[WorkflowId | None, Query(description="Only messages about this workflow.")] = None,
    state: Annotated[LetterState | None, Query(description="Only those in this state.")] = None,
    since: Annotated[Moment | None, Query(description="Only those recorded then or later.")] = None,
    until: Annotated[Moment | None, Query(description="Only those recorded before.")] = None,
    cursor: Annotated[int | None, Query(ge=1, le=MAX_ID, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="How many at most.")] = 50,
) -> Response:
    """The newest dead letters first, without their data."""
    given = {"cause": cause, "function": function, "workflow": workflow, "since": since, "until": until}
    wanted: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if state is not None:
        wanted["states"] = [state]
    found = await live.store.letters.listed(wanted, before=cursor, limit=limit + 1)
    items = found[:limit]
    return json_answer({"items": items, "next_cursor": items[-1]["id"] if len(found) > limit else None})


@dead_letters.get("/{id:int}", response_model=DeadLetterWhole, responses=documented(NOT_FOUND, INVALID))
async def show_dead_letter(
    live: Live,
    id: Annotated[int, Path(ge=1, le=MAX_ID, description="Its number.", examples=[17])],
    data: Annotated[bool, Query(description="Whether to show the message's data, which may be confidential.")] = False,
) -> Response:
    """One dead letter, and whether it can be redriven."""
    for letter in await live.store.letters.read([id]):
        return json_answer(letter if data else {**letter, "data": None})
    raise NotFound(f"there is no dead letter {id}")


@dead_letters.post("/redrive", response_model=RedriveAnswer, responses=documented(BAD_REQUEST, TOO_LARGE, UNSUPPORTED, INVALID))
async def redrive(live: Live, wanted: RedriveRequest) -> Response:
    """Send dead letters again, each to the subscription that gave it up. A dry run, which changes nothing, unless asked otherwise.

    One call looks at one page. Call again with `next_cursor` until it is null.
    """
    outcome = await redrive_page(
        live,
        Wanted(
            ids=tuple(wanted.ids),
            cause=wanted.cause,
            function=wanted.function,
            since=wanted.since,
            until=wanted.until,
            again=wanted.again,
        ),
        dry_run=wanted.dry_run,
        rate=wanted.rate,
        cursor=wanted.cursor,
        limit=wanted.limit,
    )
    return json_answer({**outcome.as_dict(), "dry_run": wanted.dry_run})
