"""What the simulator has seen, by model: whoever tests a client reads here what it really did."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Final

_ARRIVALS: Final = 10_000
"""So many of the latest arrivals are kept."""


@dataclass(slots=True)
class Entry:
    """What one model was asked."""

    calls: int = 0
    """Valid calls for content, those over quota and those that failed on purpose included."""
    answered: int = 0
    """Calls whose whole answer was written, a blocked or useless one included."""
    violations: int = 0
    """Calls above the quota."""
    counted: int = 0
    """Calls of countTokens, which has no quota here."""
    input_tokens: int = 0
    """Of everything that was generated, whether or not it reached the caller; so are the other tokens."""
    output_tokens: int = 0
    """Without thinking."""
    thinking_tokens: int = 0
    cached_tokens: int = 0
    in_flight: int = 0
    """Calls for content that are being answered now."""
    most_in_flight: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    """Failures on purpose, by kind."""
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=_ARRIVALS))
    """When the calls came, on the clock's monotonic reading."""

    def began(self, monotonic: float) -> None:
        """A call came."""
        self.calls += 1
        self.arrivals.append(monotonic)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)

    def as_json(self) -> dict[str, Any]:
        """The entry as JSON."""
        names = [name for name in self.__slots__ if name not in ("faults", "arrivals")]
        return {name: getattr(self, name) for name in names} | {"faults": dict(self.faults), "arrivals": list(self.arrivals)}


class Ledger:
    """The entries of all models, and what was refused before it came to one."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self.refused: Counter[int] = Counter()
        """Requests that were wrong (key, path, model, body), by HTTP status."""

    def __getitem__(self, model: str) -> Entry:
        return self._entries.setdefault(model, Entry())

    @property
    def calls(self) -> int:
        """Of all models."""
        return sum(entry.calls for entry in self._entries.values())

    @property
    def violations(self) -> int:
        """Of all models."""
        return sum(entry.violations for entry in self._entries.values())

    def as_json(self) -> dict[str, Any]:
        """`{"models": {name: entry}, "refused": {status: count}}`."""
        models = {model: entry.as_json() for model, entry in self._entries.items()}
        return {"models": models, "refused": {str(status): count for status, count in self.refused.items()}}

    def clear(self) -> None:
        """Forget everything. Calls in progress end in the old entries."""
        self._entries.clear()
        self.refused.clear()
