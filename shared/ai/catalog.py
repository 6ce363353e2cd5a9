"""What is known of models: how much of each may be used, and what it costs. Data; whoever reads this mends it here.

Limits of the first three are the operators' own. Google shows a project's limits only in AI Studio
(https://ai.google.dev/gemini-api/docs/rate-limits), so every other model has those of its class in the lowest paid tier, as they
were last published. A project in a higher tier may be allowed more. Days end at midnight Pacific time.

Contexts are the input token limits of https://ai.google.dev/gemini-api/docs/models/ and the model's name; of models that retired,
those of Google's pages of then.

Prices are those of the paid tier for text in prompts of up to 200,000 tokens: a larger prompt does not fit into MAX_PAYLOAD_BYTES
as shipped. Where the price of cached input is not given, it counts as other input.
"""

import logging
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Final

from shared.ai.base import Price

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of a model all instances together may use. None: as much as they like."""

    qps: float
    """Requests per second."""
    burst: float
    """Requests at once, after a pause."""
    per_day: int | None = None
    tokens_per_minute: int | None = None
    """Of input and output together."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model. `source` says where the price stood, `as_of` when: prices change without notice."""

    limit: Limit
    price: Price | None = None
    source: str = ""
    as_of: date | None = None
    context_tokens: int | None = None
    """The most that a prompt may have."""


_PRICING: Final = "https://ai.google.dev/gemini-api/docs/pricing"
_RETIRED: Final = "https://ai.google.dev/gemini-api/docs/pricing, as it was before Google retired the model in September 2025"
_THEN: Final = date(2025, 9, 1)
_NOW: Final = date(2026, 10, 7)

_MEGA: Final = 1_048_576

_PRO: Final = Limit(qps=3, burst=5, per_day=10_000, tokens_per_minute=2_000_000)
_FLASH: Final = Limit(qps=10, burst=20, per_day=10_000, tokens_per_minute=1_000_000)
_FLASH_LITE: Final = Limit(qps=10, burst=20, per_day=None, tokens_per_minute=4_000_000)

CATALOG: Final[dict[str, Entry]] = {
    "gemini-2.5-pro": Entry(_PRO, Price(1.25, 10.00, 0.125), _PRICING, _THEN, _MEGA),
    "gemini-1.5-pro": Entry(Limit(5, 10, 15_000, 4_000_000), Price(1.25, 5.00, 0.3125), _RETIRED, _THEN, 2 * _MEGA),
    "gemini-1.5-flash": Entry(Limit(10, 20, 50_000, 4_000_000), Price(0.075, 0.30, 0.01875), _RETIRED, _THEN, _MEGA),
    "gemini-2.5-flash": Entry(_FLASH, Price(0.30, 2.50, 0.03), _PRICING, _THEN, _MEGA),
    "gemini-2.5-flash-lite": Entry(_FLASH_LITE, Price(0.10, 0.40, 0.01), _PRICING, _THEN, _MEGA),
    "gemini-3-flash-preview": Entry(_FLASH, Price(0.50, 3.00, 0.05), _PRICING, date(2026, 7, 4), _MEGA),
    "gemini-3.1-pro-preview": Entry(_PRO, Price(2.00, 12.00, 0.20), _PRICING, _NOW, _MEGA),
    "gemini-3.1-flash-lite": Entry(_FLASH_LITE, Price(0.25, 1.50), _PRICING, date(2026, 5, 15), _MEGA),
    "gemini-3.5-flash": Entry(_FLASH, Price(1.50, 9.00), _PRICING, _NOW, _MEGA),
    "gemini-3.5-flash-lite": Entry(_FLASH_LITE, Price(0.30, 2.50), _PRICING, _NOW, _MEGA),
    # Half of it until the end of 2026: a budget that counted on the offer would be exceeded unseen the day after.
    "gemini-3.8-flash": Entry(_FLASH, Price(1.50, 7.50), _PRICING, _NOW, _MEGA),
}
"""By the name that Google gives the model."""


def find(model: str, *, qps: float) -> Entry:
    """What is known of `model`. One that nobody knows may be asked `qps` times a second; that is logged, once."""
    known = CATALOG.get(model)
    return _unknown(model, qps) if known is None else known


def at_rate(limit: Limit, qps: float) -> Limit:
    """`limit` with another rate. The burst grows with it where it would be less than a second's worth."""
    return Limit(qps, max(limit.burst, qps), limit.per_day, limit.tokens_per_minute)


@cache
def _unknown(model: str, qps: float) -> Entry:
    _log.warning(
        "model %s is not in the catalog: it gets AI_RATE_QPS (%g) as its rate, no daily limit and no price, so money budgets do not"
        " bound it; add it to shared/ai/catalog.py",
        model,
        qps,
    )
    # With room for less than one request even the first would wait.
    return Entry(Limit(qps, max(qps, 1.0)))
