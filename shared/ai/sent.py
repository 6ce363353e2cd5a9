"""What a request says to the model: as JSON, and how large it is before anybody has counted its tokens."""

import base64
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson

from shared.ai.base import Request

_BYTES_PER_TOKEN: Final = 4
"""Google's rule of thumb (https://ai.google.dev/gemini-api/docs/tokens) for English; other scripts have more bytes a letter."""
_FRAME_TOKENS: Final = 64
"""What a provider puts around a prompt, a declaration, a turn and each of its calls: roles, marks, names of fields."""


def to_json(value: Any) -> bytes:
    """Parts of a request or reply as JSON, always in the same order; signatures in base64."""
    return orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)


def sent_bytes(request: Request) -> int:
    """The bytes of all that the model is told: prompt, schema, declarations of tools and turns."""
    size = len(request.prompt.encode(errors="replace"))
    for part in (request.schema, request.tools, request.turns):
        if part:
            size += len(to_json(part))
    return size


def input_tokens_about(request: Request) -> int:
    """A guess at the tokens of the input, by rule of thumb."""
    return math.ceil(sent_bytes(request) / _BYTES_PER_TOKEN)


def input_tokens_at_most(request: Request) -> int:
    """More tokens than the input can have: none is shorter than a byte."""
    frames = 1 + len(request.tools) + sum(1 + len(turn.calls) for turn in request.turns)
    return sent_bytes(request) + frames * _FRAME_TOKENS


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError
