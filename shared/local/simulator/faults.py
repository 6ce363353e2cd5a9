"""What goes wrong on purpose: by chance, or for the next calls."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from shared.errors import ConfigurationError


class Kind(StrEnum):
    """How a call fails. The first six are error statuses; of the rest the caller gets a 200, if anything."""

    RATE_LIMITED = "rate-limited"
    """429 with `retry_after_seconds`, although the quota has room: so no violation."""
    INTERNAL = "internal"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    SLOW = "slow"
    """Answered after `seconds`."""
    HANGING = "hanging"
    """Never answered: it ends when the caller goes."""
    DROPPED = "dropped"
    """The connection is cut before a byte of the answer."""
    BROKEN_OFF = "broken-off"
    """The connection is cut in the middle of the answer."""
    TRUNCATED_JSON = "truncated-json"
    NOT_JSON = "not-json"
    BLOCKED_PROMPT = "blocked-prompt"
    BLOCKED_ANSWER = "blocked-answer"
    MAX_TOKENS = "max-tokens"
    """Half an answer, as if the output tokens had run out."""
    NO_CANDIDATES = "no-candidates"
    BAD_OUTPUT = "bad-output"
    """A whole answer whose text is not the JSON that was asked for."""


STATUSES: Final[Mapping[Kind, tuple[int, str, str]]] = {
    Kind.RATE_LIMITED: (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota)."),
    Kind.INTERNAL: (500, "INTERNAL", "An internal error has occurred. Please retry."),
    Kind.UNAVAILABLE: (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    Kind.DEADLINE: (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete."),
    Kind.FORBIDDEN: (403, "PERMISSION_DENIED", "Your API key does not have permission to use this model."),
    Kind.NOT_FOUND: (404, "NOT_FOUND", "The model is not found for API version v1, or is not supported for generateContent."),
}
"""Code, status and message of the faults that are error statuses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One way to fail, for the `next` calls or for each call with a `probability`; one of the two is given."""

    kind: Kind
    next: int = 0
    probability: float = 0.0
    seconds: float = 1.0
    """Of a slow call."""
    retry_after_seconds: float = 1.0
    """Of a 429."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what no fault can be."""
        if not 0 <= self.probability <= 1 or self.next < 0 or min(self.seconds, self.retry_after_seconds) < 0:
            raise ConfigurationError(
                "a fault's probability is 0 to 1, and its next, seconds and retry_after_seconds are not negative"
            )
        if (self.next > 0) == (self.probability > 0):
            raise ConfigurationError(f"the fault {self.kind} needs either next (a number of calls) or probability")


def fault_from(given: Mapping[str, Any]) -> Fault:
    """A fault as JSON gives it: `{"kind": "slow", "next": 2, "seconds": 0.5}`. Raises ConfigurationError."""
    numbers = {name: value for name, value in given.items() if name in ("next", "probability", "seconds", "retry_after_seconds")}
    extra = given.keys() - numbers.keys() - {"kind"}
    if extra:
        raise ConfigurationError(f"a fault has no {', '.join(sorted(extra))}")
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in numbers.values()):
        raise ConfigurationError("a fault's next, probability, seconds and retry_after_seconds are numbers")
    if given.get("kind") not in frozenset(Kind):
        raise ConfigurationError(f"a fault's kind is one of: {', '.join(Kind)}")
    return Fault(kind=Kind(given["kind"]), **numbers)


class Faults:
    """The faults of all models. Those for the next calls come first, in the order in which they were set."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.clear()

    def add(self, fault: Fault, *, model: str | None = None) -> None:
        """Set a fault for `model`; None: for whichever model is called."""
        if fault.next:
            self._coming.extend([(model, fault)] * fault.next)
        else:
            self._likely.append((model, fault))

    def draw(self, model: str) -> Fault | None:
        """What becomes of the call that has just come for `model`; None: it goes well."""
        for place, (meant, fault) in enumerate(self._coming):
            if meant in (None, model):
                del self._coming[place]
                return fault
        for meant, fault in self._likely:
            if meant in (None, model) and self._random.random() < fault.probability:
                return fault
        return None

    def clear(self) -> None:
        """No more faults; chance begins anew."""
        self._random = random.Random(self._seed)
        self._coming: list[tuple[str | None, Fault]] = []
        self._likely: list[tuple[str | None, Fault]] = []
