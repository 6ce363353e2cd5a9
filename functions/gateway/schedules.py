"""`/v1/schedules`: what starts by itself, and when."""

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, Field
from starlette.responses import Response

from functions.gateway.auth import allowed
from functions.gateway.models import EXAMPLE_ID, EXAMPLE_MOMENT, Part
from functions.gateway.workflows import Live, json_answer
from shared.messages.payloads import Name, WorkflowId
from shared.runtime.schedules import overview

schedules = APIRouter(prefix="/v1/schedules", tags=["schedules"], dependencies=[Depends(allowed("read"))])


class KnownSchedule(Part):
    """The schedule of a definition."""

    workflow: Name = Field(description="The definition.", examples=["report"])
    cron: str = Field(description="When, in UTC: minute, hour, day, month, weekday.", examples=["0 6 * * 1"])
    catch_up: Literal["skip", "last", "all"] = Field(description="What becomes of missed ticks.", examples=["skip"])
    decided_until: AwareDatetime | None = Field(
        description="Until then it is settled which ticks start a run; null before the sweeper has seen the schedule.",
        examples=[EXAMPLE_MOMENT],
    )
    next_tick: AwareDatetime | None = Field(description="When the next run is due.", examples=[EXAMPLE_MOMENT])
    last_run: WorkflowId | None = Field(description="What was started last; perhaps no longer there.", examples=[EXAMPLE_ID])


class ScheduleList(Part):
    """Every schedule, by the definition's name."""

    items: list[KnownSchedule] = Field(description="All of them.")


@schedules.get("", response_model=ScheduleList)
async def list_schedules(live: Live) -> Response:
    """What starts by itself: when, when next, and what was started last."""
    return json_answer({"items": await overview(live)})
