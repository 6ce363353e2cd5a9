"""A model whose answers fit the schema that was asked for.

The provider gives text; here it is read as JSON and checked. A fence and white space around the JSON are tolerated,
nothing else. An answer that is of no use is asked for once more, with a word on what was wrong with it: the place and the rule,
never the value. With tools the answer is text, as the request says.
"""

import logging
from dataclasses import replace
from typing import Final

from shared.ai.base import Model, Reply, Request
from shared.ai.schema import read_answer
from shared.clock import Clock
from shared.errors import OutputEmpty, OutputInvalid, OutputTruncated
from shared.messages import Usage

_log = logging.getLogger(__name__)
_LEAST_SECONDS: Final = 1.0
"""Below that no answer can be expected, and what is asked for is charged all the same."""


class StructuredModel:
    """`inner`, whose text becomes JSON that fits the request's schema."""

    def __init__(self, inner: Model, clock: Clock) -> None:
        self._inner = inner
        self._clock = clock

    async def generate(self, request: Request) -> Reply:
        """Raises OutputInvalid when the second answer is of no use either."""
        deadline = self._clock.monotonic() + request.timeout_seconds
        paid = Usage()
        try:
            reply = await self._inner.generate(request)
            paid = reply.usage
            return _read(reply, request)
        except OutputInvalid as error:
            left = deadline - self._clock.monotonic()
            if left < _LEAST_SECONDS:
                raise
            _log.warning("an answer is of no use and is asked for again: %s", error)
            repair = replace(request, prompt=_complaint(request, error), timeout_seconds=left)
        reply = await self._inner.generate(repair)
        return _read(replace(reply, usage=paid + reply.usage), request)


def _read(reply: Reply, request: Request) -> Reply:
    """The reply with its JSON in place of the text. Raises OutputInvalid."""
    if request.schema is None or request.tools:
        return reply
    return replace(reply, output=read_answer(str(reply.output), request.schema))


def _complaint(request: Request, error: OutputInvalid) -> str:
    """The prompt, with what was wrong with the answer to it."""
    if isinstance(error, OutputTruncated):
        wrong = f"it was cut off at the limit of {request.max_tokens} tokens; be much briefer"
    elif isinstance(error, OutputEmpty):
        wrong = "it was empty"
    else:
        wrong = str(error)
    form = "" if request.schema is None or request.tools else " Give nothing but JSON that fits the schema."
    return f"{request.prompt}\n\nYour previous answer to this could not be used: {wrong}. Answer again, in full.{form}"
