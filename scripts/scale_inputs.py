"""What scale.py computes with: what one workflow uses, and what is paid for. Measured, assumed or read; each says which."""

from collections.abc import Mapping
from dataclasses import dataclass

DAY = 86_400

# One workflow `report` with nine questions; calls of an agent's tools' rounds are in there.
CALLS = {"planner": 1, "researcher": 9, "writer": 2, "critic": 4, "judge": 1}
STEPS = 21
EVENTS = STEPS + 1
MESSAGES = STEPS + EVENTS
CALLS_IN_A_ROW = 9
# Assumptions, these and what follows: a model of the platform's own cannot tell how long another one thinks.
CALL_SECONDS = 6.0
INPUT_TOKENS, OUTPUT_TOKENS = 2_000, 500
MESSAGE_BYTES = 4_096
KEPT_BYTES = 200_000
LOG_BYTES = 45 * 600
GUARD_CALLS = 2 * MESSAGES + 2 * sum(CALLS.values())
PATH_SECONDS = round(CALLS_IN_A_ROW * CALL_SECONDS)
ALL_CALLS = sum(CALLS.values())


EVENTS_A_CORE, POSTS_A_CORE = 730, 750
"""What an instance of one core does: half of what two were measured to do (docs/development.md)."""


@dataclass(frozen=True)
class Price:
    """Dollars for one `unit`, from a page, as of a day. `read` False: not read there, so check it before you rely on it."""

    dollars: float
    unit: str
    source: str
    as_of: str
    read: bool = True


PRICES: Mapping[str, Price] = {
    "vcpu": Price(0.000024, "vCPU-second", "cloud.google.com/run/pricing, tier 1, billed by request", "2026-11-25"),
    "memory": Price(0.0000025, "GiB-second", "cloud.google.com/run/pricing, tier 1", "2026-11-25", read=False),
    "request": Price(0.40 / 1e6, "request", "cloud.google.com/run/pricing", "2026-11-25", read=False),
    "pubsub": Price(40 / 2**40, "byte", "cloud.google.com/pubsub/pricing", "2026-09-20"),
    "database": Price(
        210 / 30 / DAY, "second of a Supabase XL (4 cores)", "supabase.com/docs manage-your-usage/compute", "2026-11-25"
    ),
    "disk": Price(0.125 / 1e9, "byte kept a month", "supabase.com/pricing", "2026-11-25", read=False),
    "redis": Price(
        5 * 0.064 / 3_600, "second of 5 GiB, two zones", "cloud.google.com/memorystore/docs/redis/pricing", "2026-11-25", read=False
    ),
    "firestore": Price(0.09 / 100_000, "write", "cloud.google.com/firestore/pricing", "2026-11-25", read=False),
    "logs": Price(0.50 / 2**30, "byte", "cloud.google.com/stackdriver/pricing", "2026-11-25", read=False),
    "gemini-2.5-pro input": Price(1.25e-6, "token", "ai.google.dev/gemini-api/docs/pricing (shared/ai/catalog.py)", "2025-09-01"),
    "gemini-2.5-pro output": Price(10e-6, "token", "ai.google.dev/gemini-api/docs/pricing (shared/ai/catalog.py)", "2025-09-01"),
    "gemini-2.5-flash-lite input": Price(
        0.10e-6, "token", "ai.google.dev/gemini-api/docs/pricing (shared/ai/catalog.py)", "2025-09-01"
    ),
    "gemini-2.5-flash-lite output": Price(
        0.40e-6, "token", "ai.google.dev/gemini-api/docs/pricing (shared/ai/catalog.py)", "2025-09-01"
    ),
}
