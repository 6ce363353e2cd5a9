"""What a cold start pays: the time in which a new interpreter imports each function, against what every function must import."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

_ROOT = Path(__file__).parents[1]
_BASELINE = "import functions_framework.aio, pydantic; pydantic.BaseModel"
_REPEATS = 5


def run() -> dict[str, float]:
    """Medians: `<function>_ms`, and `<function>_ratio` to `baseline_ms`. Rounds are interleaved, since a machine's speed drifts."""
    functions = sorted(file.parent.name for file in (_ROOT / "functions").glob("*/main.py"))
    statements = {"baseline": _BASELINE} | {name: f"import functions.{name}.main" for name in functions}
    rounds = [{name: _milliseconds(statement) for name, statement in statements.items()} for _ in range(_REPEATS)]
    baseline = median(one["baseline"] for one in rounds)
    figures = {"baseline_ms": round(baseline, 1)}
    for name in functions:
        # Each ratio is of neighbours in time.
        figures[f"{name}_ms"] = round(median(one[name] for one in rounds), 1)
        figures[f"{name}_ratio"] = round(median(one[name] / one["baseline"] for one in rounds), 2)
    return figures


def _milliseconds(statement: str) -> float:
    command: Sequence[str] = (sys.executable, "-c", statement)
    started = perf_counter()
    subprocess.run(command, cwd=_ROOT, check=True, timeout=60)
    return (perf_counter() - started) * 1000
