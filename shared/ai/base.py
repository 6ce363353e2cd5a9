"""What a model is to the platform: one request in, one reply out."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shared.errors import AgentTeamError
from shared.messages import Usage

JsonSchema = Mapping[str, Any]
"""A JSON Schema (draft 2020-12) as the providers take it: object, array, string, number, integer, boolean, enum, bounds."""


@dataclass(frozen=True, slots=True)
class Declaration:
    """A function that the model may ask for."""

    name: str
    description: str
    parameters: JsonSchema
    """Of type object: an argument a property."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model asks for."""

    name: str
    arguments: Mapping[str, Any]
    id: str | None = None
    """What the provider calls it, when it names its calls."""
    signature: bytes | None = field(default=None, repr=False)
    """What the provider wants to see again beside the call (Gemini's thought signature); opaque."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A round of tool calls: what `model` asked for, and the JSON object that each call gave, in the same order."""

    model: str
    calls: tuple[ToolCall, ...]
    results: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Hold:
    """What is set aside for one call until it is known what it used."""

    tokens: int
    cost_microdollars: int
    held_at: float
    """On the monotonic clock of the account."""


class Account(Protocol):
    """What somebody may spend on models, and what they have spent."""

    async def hold(self, *, tokens: int, cost_microdollars: int) -> Hold:
        """Set aside the most that a call can use. Raises BudgetExceeded, and holds nothing, when that is more than is left."""
        ...

    async def settle(self, hold: Hold, *, model: str, usage: Usage) -> None:
        """The call is over and used this: record it, and free the rest. What is never settled counts as spent."""
        ...


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
    prompt_version: str = ""
    """What tells this prompt from its other versions: its content hash."""
    tools: tuple[Declaration, ...] = ()
    """What the model may call instead of answering. With tools the answer is text, whatever `schema` says."""
    turns: tuple[Turn, ...] = ()
    """What was called and answered since the prompt."""
    account: Account | None = field(default=None, repr=False, compare=False)
    """Who pays; None: nobody counts."""
    on_text: Callable[[str], None] | None = field(default=None, repr=False, compare=False)
    """Asks for a streamed answer, and is told the text so far as it grows. A call that is repeated begins anew."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered: `output` is JSON that fits the schema, or text."""

    output: Any
    model: str
    usage: Usage
    calls: tuple[ToolCall, ...] = ()
    """What it wants called before it answers; `output` is then what it said besides, perhaps nothing."""
    problem: AgentTeamError | None = None
    """Why an answer that was paid for is of no use. Set by a provider only: whoever keeps the account raises it."""


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
    """A model, or a wrapper around one that adds a limit, a retry, a fallback.

    A provider (one file, such as gemini.py) answers text even where a schema was asked for, and sets `problem` where it gives no
    answer for its tokens; StructuredModel and AccountedModel do the rest for all of them.
    """

    async def generate(self, request: Request) -> Reply:
        """Raises ModelRefused, OutputInvalid (permanent), ModelUnavailable, RateLimited, CircuitOpen (transient)."""
        ...
