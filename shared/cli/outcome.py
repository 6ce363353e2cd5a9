"""How a workflow ended, in a line."""

from datetime import datetime
from typing import Any

from shared.cli.output import counted, dollars, one_line

_ENDED_AS = {"FAILED": "failed", "CANCELLED": "was cancelled"}


def summary(document: dict[str, Any]) -> str:
    """Status, time, steps and cost of a workflow that has ended."""
    usage = document["usage"]
    seconds = (datetime.fromisoformat(document["finished_at"]) - datetime.fromisoformat(document["created_at"])).total_seconds()
    steps = counted(document["steps_total"], "step")
    tokens = counted(usage["input_tokens"] + usage["output_tokens"], "token")
    return f"{document['status']} in {seconds:.1f} s · {steps} · {tokens} · {dollars(usage['cost_microdollars'])}"


def reason(document: dict[str, Any]) -> str:
    """Why a workflow did not succeed."""
    error = document["error"] if document["error"] is not None else {}
    what = f"step {error['step']!r} failed" if "step" in error else f"the workflow {_ENDED_AS[document['status']]}"
    why = one_line(f"{error.get('type', 'unknown')}: {error.get('message', '')}", longest=600)
    return f"{what}: {why}"
