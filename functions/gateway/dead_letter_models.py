"""What the API takes and gives about dead letters, as its documentation shows it."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from functions.gateway.models import EXAMPLE_ID, EXAMPLE_MOMENT, Part
from functions.gateway.request_models import WHOLE
from shared.messages.payloads import Name
from shared.runtime.redrive import DEFAULT_RATE, MAX_RATE, PAGE
from shared.state import LetterState

_CURSOR = "Give this as `cursor` for the next page; null on the last."
_SINCE = "Only those recorded then or later."
_UNTIL = "Only those recorded before."
_FILTER = ("cause", "function", "since", "until")
_IDS_OR_FILTER: list[JsonValue] = [
    {"properties": {"ids": {"maxItems": 0}}},
    {"properties": {name: {"type": "null"} for name in _FILTER}},
]
_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)
MAX_ID = 2**53 - 1
"""All that JSON's numbers can tell apart everywhere."""


def _is_moment(given: Any) -> Any:
    if isinstance(given, datetime) or (isinstance(given, str) and _RFC_3339.fullmatch(given)):
        return given
    raise ValueError("should be a moment as RFC 3339 has it, such as 2026-11-24T09:30:00Z")


def _in_utc(moment: datetime) -> datetime:
    # PostgreSQL takes no offset of 16 hours or more.
    try:
        return moment.astimezone(UTC)
    except OverflowError:  # the first or the last day of all
        return moment.replace(tzinfo=UTC)


Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_is_moment), AfterValidator(_in_utc)]


class LastError(Part):
    """Why a delivery failed."""

    type: str = Field(description="The error's class.", examples=["StoreUnavailable"])
    message: str = Field(
        description="Empty where it is not one of ours, which may quote what it worked on.",
        examples=["the database cannot be reached"],
    )
    at: AwareDatetime = Field(description="When.", examples=[EXAMPLE_MOMENT])


class DeadLetter(Part):
    """A message that used up its delivery attempts."""

    id: int = Field(description="Its number.", examples=[17])
    message_id: str = Field(description="The envelope's, or else the bus's.", examples=[f"{EXAMPLE_ID}/draft/1"])
    subscription: str = Field(description="What gave it up.", examples=["agent-writer.writer"])
    topic: str = Field(description="What it was published to.", examples=["agent-writer"])
    function: str = Field(description="What could not deal with it.", examples=["writer"])
    cause: str = Field(description="The group of its reason.", examples=["store", "rejected:signature", "timeout"])
    reason: str = Field(description="Why it was given up.", examples=["attempts exhausted"])
    last_error: LastError | None = Field(description="Of the last delivery that said why it failed.")
    attempts: int | None = Field(description="Deliveries, where the bus told.", examples=[5])
    workflow: str | None = Field(description="What it is about, where that can be told.", examples=[EXAMPLE_ID])
    step: str | None = Field(description="What it is about, where that can be told.", examples=["draft"])
    attempt: int | None = Field(description="The attempt that it was to start; null for every other message.", examples=[1])
    state: LetterState = Field(
        description="`waiting`: never redriven; `redriven`: sent, nothing heard since; `again`: dead again after its last redrive."
    )
    redrive_count: int = Field(description="How often it was sent again.", examples=[0])
    redriven_at: AwareDatetime | None = Field(description="When it was last sent again.", examples=[None])
    recorded_at: AwareDatetime = Field(description="When it was recorded.", examples=[EXAMPLE_MOMENT])
    size_bytes: int = Field(description="Of its data.", examples=[912])


class DeadLetterPage(Part):
    """Dead letters, the newest first."""

    items: list[DeadLetter] = Field(description="One page of them.")
    next_cursor: int | None = Field(description=_CURSOR, examples=[None])


class DeadLetterWhole(DeadLetter):
    """A dead letter with what is needed to understand it."""

    attributes: dict[str, str] = Field(description="Of the message, as it arrived.", examples=[{"hmac-key-id": "v2"}])
    blocked: str | None = Field(
        description="Why its step cannot be resumed; null where it can, or where it is about no step.", examples=[None]
    )
    data: str | None = Field(description="Base64; null unless asked for.", examples=[None])


class RedriveRequest(Part):
    """Which dead letters to send again: those of `ids`, or those that fit the filter."""

    model_config = ConfigDict(strict=True, json_schema_extra={"anyOf": _IDS_OR_FILTER})

    ids: list[Annotated[int, Field(ge=1, le=MAX_ID), WHOLE]] = Field(
        default_factory=list, max_length=1000, description="Only these; then there is no filter.", examples=[[]]
    )
    cause: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00]*$",
        description="A cause, or the part before its colon.",
        examples=["store"],
    )
    function: Name | None = Field(default=None, description="Only what this function gave up.", examples=["writer"])
    since: Moment | None = Field(default=None, description=_SINCE, examples=[EXAMPLE_MOMENT])
    until: Moment | None = Field(default=None, description=_UNTIL, examples=[None])
    again: bool = Field(
        default=False,
        description="Also those that are dead again after a redrive and, of `ids`, those of which nothing was heard.",
    )
    rate: float = Field(default=DEFAULT_RATE, gt=0, le=MAX_RATE, description="Letters per second.")
    dry_run: bool = Field(default=True, description="Only tell what would be done.")
    cursor: Annotated[int, Field(ge=1, le=MAX_ID), WHOLE] | None = Field(
        default=None, description="`next_cursor` of the page before.", examples=[None]
    )
    limit: Annotated[int, Field(ge=1, le=500), WHOLE] = Field(
        default=PAGE, description="How many letters to look at. At a low rate many take long."
    )

    @model_validator(mode="after")
    def _is_one(self) -> "RedriveRequest":
        if self.ids and any(getattr(self, name) is not None for name in _FILTER):
            raise ValueError("give ids or a filter, not both")
        return self


class Refused(Part):
    """A dead letter that is left as it is."""

    id: int = Field(description="Its number.", examples=[18])
    reason: str = Field(description="Why.", examples=["its workflow is CANCELLED and does not wait for it"])


class RedriveAnswer(Part):
    """What became of one page of letters or, after a dry run, would become of it."""

    matched: int = Field(description="How many letters are wanted, on all pages.", examples=[2])
    redriven: int = Field(description="How many of this page were sent, or would be.", examples=[1])
    ids: list[int] = Field(description="Of those that were redriven.", examples=[[17]])
    refused: list[Refused] = Field(description="Those of this page that were not.")
    next_cursor: int | None = Field(description=_CURSOR, examples=[None])
    dry_run: bool = Field(description="Whether nothing was changed.", examples=[True])
