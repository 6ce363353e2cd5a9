"""A model that extracts: no network, no cost, the same answer to the same request in every process.

It answers from the request's material alone and makes nothing up: every statement is taken from the material or counted in it.
Reports that it puts together say at their end that they were written offline.
"""

import asyncio

import orjson

from shared.ai.base import Reply, Request
from shared.ai.offline.fill import fill
from shared.ai.offline.language import closed
from shared.ai.offline.material import Material
from shared.ai.offline.report import NOTICE
from shared.ai.schema import check
from shared.messages import Usage

NAME = "offline"
_CHARACTERS_PER_TOKEN = 4
_INLINE_CHARACTERS = 20_000


class OfflineModel:
    """Fills the asked-for schema with sentences, key phrases and scores of the given text. Called `offline`; costs nothing."""

    async def generate(self, request: Request) -> Reply:
        """Raises OutputInvalid when the schema asks for what no text could give (a minimum above its maximum, …).

        It keeps the request's account itself, so that budgets count its tokens too: nothing else stands in front of it.
        """
        if len(request.prompt) <= _INLINE_CHARACTERS:
            reply = _answer(request)
        else:
            # Long texts take tens of milliseconds, in which the loop should serve others.
            reply = await asyncio.to_thread(_answer, request)
        if request.account is not None:
            # Since it costs nothing, there is no harm in asking only once it is known what it took.
            hold = await request.account.hold(tokens=reply.usage.tokens, cost_microdollars=0)
            await request.account.settle(hold, model=NAME, usage=reply.usage)
        return reply


def _answer(request: Request) -> Reply:
    material = Material(request.material, request.prompt)
    if request.schema is None:
        output = "\n\n".join([" ".join(closed(unit.text) for unit, _ in material.relevant) or "The material is empty.", NOTICE])
    else:
        output = fill(request.schema, material)
        check(output, request.schema)
    usage = Usage(model_calls=1, input_tokens=_tokens(len(request.prompt)), output_tokens=_tokens(len(orjson.dumps(output))))
    return Reply(output=output, model=NAME, usage=usage)


def _tokens(size: int) -> int:
    """An estimate: four characters to a token, rounded up."""
    return -(-size // _CHARACTERS_PER_TOKEN)
