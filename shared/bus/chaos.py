"""The misbehaviour that Pub/Sub allows itself, on demand and repeatable: copies, disorder, delay."""

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Chaos:
    """How a bus shall misbehave. The same seed, messages and handlers give the same misbehaviour."""

    seed: int
    duplicates: int = 1
    """How often every message is delivered to each subscription, at least 1."""
    duplicate_probability: float = 0.0
    """0 to 1: how likely one more copy is."""
    reorder: bool = False
    """Hand out what waits in random order."""
    delay_seconds_max: float = 0.0
    """Hold every copy back for a random time up to this."""

    def delays(self, random: Random) -> list[float]:
        """The seconds to hold back each copy of a message; one number per copy."""
        copies = self.duplicates + (random.random() < self.duplicate_probability)
        return [random.uniform(0.0, self.delay_seconds_max) for _ in range(copies)]
