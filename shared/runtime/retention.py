"""What has been kept for `RETENTION_DAYS` goes: workflows that have ended, with their steps and histories, and dead letters.

Outputs that are stored apart go when nothing refers to them any more. All goes by the way, a batch and a short transaction at a
time, after each tick of the sweeper. What a call leaves, the next finds.
"""

import logging
from datetime import timedelta
from itertools import count
from typing import Final

from shared.runtime.wiring import Runtime
from shared.telemetry import metrics

BATCH_ROWS: Final = 1000
"""About as many rows one transaction deletes: some 10 ms."""

_DAY_SECONDS: Final = 86_400

_log = logging.getLogger(__name__)


async def purge_old(live: Runtime, *, max_batches: int) -> None:
    """Delete what is older than the settings say, at most `max_batches` batches of it. Errors as `Caller.call`."""
    days = live.settings.retention_days
    if days > 0:
        await purge(live, timedelta(days=days), max_batches=max_batches)
        if live.outputs.is_due():
            await purge_outputs(live, timedelta(days=days))


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


async def purge_outputs(live: Runtime, older_than: timedelta) -> int:
    """Delete the stored outputs that were put longer ago and that nothing refers to, and return how many. Errors as `Caller.call`.

    Those of the last two days stay: messages on their way may refer to them, which live for `COMM_IDEMPOTENCY_TTL_SEC`.
    """
    settled = timedelta(seconds=2 * max(live.settings.comm_idempotency_ttl_sec, _DAY_SECONDS))
    gone = await live.outputs.expire(max(older_than, settled), live.store.outputs_in_use)
    if gone:
        metrics.count("retention.purged", gone, kind="outputs")
        _log.info("deleted %d stored outputs that nothing refers to", gone)
    return gone
