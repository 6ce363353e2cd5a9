"""What becomes of each step in a simulated workflow, and the decisions and answers that come of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
from hypothesis import strategies as st

from shared.state import Command, Event

from .door import START, USAGE, Door, completed, dead, deferred, expanded, failed, rendered, skipped, step, waiting

TIMEOUT = 30.0
LONGEST_WAIT = timedelta(seconds=TIMEOUT + 600)
"""How long a lease lasts: after that the state acts by itself."""
WAITS = ("approval", "signal", "time")
SIGNAL = "paid"
_FORWARD = ("many", "nested", "stage")
"""What is decided to be many steps, without a message."""


@dataclass(frozen=True)
class Work:
    """What becomes of one step: its first dispatches come to `acts`, a later one to `end`."""

    kind: str = "plain"
    needs: tuple[int, ...] = ()
    acts: tuple[str, ...] = ()
    end: str = "ok"
    on_failure: str = "fail"
    max_retries: int = 3
    join: int | None = None
    children: tuple["Work", ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    """Of a spawn."""
    looks_up: bool = False
    """Whether it takes a part of the workflow's input, which a fork may change."""

    def as_step(self, id: str, siblings: Sequence[str]) -> dict[str, Any]:
        """The step that a definition or a parent adds; the work itself is in its spec."""
        more: dict[str, Any] = {"on_failure": self.on_failure, "max_retries": self.max_retries, "timeout_seconds": TIMEOUT}
        spec: dict[str, Any] = {"work": as_json(self)}
        if self.kind in WAITS:
            more |= {"agent": f"wait:{self.kind}", "signal": SIGNAL if self.kind == "signal" else id}
        elif self.kind == "nested":
            more["agent"] = "workflow:other"
        elif self.kind == "stage":
            more["agent"] = "pattern:debate"
        if self.limits:
            spec["spawn"] = self.limits
        if self.looks_up:
            spec["template"] = "{{ input.brief }}"
        return step(id, *(siblings[need] for need in self.needs), spec=spec, **more)


@st.composite
def works(draw: st.DrawFn, *, most: int, depth: int, declared: bool = True, kinds: Sequence[str] = ()) -> tuple[Work, ...]:
    """Steps of a definition, or children. `kinds` come beside plain ones; all do when there are none."""
    made: list[Work] = []
    wanted = [*(kinds or ("skip", *_FORWARD, "spawn", *WAITS)), *["plain"] * 3]
    if not declared:
        wanted = [kind for kind in wanted if kind not in WAITS]
    if not depth:
        wanted = [kind for kind in wanted if kind not in ("many", "nested", "spawn")]
    for n in range(draw(st.integers(0 if depth < 2 else 1, most))):
        kind = draw(st.sampled_from(wanted))
        acts = st.sampled_from(["fail", "fail for long", "defer", "defer shortly", "lost", "dead"])
        ends = ["ok", "ok", "ok", "answer late and again", "permanent"] if kind == "plain" else ["ok"]
        has_children = kind in (*_FORWARD, "spawn")
        limits = {"max_depth": st.integers(1, 3), "max_steps": st.integers(1, 6)}
        made.append(
            Work(
                kind=kind,
                needs=tuple(draw(st.sets(st.integers(0, n - 1), max_size=3))) if n else (),
                acts=() if kind in ("skip", *_FORWARD) else tuple(draw(st.lists(acts, max_size=2))),
                end=draw(st.sampled_from(ends)),
                on_failure=draw(st.sampled_from(["continue", "fail"])),
                max_retries=draw(st.sampled_from([3, 1, 0])),
                join=draw(st.sampled_from([99, None, 0])) if has_children else None,
                children=draw(works(most=3, depth=depth - 1, declared=kind == "nested", kinds=kinds))
                if has_children and depth
                else (),
                limits=draw(st.fixed_dictionaries({}, optional=limits)) if kind == "spawn" else {},
                looks_up=kind == "plain" and draw(st.integers(0, 3)) == 3,
            )
        )
    return tuple(made)


def family(parent: str, works: Sequence[Work]) -> list[dict[str, Any]]:
    """Steps for `works`, under `parent`, or a definition's when it is empty."""
    names = [f"{parent}/{n}" if parent else f"s{n}" for n in range(len(works))]
    return [work.as_step(name, names) for work, name in zip(works, names, strict=True)]


def decided(command: Command) -> Event | None:
    """What shared.workflows makes of a command that is no message: a decision, or a rendered output."""
    if command["type"] == "render":
        return rendered(command["workflow"], command["upstream"])
    if command["type"] != "dispatch":
        return None
    work, about = command["spec"]["work"], {"workflow": command["workflow"]}
    if work["kind"] in WAITS:
        return _wait(command, work)
    if work["kind"] == "skip":
        return skipped(command["step"], attempt=command["attempt"], **about)
    if work["kind"] == "stage" and not work["children"]:
        # The last stage of a pattern is its result.
        return {**completed(command["step"], attempt=command["attempt"], output=command["upstream"], **about), "usage": None}
    if work["kind"] in _FORWARD:
        children, join = _children(command)
        return {**expanded(command["step"], children, join=join, **about), "attempt": command["attempt"]}
    return None


def _wait(command: Command, work: dict[str, Any]) -> Event:
    about, woken = {"workflow": command["workflow"], "attempt": command["attempt"]}, command["woken"]
    if woken is None:
        shown = waiting(command["step"], seconds=20.0 if work["kind"] == "time" or "defer" in work["acts"] else None, **about)
        if work["kind"] == "time" and "lost" in work["acts"]:
            shown |= {"seconds": None, "until": (START + timedelta(seconds=50)).isoformat()}
        return {**shown, "wait": {"for": work["kind"]}}
    error = "Rejected" if woken.get("decision") == "reject" else None
    if woken["woken_by"] == "time" and work["kind"] != "time" and not work["max_retries"]:
        # Without an answer some go on with a default, and some do not.
        error = "TimedOut"
    if error is not None:
        return {**failed(command["step"], permanent=True, **about), "error": {"type": error, "message": "no"}}
    return {**completed(command["step"], output=woken, **about), "usage": None}


def answer(command: Command, door: Door) -> list[Event]:
    """What an agent makes of a dispatch. Each asks a model of its own, so that the state shows whose usage it counted."""
    work, name = command["spec"]["work"], command["step"]
    about = {"workflow": command["workflow"], "attempt": command["attempt"]}
    told = {**about, "models": {f"{command['attempt']}.{command['deferrals']}": USAGE}}
    turn = command["attempt"] - 1 + command["deferrals"]
    match work["acts"][turn] if turn < len(work["acts"]) else work["end"]:
        case "lost":
            return []
        case "fail":
            return [failed(name, usage=USAGE, **told)]
        case "fail for long":
            return [failed(name, retry_after_seconds=20, usage=USAGE, **told)]
        case "permanent":
            return [failed(name, permanent=True, usage=USAGE, **told)]
        case "dead":
            return [dead(name, **about)]
        case "defer":
            return [deferred(name, door.moment + timedelta(seconds=60), deferrals=command["deferrals"], **told)]
        case "defer shortly":
            return [deferred(name, door.moment + timedelta(seconds=2), deferrals=command["deferrals"], **told)]
        case "answer late and again":
            return [completed(name, output="copy", **told), completed(name, output="other", **told)]
        case _:
            result = completed(name, output={"by": name, "attempt": command["attempt"]}, **told)
            if work["kind"] == "spawn":
                result["children"], result["join"] = _children(command)
            return [result]


def _children(command: Command) -> tuple[list[dict[str, Any]], str | None]:
    work, parent = command["spec"]["work"], command["step"]
    steps = family(parent, [_from_json(child) for child in work["children"]])
    if work["join"] is None:
        return steps, None
    return steps, "*" if work["join"] >= len(steps) else f"{parent}/{work['join']}"


def as_json(work: Work) -> dict[str, Any]:
    """The work as it is kept in a spec."""
    parsed: dict[str, Any] = orjson.loads(orjson.dumps(work))
    return parsed


def _from_json(work: dict[str, Any]) -> Work:
    children = tuple(_from_json(child) for child in work["children"])
    return Work(**{**work, "needs": tuple(work["needs"]), "acts": tuple(work["acts"]), "children": children})
