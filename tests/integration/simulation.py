"""A team without a network: it carries out commands; messages are copied, reordered and lost as a list of numbers says."""

from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson

from shared.state import Command, Event

from .door import (
    USAGE,
    Door,
    cancelled,
    completed,
    dead,
    deferred,
    expanded,
    failed,
    paused,
    redriven,
    rendered,
    requested,
    signalled,
    skipped,
    step,
    tick,
    unpaused,
    waiting,
)

FINAL = {"SUCCESS", "FAILED", "SKIPPED", "CANCELLED"}
TIMEOUT = 30.0
WAITS = ("approval", "signal", "time")
SIGNAL = "paid"
LONGEST_WAIT = timedelta(seconds=TIMEOUT + 600)
"""How long a lease lasts: after that the state acts by itself."""
_DUMP = """
    select 'workflow', w::text from workflows as w union all select 'step', s::text from steps as s
    union all select 'edge', e::text from edges as e union all select 'entry', h::text from history as h
    order by 1, 2
"""


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

    def as_step(self, id: str, siblings: Sequence[str]) -> dict[str, Any]:
        """The step that a definition or a parent adds; the work itself is in its spec."""
        limits: dict[str, Any] = {"on_failure": self.on_failure, "max_retries": self.max_retries, "timeout_seconds": TIMEOUT}
        if self.kind in WAITS:
            limits |= {"agent": f"wait:{self.kind}", "signal": SIGNAL if self.kind == "signal" else id}
        if self.kind == "nested":
            limits |= {"agent": "workflow:other"}
        return step(id, *(siblings[need] for need in self.needs), spec={"work": _as_json(self)}, **limits)


def family(parent: str, works: Sequence[Work]) -> list[dict[str, Any]]:
    """Steps for `works`, under `parent`, or a definition's when it is empty."""
    names = [f"{parent}/{n}" if parent else f"s{n}" for n in range(len(works))]
    return [work.as_step(name, names) for work, name in zip(works, names, strict=True)]


@dataclass
class Team:
    """Everybody who calls `advance`, and the messages between them.

    `look` is called after every call with the events and what came back. Once the numbers are used up nothing goes wrong any more.
    """

    door: Door
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    numbers: Iterator[int]
    look: Callable[[list[Event], list[Command]], None]
    flying: list[Event] = field(default_factory=list)
    applied: list[Event] = field(default_factory=list)
    told: set[str] = field(default_factory=set)
    workflows: list[str] = field(default_factory=list)
    a_tick_was_lost: bool = False
    _asked: set[tuple[str, str, int]] = field(default_factory=set)
    """Who waits without end, and has an answer under way."""
    _signals: int = 0
    _pauses: int = 0
    _paused: set[str] = field(default_factory=set)
    """Whose pauses nobody has taken back since."""
    _takers: list[tuple[str, str, str]] = field(default_factory=list)
    _answered: set[tuple[str, str, int, int]] = field(default_factory=set)
    _dead: dict[tuple[str, str], Event] = field(default_factory=dict)
    """What redrives the last dead letter of each step; each is redriven once, when its workflow has failed for it."""

    def request(self, works: Sequence[Work], **limits: Any) -> None:
        """Somebody wants a workflow."""
        workflow = f"wf_{len(self.workflows)}"
        self.workflows.append(workflow)
        self.flying.append(requested(family("", works), workflow, request_key=workflow, **limits))
        self._takers += [(workflow, f"s{n}", work.kind) for n, work in enumerate(works) if work.kind in WAITS]

    def turn(self) -> None:
        """One thing happens: a batch is delivered, something is repeated, time passes, somebody cancels."""
        if not self.flying:
            self._tick(LONGEST_WAIT)
            # Whoever paused something looks after it.
            for workflow in sorted(self._paused):
                self._pause(workflow, on=True)
            return
        match self.pick(16):
            case 7:
                self._tick(timedelta(seconds=self.pick(3) * 15))
            case 8:
                self._tick(LONGEST_WAIT)
            case 9:
                self._tick(timedelta(), recover=True)
            case 10:
                self._repeat()
            case 11:
                self._cancel()
            case 12 | 13:
                self._signal()
            case 14 | 15:
                self._pause(self.workflows[self.pick(len(self.workflows))], on=self.pick(3) == 2)
            case _:
                self._deliver()

    def pick(self, size: int) -> int:
        """The next number below `size`; 0 when there are none left."""
        return next(self.numbers, 0) % size

    def dump(self) -> list[tuple[str, str]]:
        """The whole state."""
        return [tuple(row) for row in self.run(self.door.connection.fetch(_DUMP))]

    def advance(self, batch: list[Event]) -> list[Command]:
        """Apply a batch, prove that applying it once more changes nothing, and let the test look."""
        commands: list[Command] = self.run(self.door.advance(*batch))
        if not any(event.get("recover") for event in batch):
            before = self.dump()
            again = self.run(self.door.advance(*batch))
            assert self.dump() == before, "an event that was applied before changed the state"
            if not any(event["type"] == "tick" for event in batch):
                missing = [command for command in map(_essence, commands) if command not in list(map(_essence, again))]
                assert not missing, f"an event that was repeated did not return its commands: {missing}"
        # What came too late for a workflow that had failed may have an effect once it goes on.
        resumed = {event["workflow"] for event in batch if event["type"] == "step.redriven"}
        self.applied = [event for event in self.applied if event["workflow"] not in resumed]
        self.applied += [event for event in batch if event["type"] != "tick"]
        self.look(batch, commands)
        for event in batch:
            if event["type"] == "step.waiting" and event["seconds"] is None:
                self._ask(event)
        return commands

    def _ask(self, event: Event) -> None:
        """Somebody will answer what waits without end: they look at the state, so no crash keeps them from it."""
        asked = (event["workflow"], event["step"], event["attempt"])
        if asked not in self._asked:
            self._asked.add(asked)
            self._tell(event["workflow"], event["step"], event["wait"]["for"], by_name=False)

    def _signal(self) -> None:
        """Somebody says something, early or late, perhaps what was said before."""
        takers = [taker for taker in self._takers if any(event["workflow"] == taker[0] for event in self.applied)]
        if takers:
            self._tell(*takers[self.pick(len(takers))], by_name=self.pick(2) == 0)

    def _tell(self, workflow: str, name: str, kind: str, *, by_name: bool) -> None:
        self._signals += 1
        decision = {"decision": "reject" if self.pick(4) == 3 else "approve"} if kind == "approval" else {}
        later = {"later": True} if self.pick(4) == 3 else {}
        about: dict[str, Any] = {"workflow": workflow, "data": self._signals, **decision, **later}
        self.flying.append(signalled(SIGNAL if by_name and kind == "signal" else name, f"signal-{self._signals}", **about))

    def _deliver(self) -> None:
        batch = []
        for _ in range(min(1 + self.pick(3), len(self.flying))):
            index = self.pick(len(self.flying))
            batch.append(self.flying[index] if self.pick(4) == 3 else self.flying.pop(index))
        if any(event["type"] == "step.redriven" for event in batch):
            batch, others = batch[:1], batch[1:]
            self.flying += others
        self.door.wait(self.pick(2))
        if not self._carry_out(batch):
            self.flying += batch

    def _repeat(self) -> None:
        if self.applied:
            before = self.dump()
            event = self.applied[self.pick(len(self.applied))]
            self.run(self.door.advance(event))
            assert self.dump() == before, f"{event} was applied before and changed the state"

    def _cancel(self) -> None:
        workflow = self.workflows[self.pick(len(self.workflows))]
        if any(event["workflow"] == workflow for event in self.applied):
            self.flying.append(cancelled(workflow))

    def _pause(self, workflow: str, *, on: bool) -> None:
        if any(event["workflow"] == workflow for event in self.applied):
            self._pauses += 1
            (self._paused.discard if on else self._paused.add)(workflow)
            self.flying.append((unpaused if on else paused)(workflow, key=f"pause-{self._pauses}"))

    def _tick(self, delay: timedelta, **more: Any) -> None:
        self.door.wait(delay)
        if not self._carry_out([tick(**more)]):
            self.a_tick_was_lost = True

    def _carry_out(self, batch: list[Event]) -> bool:
        """What the dispatcher does. False when its process died on the way, before anything was published."""
        published: list[Command] = []
        pending = batch
        while pending:
            commands = self.advance(pending)
            if self.pick(8) == 7:
                return False
            pending = []
            for command in commands:
                decision = decided(command)
                if decision is None:
                    published.append(command)
                else:
                    pending.append(decision)
        for command in published:
            self._publish(command)
        return True

    def take(self, commands: Sequence[Command]) -> None:
        """Carry out what another of the state's doors said."""
        for command in commands:
            decision = decided(command)
            if decision is None:
                self._publish(command)
            else:
                self.flying.append(decision)

    def _publish(self, command: Command) -> None:
        if command["type"] == "finished":
            self.told.add(command["workflow"])
            redrive = self._dead.pop((command["workflow"], (command["error"] or {}).get("step", "")), None)
            self.flying += [] if redrive is None else [redrive]
        elif command["type"] == "dispatch":
            dispatch = (command["workflow"], command["step"], command["attempt"], command["deferrals"])
            if dispatch not in self._answered:
                self._answered.add(dispatch)
                answers = _answer(command, self.door)
                self.flying += answers
                if answers and (answers[0].get("error") or {}).get("type") == "DeadLettered":
                    workflow, name, attempt, _ = dispatch
                    self._dead[workflow, name] = redriven(name, attempt=attempt, workflow=workflow)


def decided(command: Command) -> Event | None:
    """What shared.workflows makes of a command that is no message: a decision, or a rendered output."""
    if command["type"] == "render":
        return rendered(command["workflow"], command["upstream"])
    if command["type"] != "dispatch":
        return None
    work, about = command["spec"]["work"], {"workflow": command["workflow"]}
    if work["kind"] in WAITS:
        return _wait(command, work)
    match work["kind"]:
        case "skip":
            return skipped(command["step"], attempt=command["attempt"], **about)
        case "many" | "nested":
            children, join = _children(command)
            return {**expanded(command["step"], children, join=join, **about), "attempt": command["attempt"]}
    return None


def _wait(command: Command, work: dict[str, Any]) -> Event:
    about, woken = {"workflow": command["workflow"], "attempt": command["attempt"]}, command["woken"]
    if woken is None:
        ends = work["kind"] == "time" or "defer" in work["acts"]
        shown = waiting(command["step"], seconds=20.0 if ends else None, **about)
        return {**shown, "wait": {"for": work["kind"]}}
    if woken.get("decision") == "reject":
        return {**failed(command["step"], permanent=True, **about), "error": {"type": "Rejected", "message": "rejected"}}
    return {**completed(command["step"], output=woken, **about), "usage": None}


def _answer(command: Command, door: Door) -> list[Event]:
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


def _essence(command: Command) -> dict[str, Any]:
    return {key: value for key, value in command.items() if key not in ("created", "cause")}


def _as_json(work: Work) -> dict[str, Any]:
    parsed: dict[str, Any] = orjson.loads(orjson.dumps(work))
    return parsed


def _from_json(work: dict[str, Any]) -> Work:
    children = tuple(_from_json(child) for child in work["children"])
    return Work(**{**work, "needs": tuple(work["needs"]), "acts": tuple(work["acts"]), "children": children})
