"""What has been kept for `RETENTION_DAYS` goes: workflows that have ended, with their steps and histories, and dead letters.

It goes by the way, a batch and a short transaction at a time, after each tick of the sweeper. What a call leaves, the next finds.
"""

import logging
from datetime import timedelta
from itertools import count
from typing import Final

from shared.runtime.wiring import Runtime
from shared.telemetry import metrics

BATCH_ROWS: Final = 1000
"""About as many rows one transaction deletes: some 10 ms."""

_log = logging.getLogger(__name__)


async def purge_old(live: Runtime, *, max_batches: int) -> None:
    """Delete what is older than the settings say, at most `max_batches` batches of it. Errors as `Caller.call`."""
    days = live.settings.retention_days
    if days > 0:
        await purge(live, timedelta(days=days), max_batches=max_batches)


async def purge(live: Runtime, older_than: timedelta, *, max_batches: int | None = None) -> dict[str, int]:
    """Delete what ended longer ago than that: `{workflows, dead_letters}`. Errors as `Caller.call`."""
    gone = {"workflows": 0, "dead_letters": 0}
    for _ in count() if max_batches is None else range(max_batches):
        batch = await live.store.purge(older_than, max_rows=BATCH_ROWS)
        if not any(batch.values()):
            break
        gone = {kind: gone[kind] + number for kind, number in batch.items()}
    for kind, number in gone.items():
        if number:
            metrics.count("retention.purged", number, kind=kind)
    if any(gone.values()):
        _log.info("purged %d workflows and %d dead letters, older than %s", *gone.values(), older_than)
    return gone
