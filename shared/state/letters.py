"""Messages that used up their delivery attempts, as the state keeps them.

A letter as `listed` shows it:

    {"id": 7, "message_id": "wf_…/draft/1", "subscription": "agent-writer.writer", "topic": "agent-writer", "function": "writer",
     "cause": "store", "reason": "attempts exhausted", "last_error": {"type": "StoreUnavailable", "message": "…", "at": "…"},
     "attempts": 10, "workflow": "wf_…", "step": "draft", "attempt": 1, "state": "waiting", "redrive_count": 0, "redriven_at": null,
     "recorded_at": "…", "size_bytes": 812}

Read whole it also has its `data` in base64, its `attributes`, and `blocked`: why its step can't be resumed, null when it can.
"""

from collections.abc import Sequence
from typing import Any, Literal

from shared.clock import Clock
from shared.state.base import Caller

LetterState = Literal["waiting", "redriven", "again"]
"""Never redriven; sent again, and nothing heard since; dead again after its last redrive."""
Letter = dict[str, Any]
LetterFilter = dict[str, Any]
"""Any of ids, states, cause (or its group), function, workflow, since and until (RFC 3339, until is not included)."""


class DeadLetters:
    """The calls about dead letters; for errors see `Caller.call`. `clock` replaces the database's time in tests."""

    def __init__(self, caller: Caller, clock: Clock | None) -> None:
        self._caller = caller
        self._clock = clock

    async def record(self, letter: Letter) -> None:
        """Keep a message that used up its attempts; `data` is base64. A copy changes nothing; one that was redriven is marked."""
        await self._caller.call("record_dead_letter", {"letter": letter, **self._moment()})

    async def listed(self, wanted: LetterFilter, *, before: int | None = None, limit: int = 50) -> list[Letter]:
        """The newest first, without their data. `before` is the last id of the page before."""
        page: list[Letter] = await self._caller.call("list_dead_letters", {"filter": wanted, "before": before, "max_rows": limit})
        return page

    async def count(self, wanted: LetterFilter) -> int:
        """How many there are."""
        return int(await self._caller.call("count_dead_letters", {"filter": wanted}))

    async def read(self, ids: Sequence[int]) -> list[Letter]:
        """Those of `ids` that are there, whole, the newest first."""
        letters: list[Letter] = await self._caller.call("read_dead_letters", {"ids": list(ids)})
        return letters

    async def take(self, ids: Sequence[int], *, states: Sequence[LetterState]) -> list[Letter]:
        """Mark those of `ids` that are in one of `states` as redriven and return them whole. Each letter goes to one caller."""
        arguments = {"ids": list(ids), "states": list(states), **self._moment()}
        letters: list[Letter] = await self._caller.call("redrive_dead_letters", arguments)
        return letters

    async def put_back(self, ids: Sequence[int]) -> None:
        """Take the mark back from letters that were not sent after all."""
        await self._caller.call("return_dead_letters", {"ids": list(ids)})

    def _moment(self) -> dict[str, Any]:
        return {} if self._clock is None else {"moment": self._clock.now()}
