"""Limits, a day second by second, what to turn, and what it costs.

Every limit is a capacity in its own unit and what one workflow uses of it; the smallest quotient is the bottleneck. A day is
arrivals that a seed scatters over a daily curve, with a burst of ten minutes at ten times the mean. Workflows are admitted in order
and go on in parallel as fast as the bottleneck lets them, but no faster than their own chain of model calls. It is a model of
flows: it knows no single retries, and takes every place of an instance as equally good. Standard library only.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from scale_inputs import (
    ALL_CALLS,
    CALL_SECONDS,
    CALLS,
    DAY,
    EVENTS,
    EVENTS_A_CORE,
    GUARD_CALLS,
    INPUT_TOKENS,
    KEPT_BYTES,
    LOG_BYTES,
    MESSAGE_BYTES,
    MESSAGES,
    OUTPUT_TOKENS,
    PATH_SECONDS,
    POSTS_A_CORE,
    PRICES,
)

BURST = range(43_200, 43_800)
BURST_FACTOR = 10
SEED = 20_261_125


@dataclass(frozen=True)
class Settings:
    """What can be turned. The defaults are those of the platform and of infra/."""

    pipelines: int = 10
    qps: float = 3.0
    calls_a_day: float = 10_000
    tokens_a_minute: float = 2_000_000
    agent_instances: int = 20
    other_instances: int = 10
    databases: float = 1.0
    """How many times the two cores that were measured."""
    redis: float = 1.0
    regional_instances: int = 1_000
    model: str = "gemini-2.5-pro"


PLACES = 8
"""Messages at once in an agent's instance: `concurrency` of function.yaml."""


@dataclass(frozen=True)
class Limit:
    """`capacity` a second of something of which one workflow uses `use`. `turn` says what raises it."""

    name: str
    capacity: float
    use: float
    turn: str
    source: str

    @property
    def workflows_a_second(self) -> float:
        return self.capacity / self.use


def limits(settings: Settings) -> list[Limit]:
    """Every limit under these settings, in the order in which they are shown."""
    agents = settings.agent_instances * PLACES / CALL_SECONDS
    orchestrators, gateways = settings.other_instances * EVENTS_A_CORE, settings.other_instances * POSTS_A_CORE
    in_use = instances(1.0)
    return [
        Limit("model: requests a day", settings.calls_a_day / DAY, ALL_CALLS, "the model's daily quota", "shared/ai/catalog.py"),
        Limit("model: requests a second", settings.qps, ALL_CALLS, "AI_RATE_QPS, with the quota behind it", "shared/ai/catalog.py"),
        Limit(
            "model: tokens a minute",
            settings.tokens_a_minute / 60,
            ALL_CALLS * (INPUT_TOKENS + OUTPUT_TOKENS),
            "the model's quota",
            "assumption: ai.google.dev/gemini-api/docs/rate-limits, a project's own are in AI Studio",
        ),
        Limit("running workflows", settings.pipelines, PATH_SECONDS, "MAX_CONCURRENT_PIPELINES", "setting; seconds assumed"),
        Limit("researcher: places", agents, CALLS["researcher"], "max_instances of the researcher", "infra/services.tf"),
        Limit("critic: places", agents, CALLS["critic"], "max_instances of the critic", "infra/services.tf"),
        Limit(
            "orchestrator: instances", orchestrators, EVENTS, "max_instances of the orchestrator", "measured: 1,467/s on 2 cores"
        ),
        Limit("database: events", settings.databases * 1_467, EVENTS, "a larger database", "measured: one event a call, 2 cores"),
        Limit("Redis: guards", settings.redis * 30_000, GUARD_CALLS, "a larger Redis", "measured: 100 callers, 2 cores"),
        Limit("gateway: POST", gateways, 1, "max_instances of the gateway", "measured: 1,515/s on 2 cores"),
        Limit(
            "Pub/Sub: bytes pushed",
            140e6,
            MESSAGES * MESSAGE_BYTES,
            "a quota increase",
            "assumption: cloud.google.com/pubsub/quotas, push in a region that is not large",
        ),
        Limit(
            "Cloud Run: instances of a region",
            settings.regional_instances,
            sum(in_use.values()),
            "a quota increase, or one more region",
            "assumption: cloud.google.com/run/quotas",
        ),
    ]


FIRESTORE = Limit(
    "Firestore: one model's limiter document", 40, ALL_CALLS, "GUARDS_BACKEND=redis", "measured on the emulator: 30 writers, 0.75 s"
)
"""Instead of Redis. Google's own advice is one write a second to a document (cloud.google.com/firestore/docs/best-practices)."""


def instances(workflows_a_second: float) -> dict[str, float]:
    """How many instances of each function work at this rate, none of them idle."""
    needed = {name: workflows_a_second * calls * CALL_SECONDS / PLACES for name, calls in CALLS.items()}
    return needed | {"orchestrator": workflows_a_second * EVENTS / EVENTS_A_CORE, "gateway": workflows_a_second / POSTS_A_CORE}


def arrivals(workflows: int, *, seed: int = SEED) -> list[int]:
    """How many workflows are asked for in each second of a day: more by day than by night, and one burst."""
    weights = [1 + 0.5 * math.sin(2 * math.pi * (second - 32_400) / DAY) for second in range(DAY)]
    mean = sum(weights) / DAY
    for second in BURST:
        weights[second] = BURST_FACTOR * mean
    counts = [0] * DAY
    for second in random.Random(seed).choices(range(DAY), cum_weights=list(accumulate(weights)), k=workflows):
        counts[second] += 1
    return counts


@dataclass(frozen=True)
class Outcome:
    """What became of a day. Waits are from being asked for to being admitted, of those that were."""

    asked: int
    done: int
    running: int
    queued: int
    calls: float
    most_running: int
    most_calls_a_second: float
    wait_p50: int | None
    wait_p95: int | None
    binding: Mapping[str, int]
    """Seconds in which each limit was what held the work up."""


def simulate(settings: Settings, asked: Sequence[int]) -> Outcome:
    """The day, under these limits."""
    flow = min((limit for limit in limits(settings) if limit.name not in _SHAPED), key=lambda limit: limit.workflows_a_second)
    begun = [0]  # by the end of each second, as are all of these sums
    begun_area = [0.0]
    arrived = ended = most_running = 0
    calls = most_calls = 0.0
    binding: dict[str, int] = {}
    for second, count in enumerate(asked):
        arrived += count
        start = min(arrived, ended + settings.pipelines)
        begun.append(start)
        begun_area.append(begun_area[-1] + start)
        # A workflow asks for its calls evenly over its path, and for none faster.
        window = begun_area[-1] - begun_area[max(0, len(begun_area) - 1 - PATH_SECONDS)]
        wanted = ALL_CALLS * window / PATH_SECONDS - calls
        most = min(settings.qps, flow.workflows_a_second * ALL_CALLS)
        left_today = settings.calls_a_day - calls
        given = max(0.0, min(wanted, most, left_today))
        if given < wanted - 1e-6:
            short = "model: requests a day" if left_today <= most else _slower(settings, flow)
            binding[short] = binding.get(short, 0) + 1
        elif start < arrived:
            binding["running workflows"] = binding.get("running workflows", 0) + 1
        calls += given
        most_calls = max(most_calls, given)
        most_running = max(most_running, start - ended)
        ended = max(ended, min(math.floor(calls / ALL_CALLS + 1e-6), begun[max(0, second + 1 - PATH_SECONDS)]))
    waits = _waits(asked, begun)
    return Outcome(
        asked=arrived,
        done=ended,
        running=begun[-1] - ended,
        queued=arrived - begun[-1],
        calls=calls,
        most_running=most_running,
        most_calls_a_second=most_calls,
        wait_p50=_quantile(waits, 0.50, arrived),
        wait_p95=_quantile(waits, 0.95, arrived),
        binding=binding,
    )


_SHAPED = ("model: requests a day", "model: requests a second", "running workflows")
"""Limits that the day itself goes through, second by second."""


def _slower(settings: Settings, flow: Limit) -> str:
    return "model: requests a second" if settings.qps <= flow.workflows_a_second * ALL_CALLS else flow.name


def _waits(asked: Sequence[int], begun: Sequence[int]) -> list[int]:
    """How many were admitted after each number of seconds of waiting, first come first served."""
    counts: dict[int, int] = {}
    second, number = 0, 0
    for moment, count in enumerate(asked):
        for _ in range(count):
            number += 1
            while second < len(begun) and begun[second] < number:
                second += 1
            if second == len(begun):
                return [counts.get(wait, 0) for wait in range(max(counts, default=0) + 1)]
            wait = max(0, second - 1 - moment)
            counts[wait] = counts.get(wait, 0) + 1
    return [counts.get(wait, 0) for wait in range(max(counts, default=0) + 1)]


def _quantile(waits: Sequence[int], share: float, asked: int) -> int | None:
    """The wait of which so many of all that were asked for had less; None: it had not come by the end of the day."""
    so_far = 0
    for wait, count in enumerate(waits):
        so_far += count
        if so_far >= share * asked:
            return wait
    return None


def turns(settings: Settings, workflows_a_second: float) -> list[tuple[Limit, Settings]]:
    """The bottlenecks on the way to a rate, in order, and the settings once each is turned to what the rate needs."""
    taken: list[tuple[Limit, Settings]] = []
    while True:
        first = min(limits(settings), key=lambda limit: limit.workflows_a_second)
        if first.workflows_a_second >= workflows_a_second:
            return taken
        settings = _turned(settings, first, workflows_a_second)
        taken.append((first, settings))


def _turned(settings: Settings, limit: Limit, rate: float) -> Settings:
    more = rate / limit.workflows_a_second * (1 + 1e-9)
    match limit.name.partition(":")[0]:
        case "running workflows":
            return replace(settings, pipelines=math.ceil(settings.pipelines * more))
        case "researcher" | "critic":
            return replace(settings, agent_instances=math.ceil(settings.agent_instances * more))
        case "orchestrator" | "gateway":
            return replace(settings, other_instances=math.ceil(settings.other_instances * more))
        case "database":
            return replace(settings, databases=math.ceil(10 * settings.databases * more) / 10)
        case "Redis":
            return replace(settings, redis=math.ceil(10 * settings.redis * more) / 10)
        case "Cloud Run":
            return replace(settings, regional_instances=math.ceil(settings.regional_instances * more))
    match limit.name:
        case "model: requests a day":
            return replace(settings, calls_a_day=math.ceil(settings.calls_a_day * more))
        case "model: requests a second":
            return replace(settings, qps=math.ceil(settings.qps * more))
        case "model: tokens a minute":
            return replace(settings, tokens_a_minute=math.ceil(settings.tokens_a_minute * more))
    raise ValueError(f"{limit.name} cannot be turned: {limit.turn}")


BUSY = 0.6
"""Share of an instance's places that are taken while it is billed: an assumption."""


def costs(settings: Settings, workflows_a_day: float) -> dict[str, float]:
    """Dollars for 1,000 workflows by component. What is rented by the hour is shared by as many as a day does."""
    price = {name: one.dollars for name, one in PRICES.items()}
    seconds = {name: count / BUSY for name, count in instances(1.0).items()}
    tokens = INPUT_TOKENS * price[f"{settings.model} input"] + OUTPUT_TOKENS * price[f"{settings.model} output"]
    rented = max(1.0, math.ceil(settings.databases / 2)) * price["database"], max(1.0, settings.redis) * price["redis"]
    return {
        "model": 1_000 * ALL_CALLS * tokens,
        "Cloud Run": 1_000 * (sum(seconds.values()) * (price["vcpu"] + 0.5 * price["memory"]) + (MESSAGES + 1) * price["request"]),
        "Pub/Sub": 1_000 * MESSAGES * 2 * MESSAGE_BYTES * price["pubsub"],
        "database": 1_000 * (rented[0] * DAY / workflows_a_day + KEPT_BYTES * price["disk"]),
        "Redis": 1_000 * rented[1] * DAY / workflows_a_day,
        "logs": 1_000 * LOG_BYTES * price["logs"],
    }


def scenarios(workflows: int) -> dict[str, Settings]:
    """The settings that are compared. Each tuned one is what `turns` finds."""
    mean = workflows / DAY
    cheap = Settings(model="gemini-2.5-flash-lite")
    # A tenth more than the mean by day, so that a backlog of the burst drains.
    by_day = turns(cheap, 1.6 * mean)[-1][1]
    for_burst = turns(cheap, BURST_FACTOR * mean)[-1][1]
    return {
        "as delivered": Settings(),
        "production.tfvars": Settings(pipelines=50, other_instances=20),
        "tuned for the day": by_day,
        "tuned for the burst": for_burst,
    }
