"""One look at a workflow for all who follow it here: however many streams there are, the state is asked for it four times a second.

A look knows the latest entries of the history and what the running steps have written so far. Whoever is further behind reads the
history by pages until it has caught up. While somebody looks, the agents are asked for their progress.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Any, Final

import orjson

from shared.runtime import Runtime
from shared.runtime.progress import WATCH_RENEWED_SECONDS
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
_LOOK_SECONDS: Final = 0.25
_BEAT_SECONDS: Final = 15.0
_MOST_KEPT: Final = 1000
_MOST_STEPS: Final = 100
"""Nobody reads more texts that grow at the same time; those of the steps that began last are shown."""
_QUEUEING: Final = {"workflow.woken": True, "workflow.resumed": True, "workflow.started": False, "workflow.waiting": False}
_ENDINGS: Final = ("workflow.succeeded", "workflow.failed", "workflow.cancelled")

Entry = dict[str, Any]


class Watch:
    """What is known here of one workflow. Read it, and then wait for `changed` as it was before you read."""

    def __init__(self, live: Runtime, workflow: str) -> None:
        self._live = live
        self._workflow = workflow
        self._entries: deque[Entry] = deque(maxlen=_MOST_KEPT)
        self._running: dict[str, int] = {}
        """The attempt that is at work, by step."""
        self._tasks: list[asyncio.Task[None]] = []
        self.streams = 0
        self.seq = 0
        """The last entry of the history."""
        self.ended = False
        self.beats = 0
        """Goes up every 15 seconds."""
        self.queue: bytes | None = None
        """JSON of its place in the queue; None while it has none."""
        self._queued = False
        self.progress: dict[str, bytes] = {}
        """JSON by step; only of steps that are running."""
        self.changed = asyncio.Event()

    async def opened(self) -> None:
        """Return when the first look is over. Raises NotFound, and what the store raises."""
        if not self._tasks:
            self._tasks.append(asyncio.create_task(self._open(), name="watch"))
        await asyncio.shield(self._tasks[0])  # one stream that goes away must not fail the others

    def since(self, after: int) -> list[Entry] | None:
        """The entries after `after`, oldest first; None when they are no longer, or not yet, kept here."""
        if not self._entries or self._entries[0]["seq"] > after + 1:
            return None
        return list(takewhile(lambda entry: entry["seq"] > after, reversed(self._entries)))[::-1]

    def close(self) -> None:
        """Look no longer."""
        for task in self._tasks:
            task.cancel()

    async def _open(self) -> None:
        document = await self._live.store.get(self._workflow)
        self.seq = document["seq"]
        self.ended = document["finished_at"] is not None
        self._stands(document)
        self._running = {step["id"]: step["attempt"] for step in document["steps"] if step["status"] == "RUNNING"}
        if self.ended:
            return
        await self._ask_for_progress()
        self._begin(WATCH_RENEWED_SECONDS, self._ask_for_progress)
        self._begin(_LOOK_SECONDS, self._look)
        self._begin(_BEAT_SECONDS, self._beat)

    def _begin(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(self._every(seconds, work), name="watch"))

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        failing = False
        while True:
            await self._live.clock.sleep(seconds)
            try:
                await work()
            except Exception as error:
                if not failing:  # the next look finds all that this one missed
                    fields = {"workflowId": self._workflow, "error": describe_error(error)}
                    _log.warning("a workflow that is watched cannot be looked at; trying again", extra=fields)
                failing = True
            else:
                failing = False

    async def _ask_for_progress(self) -> None:
        if not self.ended:
            await self._live.progress.watch(self._workflow)

    async def _look(self) -> None:
        if self.ended:
            return
        entries = await self._live.store.history(self._workflow, after=self.seq)
        for entry in entries:
            self._take(entry)
        if self._running:
            await self._read_progress()
        if entries:
            self._wake()

    def _take(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.seq = entry["seq"]
        kind, step = entry["type"], entry["step"]
        if kind in _QUEUEING:
            self._queued = _QUEUEING[kind]
            self.queue = self.queue if self._queued else None
        if kind in _ENDINGS:
            self.ended, self._queued, self.queue = True, False, None
            self._running.clear()
            self.progress.clear()
        elif kind == "workflow.resumed":  # before anybody saw that it had ended
            self.ended = False
        elif kind == "step.dispatched":
            self._running[step] = entry["attempt"]
        elif step is not None and kind != "step.late":
            self._running.pop(step, None)
            self.progress.pop(step, None)

    async def _read_progress(self) -> None:
        running = list(self._running.items())[-_MOST_STEPS:]
        texts = await asyncio.gather(*(self._live.progress.read(self._workflow, *attempt) for attempt in running))
        for (step, _), text in zip(running, texts, strict=True):
            if text is not None and text != self.progress.get(step):
                self.progress[step] = text
                self._wake()

    def _stands(self, document: dict[str, Any]) -> None:
        self._queued = document["queue"] is not None
        self.queue = orjson.dumps(document["queue"]) if self._queued else None

    async def _beat(self) -> None:
        self.beats += 1
        if self._queued:
            self._stands(await self._live.store.get(self._workflow))
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Watches:
    """The looks of this process."""

    def __init__(self, live: Runtime) -> None:
        self._live = live
        self._watches: dict[str, Watch] = {}

    def __len__(self) -> int:
        return len(self._watches)

    @asynccontextmanager
    async def watching(self, workflow: str) -> AsyncIterator[Watch]:
        """The look at a workflow, shared with whoever else has it; the last one who leaves ends it. Raises NotFound."""
        watch = self._watches.get(workflow)
        if watch is None or watch.ended:  # it may have been resumed since
            watch = self._watches[workflow] = Watch(self._live, workflow)
        watch.streams += 1
        try:
            await watch.opened()
            yield watch
        finally:
            # Nothing is awaited: whoever is cancelled here may be cancelled again at every await.
            watch.streams -= 1
            if not watch.streams:
                watch.close()
                if self._watches.get(workflow) is watch:
                    del self._watches[workflow]
