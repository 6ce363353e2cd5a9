"""A model behind a circuit breaker: when it has failed repeatedly it is left alone for a while, by all instances.

What a call tells of the service:

- It works: a reply, and also an answer that refuses (key, permission, safety, no such model) or is of no use.
- It fails: ModelUnavailable, a timeout, and any error that nobody expected.
- Nothing: a quota that is used up, our own limit's or the provider's, a budget that is, a prompt that no context holds, and a call
  that was cancelled. Were that a success, the calls that a limit turns away would keep a dead service's circuit closed; were it a
  failure, a full quota would open it.

Retries stand outside: each of their calls counts, and a probe is one call (docs/decisions/2026-11-24-breaker-inside-retries.md).

Of a probe something must be said, or its place stays taken for as long as a probe may last. One that told nothing sends the
circuit back to OPEN: it has proven nothing, the pause is shorter than the wait for a lost probe, and a limit that turned the probe
away would turn the next one away too.
"""

import asyncio
from typing import Final

from shared.ai.accounted import UNASKED
from shared.ai.base import Model, Reply, Request
from shared.clock import Clock
from shared.errors import CircuitOpen, ModelRefused, OutputInvalid, RateLimited
from shared.guards import Breaker
from shared.telemetry import metrics

_STATES: Final = {"CLOSED": 0, "HALF_OPEN": 1, "OPEN": 2}
_OVERDUE: Final = 0.95
"""Of a request's timeout. The caller's own deadline ends with it and may come first: a call cancelled then has timed out."""


def breaker_of(model: str) -> str:
    """The name of a model's breaker."""
    return f"model:{model}"


async def breaker_state(breaker: Breaker, model: str) -> str:
    """CLOSED, OPEN or HALF_OPEN, as the gauge `ai.breaker.state` shows from then on."""
    state = await breaker.state(breaker_of(model))
    metrics.gauge("ai.breaker.state", _STATES[state], model=model)
    return state


class BreakerModel:
    """`inner`, asked while the breaker of the model called `name` allows it."""

    def __init__(self, inner: Model, breaker: Breaker, clock: Clock, *, name: str) -> None:
        self._inner = inner
        self._breaker = breaker
        self._clock = clock
        self._name = name
        self._closed = True
        """As of the last look. While it is, no further one is needed: a call that the breaker refuses tells of a change."""

    async def generate(self, request: Request) -> Reply:
        """Raises CircuitOpen when the breaker does not allow the call."""
        try:
            await self._breaker.before(breaker_of(self._name))
        except CircuitOpen:
            await self._look()
            raise
        begun = self._clock.monotonic()
        try:
            reply = await self._inner.generate(request)
        except (RateLimited, *UNASKED):
            await self._give_back_probe()
            raise
        except (ModelRefused, OutputInvalid):
            await self._report(success=True)
            raise
        except asyncio.CancelledError:
            if self._clock.monotonic() - begun >= request.timeout_seconds * _OVERDUE:
                await self._report(success=False)
            else:
                await self._give_back_probe()
            raise
        except Exception:
            await self._report(success=False)
            raise
        await self._report(success=True)
        return reply

    async def _give_back_probe(self) -> None:
        if await self._look() == "HALF_OPEN":
            await self._report(success=False)

    async def _report(self, *, success: bool) -> None:
        await self._breaker.after(breaker_of(self._name), success=success)
        if success and self._closed:
            metrics.gauge("ai.breaker.state", _STATES["CLOSED"], model=self._name)
        else:
            await self._look()

    async def _look(self) -> str:
        state = await breaker_state(self._breaker, self._name)
        self._closed = state == "CLOSED"
        return state
