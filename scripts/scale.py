#!/usr/bin/env python3
"""What a load needs, waits for and costs, as tables. scale_model.py computes it, with what scale_inputs.py says.

scale.py            the tables of docs/scale.md
scale.py --write    puts them there
scale.py --check    fails when others are there
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scale_inputs import ALL_CALLS, DAY, GUARD_CALLS, PRICES, STEPS
from scale_model import (
    BURST,
    BURST_FACTOR,
    FIRESTORE,
    SEED,
    Outcome,
    Settings,
    arrivals,
    costs,
    instances,
    limits,
    scenarios,
    simulate,
    turns,
)

DOC = Path(__file__).resolve().parents[1] / "docs" / "scale.md"
BEGIN, END = "<!-- scale.py begins -->", "<!-- scale.py ends -->"


def tables(workflows: int = 1_000_000) -> str:
    """The tables of docs/scale.md."""
    asked, mean = arrivals(workflows), workflows / DAY
    chosen = scenarios(workflows)
    outcomes = {name: simulate(settings, asked) for name, settings in chosen.items()}
    parts = [
        f"{workflows:,} workflows a day are {mean:.1f} a second, {mean * ALL_CALLS:.0f} calls of models and {mean * STEPS:.0f}"
        f" steps a second; in the burst {BURST_FACTOR} times that for {len(BURST) // 60} minutes. Seed {SEED}.",
        "### What a day comes to",
        _day(chosen, outcomes),
        "### What to turn, in order, until the burst waits for nothing",
        _order(chosen, mean),
        "### Every limit as delivered",
        _every(chosen["as delivered"], mean),
        "### Instances that work",
        _instances(mean),
        "### Dollars for 1,000 workflows",
        _dollars(chosen, outcomes, workflows),
        f"Guards on Firestore instead of Redis cost {1_000 * GUARD_CALLS * PRICES['firestore'].dollars:.2f} for 1,000 workflows.",
        "### Prices",
        _prices(),
    ]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


def _day(chosen: Mapping[str, Settings], outcomes: Mapping[str, Outcome]) -> str:
    rows = []
    for name, one in outcomes.items():
        settings = chosen[name]
        waits = ["not that day" if wait is None else f"{wait:,} s" for wait in (one.wait_p50, one.wait_p95)]
        first = max(one.binding, key=lambda limit: one.binding[limit]) if one.binding else "none"
        set_to = f"{settings.pipelines:,} / {settings.qps:,.0f}"
        done, left = f"{one.done:,}", f"{one.running + one.queued:,}"
        rows.append([name, set_to, done, left, *waits, f"{one.most_running:,}", _figure(one.most_calls_a_second), first])
    head = [
        "settings",
        "pipelines / QPS",
        "done",
        "left at the end",
        "wait p50",
        "p95",
        "most at once",
        "most calls/s",
        "held up longest by",
    ]
    return _table(head, rows)


def _order(chosen: Mapping[str, Settings], mean: float) -> str:
    rows = []
    taken = turns(chosen["as delivered"], BURST_FACTOR * mean)
    for number, (limit, _) in enumerate(taken, 1):
        needed = BURST_FACTOR * mean * limit.use
        day = limit.capacity / limit.use * DAY
        rows.append(
            [
                str(number),
                limit.name,
                f"{day:,.0f}",
                _figure(limit.capacity),
                _figure(mean * limit.use),
                _figure(needed),
                limit.turn,
            ]
        )
    return _table(["", "bottleneck", "workflows a day with it", "capacity /s", "the mean needs", "the burst needs", "turn"], rows)


def _every(settings: Settings, mean: float) -> str:
    rows = [
        [
            one.name,
            _figure(one.capacity),
            _figure(one.use),
            _figure(one.workflows_a_second),
            f"{mean / one.workflows_a_second:,.1%}",
            one.source,
        ]
        for one in [*limits(settings), FIRESTORE]
    ]
    return _table(["limit", "capacity /s", "one workflow uses", "workflows/s", "used by the mean", "where from"], rows)


def _instances(mean: float) -> str:
    day, burst = instances(mean), instances(BURST_FACTOR * mean)
    rows = [[name, str(math.ceil(day[name])), str(math.ceil(burst[name]))] for name in day]
    total = [sum(math.ceil(count) for count in some.values()) for some in (day, burst)]
    return _table(["function", "at the mean", "in the burst"], [*rows, ["together", *map(str, total)]])


def _dollars(chosen: Mapping[str, Settings], outcomes: Mapping[str, Outcome], workflows: int) -> str:
    rows = []
    for name, settings in chosen.items():
        each = costs(settings, outcomes[name].done)
        rows.append([f"{name}, {settings.model}", *(f"{value:,.2f}" for value in each.values()), f"{sum(each.values()):,.2f}"])
    return _table(["settings", *costs(Settings(), workflows), "together"], rows)


def _prices() -> str:
    rows = [
        [name, f"{one.dollars:.3g}", one.unit, one.source, one.as_of, "read there" if one.read else "assumption: check it"]
        for name, one in PRICES.items()
    ]
    return _table(["", "$", "for one", "page", "as of", ""], rows)


def written(document: str) -> str:
    """The document with the tables as they are now."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def main() -> int:
    """Print, write or check. 1 when what is written is stale."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    parser.add_argument("--check", action="store_true", help="fail when docs/scale.md has others")
    options = parser.parse_args()
    if not (options.write or options.check):
        sys.stdout.write(tables() + "\n")
        return 0
    document = DOC.read_text(encoding="utf-8")
    if options.write:
        DOC.write_text(written(document), encoding="utf-8")
    elif written(document) != document:
        sys.stderr.write("error: docs/scale.md has other tables; run scripts/scale.py --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
