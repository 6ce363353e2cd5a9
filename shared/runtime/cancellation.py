"""Stops work for workflows that have ended.

Whoever carries out the end of a workflow that failed or was cancelled marks it in the guards' cache. An attempt looks at the mark
before each call of a model or a tool, and while attempts run one task of the process looks for all of them, so that a call in
progress is cut off within a second.

The mark holds how often the workflow had been resumed: an end before that is none for what was dispatched after it. A mark that is
lost stops nobody; then an attempt ends by itself, and its result comes too late.
"""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from shared.clock import Clock
from shared.errors import Cancelled
from shared.guards import Cache
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
LOOK_SECONDS: Final = 0.5
_SHORT_SECONDS: Final = LOOK_SECONDS / 2
"""An attempt is looked at once it is older. With the time between two looks this stays well below a second."""


class Attempt:
    """An attempt in progress, as far as stopping it goes."""

    def __init__(self, workflow: str, resumed: int, limit: asyncio.Timeout, since: float) -> None:
        self.workflow = workflow
        self.resumed = resumed
        self.since = since
        self.stopped = False
        self._limit = limit

    def stop(self) -> None:
        """Cut it off now, as if its time were over."""
        if not self._limit.expired():  # else it is ending already
            self.stopped = True
            self._limit.reschedule(asyncio.get_running_loop().time())


class Cancellations:
    """The marks, and this process's attempts. `ttl_seconds`: no message lives longer, so nobody asks for an older mark."""

    def __init__(self, cache: Cache, clock: Clock, *, ttl_seconds: float) -> None:
        self._cache = cache
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._attempts: set[Attempt] = set()
        self._looking: asyncio.Task[None] | None = None

    async def mark(self, workflow: str, *, resumed: int) -> None:
        """Whatever was dispatched for the workflow until it had been `resumed` so often shall stop. Never fails: see the module."""
        try:
            await self._cache.put(_key(workflow), str(resumed).encode(), ttl_seconds=self._ttl_seconds)
        except Exception as error:
            _log.warning("the end of a workflow is not marked", extra={"workflowId": workflow, "error": describe_error(error)})

    async def check(self, workflow: str, *, resumed: int) -> None:
        """Raises Cancelled when the workflow has ended since."""
        mark = await self._cache.get(_key(workflow))
        if mark is not None and resumed <= int(mark):
            raise cancelled()

    @contextmanager
    def watching(self, workflow: str, *, resumed: int, limit: asyncio.Timeout) -> Iterator[Attempt]:
        """Let `limit`, which the caller has entered, expire when the workflow ends; `stopped` of the attempt tells so."""
        attempt = Attempt(workflow, resumed, limit, self._clock.monotonic())
        self._attempts.add(attempt)
        if self._looking is None:
            # One task for all: most attempts of agents without a model have ended before it looks at them.
            self._looking = asyncio.get_running_loop().create_task(self._look(), name="cancellations")
        try:
            yield attempt
        finally:
            self._attempts.discard(attempt)

    async def _look(self) -> None:
        try:
            while self._attempts:
                await self._clock.sleep(LOOK_SECONDS)
                now = self._clock.monotonic()
                workflows = {one.workflow for one in self._attempts if now - one.since >= _SHORT_SECONDS}
                await asyncio.gather(*(self._look_at(workflow) for workflow in workflows))
        finally:
            self._looking = None

    async def _look_at(self, workflow: str) -> None:
        try:
            mark = await self._cache.get(_key(workflow))
        except Exception as error:
            _log.warning(
                "nobody can tell whether a workflow has ended", extra={"workflowId": workflow, "error": describe_error(error)}
            )
            return
        if mark is not None:
            for attempt in [one for one in self._attempts if one.workflow == workflow and one.resumed <= int(mark)]:
                attempt.stop()


def cancelled() -> Cancelled:
    """What an attempt is told whose workflow has ended."""
    return Cancelled("the workflow ended while this was at work for it; nothing waits for the result")


def _key(workflow: str) -> str:
    return f"ended:{workflow}"
