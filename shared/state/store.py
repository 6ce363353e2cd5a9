"""The workflow store: the calls into the state's SQL functions, coalesced."""

import asyncio
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

from shared.clock import Clock
from shared.errors import ConfigurationError, NotFound, Permanent
from shared.state.base import Caller, Command, Event
from shared.state.documents import Document, normal
from shared.state.keys import ApiKeys
from shared.state.letters import DeadLetters

_Answer = TypeVar("_Answer")
_MAX_BATCH = 100
"""More in one call costs little less per event, and leaves this process idle meanwhile."""


class WorkflowStore:
    """All that the platform knows of its workflows.

    Concurrent calls of `advance` share round trips: while one is in flight the next batch gathers, so that a lone event is never
    delayed and many cost little more than one.

    `clock` replaces the database's time where tests move it; a fleet has one time, the database's.
    """

    def __init__(self, caller: Caller, *, max_running: int, lanes: int = 2, clock: Clock | None = None) -> None:
        self._caller = caller
        self._max_running = max_running
        self._clock = clock
        self._waiting: deque[tuple[Sequence[Event], asyncio.Future[list[Command]]]] = deque()
        self._free_lanes = lanes
        self._lanes: set[asyncio.Task[None]] = set()

    async def advance(self, events: Sequence[Event]) -> list[Command]:
        """Apply `events` in one transaction and return the commands they cause; see `Caller.call` for errors."""
        if not events:
            return []
        answered: asyncio.Future[list[Command]] = asyncio.get_running_loop().create_future()
        self._waiting.append((events, answered))
        if self._free_lanes:
            self._free_lanes -= 1
            lane = asyncio.create_task(self._drain())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await answered

    async def get(self, workflow: str) -> dict[str, Any]:
        """One workflow with its steps. Raises NotFound."""
        return _found(await self._caller.call("get_workflow", {"id": workflow}), workflow)

    async def recent(
        self, *, status: str | None = None, name: str | None = None, before: str | None = None, limit: int = 50
    ) -> list[dict[str, Any]]:
        """The newest workflows first, without their steps. `before` is the last id of the page before."""
        arguments = {"status": status, "name": name, "before": before, "max_rows": limit}
        page: list[dict[str, Any]] = await self._caller.call("list_workflows", arguments)
        return page

    async def cancel_receipt(self, workflow: str) -> dict[str, Any] | None:
        """What its cancellation found and stopped; None when the workflow was not cancelled.

        `{at, by, reason, was, running, running_steps: [{step, agent, attempt, since}], stopped, stopped_steps, finished, usage}`;
        of the steps the first 50 are named.
        """
        receipt: dict[str, Any] | None = await self._caller.call("cancel_receipt", {"id": workflow})
        return receipt

    async def queued(self) -> int:
        """How many workflows wait for their turn."""
        return int(await self._caller.call("count_queued", {}))

    async def history(self, workflow: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """What happened after entry `after`, oldest first; empty for an unknown workflow."""
        entries: list[dict[str, Any]] = await self._caller.call(
            "workflow_history", {"id": workflow, "after": after, "max_rows": limit}
        )
        return entries

    async def snapshot(self, workflow: str, seq: int) -> dict[str, Any]:
        """The workflow's state after history entry `seq`. Raises NotFound."""
        return _found(await self._caller.call("workflow_snapshot", {"id": workflow, "seq": seq}), workflow)

    async def fork_plan(self, workflow: str, at: int | None) -> dict[str, Any]:
        """What decides which steps a fork after entry `at` may reuse; None is the last. Raises NotFound.

        `{id, workflow, version, seq, input, steps: [{id, parent, needs, spec, on_failure, last}]}`; `last` is the type of the
        step's last entry by then.
        """
        return _found(await self._caller.call("fork_plan", {"id": workflow, "seq": at}), workflow)

    async def fork(self, fork: dict[str, Any], *, held: bool) -> list[Command]:
        """Start a workflow from another: `{from, at, workflow, input, finished, expanded, request_key, request_hash, traceparent}`.

        Returns the commands, of which `accepted` or `conflict` is the answer. `held` leaves it in the queue until somebody ticks.
        Raises NotFound.
        """
        answer = await self._caller.call("fork_workflow", {"fork": fork, **self._slots(held), **self._moment()})
        return _found(answer, fork["from"])

    async def rerun(self, workflow: str, *, step: str | None, request_key: str | None, held: bool) -> list[Command]:
        """Let a workflow that failed go on from the step that failed it. The answer is `rerun` or `refused`. Raises NotFound."""
        arguments = {"workflow": workflow, "step": step, "request_key": request_key, **self._slots(held), **self._moment()}
        return _found(await self._caller.call("rerun_workflow", arguments), workflow)

    async def purge(self, older_than: timedelta, *, max_rows: int = 1000) -> dict[str, int]:
        """Delete about `max_rows` rows of what ended longer ago: `{workflows, dead_letters}`. One short transaction."""
        arguments = {"older_than_seconds": older_than.total_seconds(), "max_rows": max_rows, **self._moment()}
        gone: dict[str, int] = await self._caller.call("purge", arguments)
        return gone

    async def purgeable(self, older_than: timedelta) -> dict[str, int]:
        """How much `purge` would delete by and by: `{workflows, dead_letters}`."""
        arguments = {"older_than_seconds": older_than.total_seconds(), **self._moment()}
        counts: dict[str, int] = await self._caller.call("purgeable", arguments)
        return counts

    async def schedules(self) -> dict[str, Any]:
        """`{moment, schedules: [{name, cron, last_tick, workflow}]}`: how far each has come, and the time that they go by.

        Every tick up to `last_tick` was decided on; `workflow` is the one started last.
        """
        state: dict[str, Any] = await self._caller.call("read_schedules", self._moment())
        return state

    async def note_schedules(self, notes: Sequence[dict[str, Any]]) -> None:
        """Note `{name, cron, tick}`: every tick up to that moment is decided on. Without `cron` the schedule is forgotten."""
        await self._caller.call("note_schedules", {"notes": list(notes)})

    async def outputs_in_use(self, hashes: Sequence[str]) -> list[str]:
        """Those of the hashes of stored outputs that something here refers to. Reads every row."""
        used: list[str] = await self._caller.call("outputs_in_use", {"hashes": list(hashes)})
        return used

    async def put_document(self, document: Document) -> str:
        """Keep a document in place of what was under its name: `added`, `replaced`, or `unchanged` when it is the same."""
        arguments = {"name": document.name, "sha256": document.sha256, "passages": document.passages, **self._moment()}
        return str(await self._caller.call("put_document", arguments))

    async def list_documents(self) -> list[dict[str, Any]]:
        """Every document by name: `{name, sha256, size_bytes, passages, added_at}`; `passages` is how many."""
        found: list[dict[str, Any]] = await self._caller.call("list_documents", {})
        return found

    async def remove_document(self, name: str) -> None:
        """Forget a document. Raises NotFound."""
        if not await self._caller.call("remove_document", {"name": name}):
            raise NotFound(f"there is no document {name[:200]!r}; look for its name in the list of all")

    async def search_documents(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """The passages that fit a web search's words best, the best first, at most 50: `{document, position, text}`.

        Where no passage has all words, those with any of them, unless a word was excluded with a minus.
        """
        # PostgreSQL's text has no NUL, and UTF-8 no half of a pair: no document holds them.
        words = normal(query.replace("\0", " ").encode("utf-8", "replace").decode())
        found: list[dict[str, Any]] = await self._caller.call("search_documents", {"query": words, "max_rows": limit})
        return found

    @property
    def letters(self) -> DeadLetters:
        """The messages that used up their attempts."""
        return DeadLetters(self._caller, self._clock)

    @property
    def keys(self) -> ApiKeys:
        """The keys of the API."""
        return ApiKeys(self._caller, self._clock)

    async def close(self) -> None:
        """Let calls in flight end, then free the connections."""
        if self._lanes:
            await asyncio.wait(self._lanes)
        await self._caller.close()

    def _moment(self) -> dict[str, Any]:
        return {} if self._clock is None else {"moment": self._clock.now()}

    def _slots(self, held: bool) -> dict[str, Any]:
        return {"max_running": 0 if held else self._max_running}

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._flush([self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))])
        finally:
            self._free_lanes += 1

    async def _flush(self, batch: list[tuple[Sequence[Event], asyncio.Future[list[Command]]]]) -> None:
        events = [event for submitted, _ in batch for event in submitted]
        arguments = {"events": events, "max_running": self._max_running, **self._moment()}
        try:
            _answer(batch, await self._caller.call("advance", arguments))
        except Permanent as error:
            if len(batch) == 1 or isinstance(error, ConfigurationError):
                _fail(batch, error)
            else:  # one caller's bad event must not fail the others'
                for alone in batch:
                    await self._flush([alone])
        except BaseException as error:
            _fail(batch, error)
            if not isinstance(error, Exception):
                raise


def _answer(batch: list[tuple[Sequence[Event], asyncio.Future[list[Command]]]], commands: list[Command]) -> None:
    """Give each caller the commands that its own events caused; both are in the order of the events."""
    position = first = 0
    for submitted, answered in batch:
        first += len(submitted)
        start = position
        while position < len(commands) and commands[position]["cause"] < first:
            position += 1
        if not answered.done():
            answered.set_result(commands[start:position])


def _fail(batch: list[tuple[Sequence[Event], asyncio.Future[list[Command]]]], error: BaseException) -> None:
    for _, answered in batch:
        if not answered.done():
            answered.set_exception(error)


def _found(answer: _Answer | None, workflow: str) -> _Answer:
    if answer is None:
        raise NotFound(f"there is no workflow {workflow}")
    return answer
