"""What a model is to the platform: one request in, one reply out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.messages import Usage

JsonSchema = Mapping[str, Any]
"""A JSON Schema (draft 2020-12) as the providers take it: object, array, string, number, integer, boolean, enum, bounds."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to a model.

    `prompt` is the rendered text. `material` is what the prompt is about (the task's input), for models that work on it directly.
    """

    prompt: str
    schema: JsonSchema | None = None
    """What the answer must look like; None asks for plain text."""
    material: Mapping[str, Any] = field(default_factory=dict)
    tier: str = "default"
    """Which chain of models to ask: default, fast, …"""
    temperature: float = 0.2
    max_tokens: int = 4096
    timeout_seconds: float = 60.0
    """Never later than the step's deadline."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered: `output` is JSON that fits the schema, or text."""

    output: Any
    model: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in US dollars per million tokens."""

    input_usd: float = 0.0
    output_usd: float = 0.0
    cached_input_usd: float | None = None
    """For input that the provider had cached; None: the same as other input."""

    def microdollars(self, *, input_tokens: int, output_tokens: int, cached_tokens: int = 0) -> int:
        """The cost of one call, rounded up. `cached_tokens` are part of `input_tokens`."""
        cached_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        # A dollar per million tokens is a microdollar per token.
        fresh = (input_tokens - cached_tokens) * self.input_usd
        return math.ceil(fresh + cached_tokens * cached_usd + output_tokens * self.output_usd)


class Model(Protocol):
    """A model, or a wrapper around one that adds a limit, a retry, a fallback."""

    async def generate(self, request: Request) -> Reply:
        """Raises ModelRefused, OutputInvalid (permanent), ModelUnavailable, RateLimited, CircuitOpen (transient)."""
        ...
