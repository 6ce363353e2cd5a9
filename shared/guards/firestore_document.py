"""A bucket's document: its fields, and what an instance remembers of it."""

from typing import Final, NamedTuple, cast

from shared.guards.firestore_schedule import Schedule, Stretch
from shared.guards.firestore_store import Document, Fields, Version, moment
from shared.guards.policy import Bucket, WindowRecord

_WINDOW: Final = "window_"


class Stored(NamedTuple):
    """What the document said. Without a version there was none."""

    schedule: Schedule = Schedule()
    writes: int = 0
    version: Version | None = None


def encode(schedule: Schedule, writes: int) -> Fields:
    """The fields of a document that was written so often."""
    windows = {f"{_WINDOW}{name}": tuple(record) for name, record in schedule.windows.items()}
    return {
        **windows,
        "full_at": schedule.full_at,
        "blocked_until": schedule.blocked_until,
        "holes": tuple(edge for hole in schedule.holes for edge in hole),
        "writes": writes,
        "expire_at": moment(Bucket(schedule.full_at, schedule.blocked_until, schedule.windows).expires_at),
    }


def decode(document: Document | None) -> Stored:
    """What a document says; None is one that is not there."""
    if document is None:
        return Stored()
    fields = document.fields
    edges = cast("tuple[float, ...]", fields["holes"])
    holes = tuple(Stretch(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True))
    windows = {
        name.removeprefix(_WINDOW): WindowRecord(*cast("tuple[float, float, float]", value))
        for name, value in fields.items()
        if name.startswith(_WINDOW)
    }
    schedule = Schedule(cast(float, fields["full_at"]), cast(float, fields["blocked_until"]), holes, windows)
    return Stored(schedule, cast(int, fields["writes"]), document.version)
