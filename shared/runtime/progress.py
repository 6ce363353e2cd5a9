"""What running steps have written so far, for whoever watches their workflow.

It travels through the guards' cache and nothing depends on it: no more than the newest text is kept, for a minute. While nobody
watches a workflow its answers are not even streamed. The text is a model's output: show it as text, and only to those who may read
the workflow.

    watched:<workflow>                    somebody watches; renewed by whoever serves them
    progress:<workflow>/<step>/<attempt>  {"step": "draft", "attempt": 1, "text": "… the last characters", "length": 12345},
                                          {} once the attempt has ended
"""

import asyncio
import logging
from typing import Final

import orjson

from shared.clock import Clock
from shared.guards import Cache
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
WATCH_RENEWED_SECONDS: Final = 10.0
_WATCH_SECONDS: Final = 30.0
_KEPT_SECONDS: Final = 60.0
_WRITE_SECONDS: Final = 0.2
_MOST_CHARACTERS: Final = 4000
_ENDED: Final = b"{}"


class Progress:
    """The progress of all workflows."""

    def __init__(self, cache: Cache, clock: Clock) -> None:
        self._cache = cache
        self._clock = clock

    async def watch(self, workflow: str) -> None:
        """Ask for the workflow's progress for the next half minute."""
        await self._cache.put(f"watched:{workflow}", b"1", ttl_seconds=_WATCH_SECONDS)

    async def watched(self, workflow: str) -> bool:
        """Whether somebody asks for it."""
        return await self._cache.get(f"watched:{workflow}") is not None

    async def read(self, workflow: str, step: str, attempt: int) -> bytes | None:
        """The newest progress of an attempt, as JSON; None when there is none, or none any more."""
        found = await self._cache.get(_key(workflow, step, attempt))
        return None if found == _ENDED else found

    async def write(self, workflow: str, step: str, attempt: int, text: str | None) -> None:
        """Replace an attempt's progress by `text`; None says that it has ended."""
        data = _ENDED
        if text is not None:
            # A model may answer half of a pair of surrogates, which UTF-8 does not have.
            last = text[-_MOST_CHARACTERS:].encode(errors="replace").decode()
            data = orjson.dumps({"step": step, "attempt": attempt, "text": last, "length": len(text)})
        await self._cache.put(_key(workflow, step, attempt), data, ttl_seconds=_KEPT_SECONDS)

    def writer(self, workflow: str, step: str, attempt: int) -> "Writer":
        """What writes the progress of one attempt."""
        return Writer(self, self._clock, workflow, step, attempt)


class Writer:
    """Writes one attempt's progress behind its back: nobody waits for the cache, which sees no more than five texts a second.

    Of texts that come faster the last one is written.
    """

    def __init__(self, progress: Progress, clock: Clock, workflow: str, step: str, attempt: int) -> None:
        self._progress = progress
        self._clock = clock
        self._about = (workflow, step, attempt)
        self._newest: str | None = None
        self._changed = False
        self._writing: asyncio.Task[None] | None = None

    def say(self, text: str) -> None:
        """Show `text` as what is written so far."""
        self._change(text)

    def end(self) -> None:
        """The attempt has ended. Costs nothing when it never said anything."""
        if self._newest is not None:
            self._change(None)

    def _change(self, text: str | None) -> None:
        self._newest, self._changed = text, True
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write(), name="progress")

    async def _write(self) -> None:
        try:
            while self._changed:
                self._changed = False
                await self._progress.write(*self._about, self._newest)
                await self._clock.sleep(_WRITE_SECONDS)
        except Exception as error:
            workflow, step, _ = self._about
            fields = {"workflowId": workflow, "step": step, "error": describe_error(error)}
            _log.warning("what a step has written so far cannot be shown", extra=fields)
        finally:
            self._writing = None


def _key(workflow: str, step: str, attempt: int) -> str:
    return f"progress:{workflow}/{step}/{attempt}"
