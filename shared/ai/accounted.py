"""A model whose calls somebody pays for: the most that a call can use is set aside before it, and settled with what it used.

What is set aside is an upper bound, so that calls side by side can never spend more than there is. What comes of it:

- A reply, usable or not: it is settled with its usage. One that does not say what it used keeps what was set aside.
- A definite no (an HTTP status, a request that could not be written): nothing was used, all is given back.
- No answer, a call that was cancelled, an error that nobody expected: it may have been charged, so it counts as spent.

A reply that was paid for no use becomes the error that it carries here, once it is paid.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from shared.ai.base import Account, Hold, Model, Price, Reply, Request
from shared.ai.sent import input_tokens_about, input_tokens_at_most
from shared.clock import Clock
from shared.errors import (
    BudgetExceeded,
    Cancelled,
    ConfigurationError,
    ContentBlocked,
    ModelRefused,
    ModelUnavailable,
    ModelUnknown,
    OutcomeUnknown,
    OutputInvalid,
    PromptTooLarge,
    RateLimited,
)
from shared.messages import Usage
from shared.telemetry import metrics

UNASKED: Final = (BudgetExceeded, Cancelled, PromptTooLarge)
"""What ends a call before the model is asked: it tells nothing of the model, and uses up nothing of its quota."""
_UNUSED: Final = (RateLimited, ModelRefused, ModelUnavailable, ConfigurationError)
"""But for OutcomeUnknown: errors of calls that were certainly not carried out."""
_NOTHING: Final = Usage()
_OUTCOMES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (OutputInvalid, "invalid"),
    (ContentBlocked, "blocked"),
    (ModelUnknown, "unknown_model"),
    (ModelRefused, "refused"),
    (RateLimited, "rate_limited"),
    (OutcomeUnknown, "timeout"),
    (ModelUnavailable, "unavailable"),
    (BudgetExceeded, "budget"),
    (Cancelled, "cancelled"),
    (asyncio.CancelledError, "cancelled"),
    (BaseException, "error"),
)
"""The words of `ai.requests` for a call that failed, the first that fits."""


class AccountedModel:
    """`inner`, paid for by the account of each request; without one it is only counted.

    `price` and `context_tokens` are the model's, None where nobody knows them. `count` asks the provider for the exact tokens of an
    input: it is asked only when the budget does not hold the upper bound.
    """

    def __init__(
        self,
        inner: Model,
        *,
        name: str,
        price: Price | None,
        context_tokens: int | None,
        clock: Clock,
        count: Callable[[Request], Awaitable[int]] | None = None,
    ) -> None:
        self._inner = inner
        self._name = name
        self._price = Price() if price is None else price
        self._context_tokens = context_tokens
        self._clock = clock
        self._count = count

    async def generate(self, request: Request) -> Reply:
        """Raises BudgetExceeded and PromptTooLarge before anything is asked, and what a reply has as its problem."""
        try:
            self._check_context(request)
            reply = await self._paid(request)
            if reply.problem is not None:
                raise reply.problem
        except BaseException as error:
            outcome = next(word for kind, word in _OUTCOMES if isinstance(error, kind))
            metrics.count("ai.requests", model=self._name, outcome=outcome)
            raise
        metrics.count("ai.requests", model=self._name, outcome="success")
        return reply

    def _check_context(self, request: Request) -> None:
        if self._context_tokens is not None and (tokens := input_tokens_about(request)) > self._context_tokens:
            raise PromptTooLarge(
                f"{self._name}: the prompt has about {tokens} tokens and the model takes {self._context_tokens}; shorten the input"
            )

    async def _paid(self, request: Request) -> Reply:
        account = request.account
        if account is None:
            reply = await self._inner.generate(request)
            self._note(reply.usage)
            return reply
        begun = self._clock.monotonic()
        hold = await self._hold(account, request)
        left = max(0.001, request.timeout_seconds - (self._clock.monotonic() - begun))
        try:
            reply = await self._inner.generate(replace(request, timeout_seconds=left))
        except OutcomeUnknown:
            raise
        except _UNUSED:
            await account.settle(hold, model=self._name, usage=_NOTHING)
            raise
        self._note(reply.usage)
        if reply.usage.tokens:
            await account.settle(hold, model=self._name, usage=reply.usage)
        return reply

    async def _hold(self, account: Account, request: Request) -> Hold:
        at_most = input_tokens_at_most(request)
        try:
            return await self._set_aside(account, at_most, request.max_tokens)
        except BudgetExceeded:
            if self._count is None:
                raise
        return await self._set_aside(account, min(at_most, await self._count(request)), request.max_tokens)

    async def _set_aside(self, account: Account, input_tokens: int, output_tokens: int) -> Hold:
        # Thinking is part of what max_tokens allows. What the provider has cached is cheaper, but nobody knows how much that is.
        cost = self._price.microdollars(input_tokens=input_tokens, output_tokens=output_tokens)
        return await account.hold(tokens=input_tokens + output_tokens, cost_microdollars=cost)

    def _note(self, usage: Usage) -> None:
        metrics.count("ai.tokens", usage.input_tokens, model=self._name, type="input")
        metrics.count("ai.tokens", usage.output_tokens, model=self._name, type="output")
        metrics.count("ai.cost_microdollars", usage.cost_microdollars, model=self._name)
