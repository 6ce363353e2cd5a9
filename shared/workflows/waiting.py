"""Steps that wait for people, time or a signal: what they wait for, and what comes of it. Pure functions from JSON to JSON.

A step is dispatched twice. First it is told what it waits for (`step.waiting`), and waits in the state without holding anything;
then, when somebody or the time has woken it, what it was woken by becomes its result. Decided again, both come out the same.

- An approval that is approved or amended succeeds; one that is rejected fails the step (`Rejected`). Unanswered in time,
  its `default` is the answer, by `timeout`; without a default the step fails (`TimedOut`).
- A wait always succeeds. Its output tells what woke it.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from shared.errors import InputError
from shared.templates import render

LONGEST_WAIT_SECONDS: Final = 366 * 86_400.0
_LONGEST_PROMPT = 4000
_BY_TIMEOUT = "timeout"


def is_wait(spec: Mapping[str, Any]) -> bool:
    """Whether a step with this spec waits instead of working."""
    return "approval" in spec or "wait" in spec


def begin(spec: Mapping[str, Any], step: str, context: Mapping[str, Any]) -> dict[str, Any]:
    """The details of `step.waiting`: what is waited for, and for how long. Raises InputError for what cannot be waited for."""
    approval = spec.get("approval")
    if approval is not None:
        prompt = _prompt(approval["prompt"], context)
        return _until({"for": "approval", "name": step, "prompt": prompt}, approval)
    wait = spec["wait"]
    if "signal" in wait:
        return _until({"for": "signal", "name": wait["signal"]}, wait)
    shown = {"for": "time", "name": step}
    if "until" in wait:
        moment = render(wait["until"], context)
        reason = until_objection(moment)
        if reason is not None:
            raise InputError(f"wait.until of step {step} {reason}")
        return {"wait": shown, "until": _moment(moment).isoformat()}
    seconds = render(wait["seconds"], context)
    reason = seconds_objection(seconds)
    if reason is not None:
        raise InputError(f"wait.seconds of step {step} {reason}")
    return {"wait": shown, "seconds": seconds}


def ended(spec: Mapping[str, Any], woken: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a woken step's result is: the kind of event, `step.completed` or `step.failed`, and its details."""
    approval = spec.get("approval")
    by_time = woken["woken_by"] == "time"
    if approval is None:
        reason = "timeout" if by_time and "signal" in spec["wait"] else woken["woken_by"]
        return _completed({"woken_by": reason, **_given(woken, "data")})
    if not by_time:
        by, decision = woken.get("by"), woken["decision"]
    elif "default" in approval:
        by, decision = _BY_TIMEOUT, approval["default"]
    else:
        return _failed("TimedOut", "nobody decided in time; give the approval a longer timeout_seconds, or a default")
    if decision == "reject":
        return _failed("Rejected", f"rejected by {by or 'somebody who gave no name'}")
    output = {"decision": decision, "by": by, "at": woken["at"], **_given(woken, "comment")}
    if "data" in woken:
        output["value"] = woken["data"]
    return _completed(output)


def seconds_objection(seconds: Any) -> str | None:
    """What a number of seconds to wait has to be; None when it is."""
    is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if is_number and 0 <= seconds <= LONGEST_WAIT_SECONDS:
        return None
    return f"should be a number of seconds, 0 to {LONGEST_WAIT_SECONDS:,.0f}"


def until_objection(moment: Any) -> str | None:
    """What a moment to wait for has to be; None when it is."""
    try:
        _moment(moment)
    except (TypeError, ValueError, OverflowError):
        return "should be a moment with its offset, as RFC 3339 has it: 2026-01-31T12:00:00Z"
    return None


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(str.upper(text))
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


def _until(shown: dict[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"wait": shown, **({"seconds": spec["timeout_seconds"]} if "timeout_seconds" in spec else {})}


def _prompt(template: str, context: Mapping[str, Any]) -> str:
    # Inside longer text a value becomes text, whatever it is: a prompt that is one look-up is no exception.
    prompt = str(render(f"{template} ", context))[:-1]
    return prompt if len(prompt) <= _LONGEST_PROMPT else f"{prompt[:_LONGEST_PROMPT]}…"


def _given(woken: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {name: woken[name]} if name in woken else {}


def _completed(output: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return "step.completed", {"output": output}


def _failed(kind: str, message: str) -> tuple[str, dict[str, Any]]:
    return "step.failed", {"permanent": True, "error": {"type": kind, "message": message}}
