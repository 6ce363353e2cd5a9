"""What one attempt may spend of its workflow's budget, and what it has spent.

The budget is kept as windows without refill in the shared limiter, so that parallel steps cannot overspend: the most that a call
can use is held before it, and corrected when it is known what it used. What is never corrected (the process died, no answer came)
counts as spent. A window is forgotten after a week, and with a store that loses its memory; then what the dispatch said was left
still bounds each attempt.

Where a workflow has no limit nothing is asked of the store.
"""

from collections.abc import Sequence
from typing import Final

from shared.ai.base import Hold
from shared.clock import Clock
from shared.errors import BudgetExceeded, RateLimited, ShareUsed, StoreUnavailable
from shared.guards import RateLimiter, Window
from shared.messages import Remaining, Usage

TOKENS: Final = "tokens"
COST: Final = "cost"
_WINDOW_SECONDS: Final = 7 * 86_400.0
_NOTHING: Final = Usage()
_FIELDS: Final = {TOKENS: "max_tokens", COST: "max_cost_usd"}


def bucket_of(workflow: str) -> str:
    """The name of a workflow's bucket in the limiter."""
    return f"budget:{workflow}"


class WorkflowAccount:
    """The account of one attempt. `remaining` is what its dispatch said of the workflow's budget."""

    def __init__(self, limiter: RateLimiter, clock: Clock, *, workflow: str, remaining: Remaining) -> None:
        self._limiter = limiter
        self._clock = clock
        self._workflow = workflow
        self._limits = _limits(remaining)
        self._left = {TOKENS: remaining.tokens, COST: remaining.cost_microdollars}
        self._taken = {TOKENS: 0, COST: 0}
        """Spent and held by this attempt."""
        self.usage = _NOTHING
        """What the settled calls have used."""
        self.models: dict[str, Usage] = {}
        """The same by model."""

    async def hold(self, *, tokens: int, cost_microdollars: int) -> Hold:
        """Set aside the most that a call can use. Raises BudgetExceeded, and holds nothing, when that is more than is left."""
        costs = {TOKENS: tokens, COST: cost_microdollars}
        for name, cost in costs.items():
            self._check(name, cost)
        # Before anything is awaited: two calls of one attempt must not both find the same rest.
        self._take(costs)
        held_at = self._clock.monotonic()
        try:
            await _reserve(self._limiter, self._workflow, self._limits, costs, max_wait_seconds=0)
        except Exception as error:
            self._take({name: -cost for name, cost in costs.items()})
            if isinstance(error, ShareUsed):  # no reason to fail the workflow for good
                raise StoreUnavailable(
                    "the guards' store is down, and this instance has used its share of the workflow's budget; try later"
                ) from error
            if isinstance(error, RateLimited):
                raise _exceeded(*self._limits) from error
            raise
        return Hold(tokens, cost_microdollars, held_at)

    async def settle(self, hold: Hold, *, model: str, usage: Usage) -> None:
        """The call is over and used this: record it, and free the rest."""
        if usage != _NOTHING:
            self.usage += usage
            self.models[model] = self.models.get(model, _NOTHING) + usage
        corrections = {TOKENS: usage.tokens - hold.tokens, COST: usage.cost_microdollars - hold.cost_microdollars}
        self._take(corrections)
        age = self._clock.monotonic() - hold.held_at
        for name in self._limits:
            if corrections[name]:
                await self._limiter.settle(bucket_of(self._workflow), window=name, cost=corrections[name], age_seconds=age)

    def _check(self, name: str, cost: int) -> None:
        limit, left = self._limits.get(name), self._left[name]
        if (limit is not None and cost > limit) or (left is not None and self._taken[name] + cost > left):
            raise _exceeded(name)

    def _take(self, costs: dict[str, int]) -> None:
        for name, cost in costs.items():
            self._taken[name] += cost


async def seed(limiter: RateLimiter, *, workflow: str, limits: Remaining, spent: Usage) -> None:
    """Tell a limiter that has forgotten, or never knew, what a workflow has spent of its budget."""
    known = _limits(limits)
    used = {TOKENS: spent.tokens, COST: spent.cost_microdollars}
    await _reserve(limiter, workflow, known, {name: min(used[name], limit) for name, limit in known.items()})


def _limits(remaining: Remaining) -> dict[str, int]:
    limits = {TOKENS: remaining.max_tokens, COST: remaining.max_cost_microdollars}
    return {name: limit for name, limit in limits.items() if limit is not None}


async def _reserve(
    limiter: RateLimiter, workflow: str, limits: dict[str, int], costs: dict[str, int], *, max_wait_seconds: float | None = None
) -> None:
    # The limiter knows no empty window; of a limit of 0 nothing can be held anyway.
    windows: Sequence[Window] = [
        Window(name, limit, costs[name], _WINDOW_SECONDS, _WINDOW_SECONDS) for name, limit in limits.items() if limit
    ]
    if windows:
        # The bucket itself never fills: all that counts are its windows.
        await limiter.reserve(bucket_of(workflow), rate=1, burst=1, cost=0, windows=windows, max_wait_seconds=max_wait_seconds)


def _exceeded(*names: str) -> BudgetExceeded:
    fields = " or ".join(_FIELDS[name] for name in names)
    raised = " or ".join(f"budget.{_FIELDS[name]}" for name in names)
    return BudgetExceeded(
        f"what is left of the workflow's {fields} does not cover another call to a model; "
        f"raise {raised} of the definition or the request"
    )
