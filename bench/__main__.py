"""Runs every benchmark in a process of its own, prints a table and writes JSON to bench/results/.

python -m bench [NAME …]
"""

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

_HERE = Path(__file__).parent
_PRINT = "import json, sys; from importlib import import_module; print(json.dumps(import_module(f'bench.{sys.argv[1]}').run()))"
_NOT_BENCHMARKS = {"__init__", "__main__", "world"}


def main(wanted: list[str]) -> int:
    names = sorted(file.stem for file in _HERE.glob("*.py") if file.stem not in _NOT_BENCHMARKS)
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        print(f"error: no benchmark {', '.join(unknown)}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    figures: dict[str, dict[str, float]] = {}
    for name in wanted or names:
        print(f"{name} ...", file=sys.stderr)
        done = subprocess.run([sys.executable, "-c", _PRINT, name], stdout=subprocess.PIPE, text=True, cwd=_HERE.parent, check=True)
        figures[name] = json.loads(done.stdout)
        for label, value in figures[name].items():
            print(f"  {label.removeprefix(name + '.'):36} {value:14,.3f}")
    results = _HERE / "results"
    results.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    file = results / f"{now:%Y%m%dT%H%M%SZ}.json"
    machine = {"python": platform.python_version(), "machine": platform.machine(), "cores": os.cpu_count()}
    file.write_text(json.dumps({"at": now.isoformat(), **machine, "figures": figures}, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file.relative_to(_HERE.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
