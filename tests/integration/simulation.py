"""A team without a network: it carries out commands; messages are copied, reordered and lost as a list of numbers says."""

from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson

from shared.state import Command, Event
from shared.workflows import reusable

from .door import Door, cancelled, paused, redriven, requested, signalled, tick, unpaused
from .works import LONGEST_WAIT, SIGNAL, WAITS, Work, answer, decided, family

FINAL = {"SUCCESS", "FAILED", "SKIPPED", "CANCELLED"}
TURNS = (
    *["deliver"] * 9, "wait", "wait", "expire", "recover", "repeat", "cancel", "signal", "signal", "pause", "pause", "unpause",
    "fork", "rerun",
)  # fmt: skip
"""What happens, as often as it does. The first is what happens when there are no numbers left."""
_DOORS = {"fork": "fork_workflow", "rerun": "rerun_workflow"}
"""Wishes that have a door of their own, which takes one at a time."""
_ALONE = {*_DOORS, "step.redriven"}
_MOST_FORKS = 2
_MOST_RERUNS = 2

PROBE = """
    create function probe_state() returns text language plpgsql as $$
    begin
        return json_build_object(
            'workflows', (select coalesce(json_agg(w), '[]') from (select * from workflows order by id) as w),
            'steps', (select coalesce(json_agg(s), '[]') from (select * from steps order by workflow_id, id) as s),
            'rest', (
                select md5(string_agg(r.row, ',' order by r.row)) from (
                    select e::text as row from edges as e union all select h::text from history as h
                    union all select s::text from signals as s union all select t::text from turns as t
                ) as r
            )
        );
    end;
    $$;
    create function probe_door(door text, asked jsonb, most integer, moment timestamptz) returns json language plpgsql as $$
    begin
        case door
            when 'advance' then return advance(asked, most, moment);
            when 'fork_workflow' then return fork_workflow(asked -> 0 -> 'fork', most, moment);
            when 'rerun_workflow' then return rerun_workflow(
                asked #>> '{0,workflow}', null, asked #>> '{0,request_key}', most, moment
            );
        end case;
    end;
    $$;
    create function probe(door text, asked jsonb, most integer, moment timestamptz, twice boolean) returns text
    language plpgsql as $$
    declare
        commands json := probe_door(door, asked, most, moment);
        state text := probe_state();
        again json := case when twice then probe_door(door, asked, most, moment) end;
    begin
        return json_build_object(
            'commands', commands, 'again', again, 'changed', twice and probe_state() <> state, 'state', state::json
        );
    end;
    $$;
"""
"""One call from here instead of six: what is asked, the state, the same asked again, and whether that changed the state."""


@dataclass
class Team:
    """Everybody who calls `advance`, and the messages between them.

    `look` is called after every call with the events, what came back and the state. Once the numbers are used up nothing goes wrong
    any more.
    """

    door: Door
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    numbers: Iterator[int]
    look: Callable[[list[Event], list[Command], dict[str, Any]], None]
    turns: Sequence[str] = TURNS
    taken: Counter[str] = field(default_factory=Counter)
    """What happened, and how often."""
    flying: list[Event] = field(default_factory=list)
    applied: list[Event] = field(default_factory=list)
    told: set[tuple[str, int]] = field(default_factory=set)
    """Which ends somebody told of: of a workflow that went on there are several."""
    workflows: list[str] = field(default_factory=list)
    a_tick_was_lost: bool = False
    _known: set[str] = field(default_factory=set)
    """The workflows that have been asked for, and are there."""
    _asked: set[tuple[str, str, int]] = field(default_factory=set)
    """Who waits without end, and has an answer under way."""
    _signals: int = 0
    _pauses: int = 0
    _forks: int = 0
    _reruns: Counter[str] = field(default_factory=Counter)
    _paused: list[str] = field(default_factory=list)
    """Those that are."""
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
        """One thing happens: a batch is delivered, something is repeated, time passes, somebody wants something."""
        if not self.flying:
            self._tick(LONGEST_WAIT)
            # Whoever paused something looks after it.
            for workflow in self._paused:
                self._pause(workflow, on=True)
            return
        what = self.turns[self.pick(len(self.turns))]
        self.taken[what] += 1
        match what:
            case "wait":
                self._tick(timedelta(seconds=self.pick(3) * 15))
            case "expire":
                self._tick(LONGEST_WAIT)
            case "recover":
                self._tick(timedelta(), recover=True)
            case "repeat":
                self._repeat()
            case "signal":
                self._signal()
            case "cancel" | "pause" | "unpause" | "fork" | "rerun":
                self._wish(what)
            case _:
                self._deliver()

    def pick(self, size: int) -> int:
        """The next number below `size`; 0 when there are none left."""
        return next(self.numbers, 0) % size

    def dump(self) -> str:
        """The whole state."""
        return str(self.run(self.door.connection.fetchval("select probe_state()")))

    def advance(self, batch: list[Event]) -> list[Command]:
        """Apply a batch, prove that applying it once more changes nothing, and let the test look."""
        once = any(event.get("recover") for event in batch)
        commands, again, changed, state = self._probe(batch, twice=not once)
        assert not changed, f"{batch} was applied before and changed the state"
        if not once and not any(event["type"] == "tick" for event in batch):
            known = [_essence(command) for command in again]
            missing = [command for command in commands if _essence(command) not in known and not _is_over(command)]
            assert not missing, f"{batch}, repeated, did not return its commands: {missing}"
        self._remember(batch, commands)
        self.look(batch, commands, state)
        for event in batch:
            if event["type"] == "step.waiting" and event["seconds"] is None and "until" not in event:
                self._ask(event)
        return commands

    def _probe(self, batch: list[Event], *, twice: bool) -> tuple[list[Command], list[Command], bool, dict[str, Any]]:
        found = orjson.loads(
            self.run(
                self.door.connection.fetchval(
                    "select probe($1, $2::text::jsonb, $3, $4, $5)",
                    _DOORS.get(batch[0]["type"], "advance"),
                    orjson.dumps(batch).decode(),
                    self.door.max_running,
                    self.door.moment,
                    twice,
                )
            )
        )
        self._paused = [row["id"] for row in found["state"]["workflows"] if row["paused_at"] is not None]
        return found["commands"], found["again"], found["changed"], found["state"]

    def _remember(self, batch: list[Event], commands: list[Command]) -> None:
        refused = {command["cause"] for command in commands if command["type"] == "refused"}
        for index, event in enumerate(batch):
            if event["type"] == "tick":
                continue
            self.taken[f"{event['type']} {'refused' if index in refused else 'accepted'}"] += 1
            if event["type"] in ("workflow.requested", "fork"):
                self._known.add(event["workflow"])
            if index in refused:
                # Asked again at another time it may be granted.
                continue
            if event["type"] in ("step.redriven", "rerun"):
                # What came too late for a workflow that had failed may have an effect once it goes on.
                self.applied = [other for other in self.applied if other["workflow"] != event["workflow"]]
            self.applied.append(event)

    def _ask(self, event: Event) -> None:
        """Somebody will answer what waits without end: they look at the state, so no crash keeps them from it."""
        asked = (event["workflow"], event["step"], event["attempt"])
        if asked not in self._asked:
            self._asked.add(asked)
            self._tell(event["workflow"], event["step"], event["wait"]["for"], by_name=False)

    def _signal(self) -> None:
        """Somebody says something, early or late, perhaps what was said before."""
        takers = [taker for taker in self._takers if taker[0] in self._known]
        if takers:
            self._tell(*takers[self.pick(len(takers))], by_name=self.pick(2) == 0)

    def _tell(self, workflow: str, name: str, kind: str, *, by_name: bool) -> None:
        self._signals += 1
        decision = {"decision": ("approve", "amend", "approve", "reject")[self.pick(4)]} if kind == "approval" else {}
        later = {"later": True} if self.pick(4) == 3 else {}
        about: dict[str, Any] = {"workflow": workflow, "data": self._signals, **decision, **later}
        self.flying.append(signalled(SIGNAL if by_name and kind == "signal" else name, f"signal-{self._signals}", **about))

    def _deliver(self) -> None:
        batch = []
        for _ in range(min(1 + self.pick(3), len(self.flying))):
            index = self.pick(len(self.flying))
            batch.append(self.flying[index] if self.pick(4) == 3 else self.flying.pop(index))
        if any(event["type"] in _ALONE for event in batch):
            batch, others = batch[:1], batch[1:]
            self.flying += others
        self.door.wait(self.pick(2))
        if not self._carry_out(batch):
            self.taken["crash"] += 1
            self.flying += batch

    def _repeat(self) -> None:
        if self.applied:
            self.repeat([self.applied[self.pick(len(self.applied))]])

    def repeat(self, batch: list[Event]) -> list[Command]:
        """Apply again what was applied before, and prove that nothing changes."""
        before = self.dump()
        commands, _, _, _ = self._probe(batch, twice=False)
        assert self.dump() == before, f"{batch} was applied before and changed the state"
        return commands

    def _wish(self, what: str) -> None:
        workflow = self.workflows[self.pick(len(self.workflows))]
        if workflow not in self._known:
            return
        if what in ("pause", "unpause"):
            self._pause(workflow, on=what == "unpause")
        elif what == "cancel":
            self.flying.append(cancelled(workflow))
        elif what == "fork" and self._forks < _MOST_FORKS:
            self._fork(workflow)
        elif what == "rerun" and self._reruns[workflow] < _MOST_RERUNS:
            self._rerun(workflow)

    def _pause(self, workflow: str, *, on: bool) -> None:
        self._pauses += 1
        self.flying.append((unpaused if on else paused)(workflow, key=f"pause-{self._pauses}"))

    def _rerun(self, workflow: str) -> None:
        self._reruns[workflow] += 1
        self.flying.append({"type": "rerun", "workflow": workflow, "request_key": f"rerun-{self._reruns[workflow]}"})

    def _fork(self, origin: str) -> None:
        """From any entry of its history, whatever it is about; it may have gone on before the wish is heard."""
        self._forks += 1
        last = self._plan(origin, None)["seq"]
        plan = self._plan(origin, 1 + self.pick(256) % last)
        changed = ["brief"] if self.pick(2) == 1 else []
        workflow = f"wf_{len(self.workflows)}"
        self.workflows.append(workflow)
        self._takers += [(workflow, name, kind) for of, name, kind in self._takers if of == origin]
        self.taken["fork with other input"] += len(changed)
        about = {"from": origin, "workflow": workflow, "at": plan["at"], "request_key": workflow, "request_hash": "fork"}
        about |= {"traceparent": None, "input": {"brief": "other"} if changed else plan["input"], "tenant": "forks"}
        about |= reusable(plan["steps"], changed)._asdict()
        self.flying.append({"type": "fork", "workflow": workflow, "fork": about})

    def _plan(self, workflow: str, at: int | None) -> dict[str, Any]:
        plan: dict[str, Any] = orjson.loads(self.run(self.door.connection.fetchval("select fork_plan($1, $2)", workflow, at)))
        return plan | {"at": at}

    def _tick(self, delay: timedelta, **more: Any) -> None:
        self.door.wait(delay)
        if not self._carry_out([tick(**more)]):
            self.taken["crash of a tick"] += 1
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
            self._hear_of_the_end(command)
        elif command["type"] == "dispatch":
            dispatch = (command["workflow"], command["step"], command["attempt"], command["deferrals"])
            if dispatch not in self._answered:
                self._answered.add(dispatch)
                answers = answer(command, self.door)
                self.flying += answers
                if answers and (answers[0].get("error") or {}).get("type") == "DeadLettered":
                    workflow, name, attempt, _ = dispatch
                    self._dead[workflow, name] = redriven(name, attempt=attempt, workflow=workflow)

    def _hear_of_the_end(self, command: Command) -> None:
        workflow = command["workflow"]
        self.told.add((workflow, command["resumed"]))
        redrive = self._dead.pop((workflow, (command["error"] or {}).get("step", "")), None)
        self.flying += [] if redrive is None else [redrive]
        # Whoever hears that it failed may ask for more than is thought of at random.
        if "rerun" in self.turns and command["status"] == "FAILED" and self._reruns[workflow] < _MOST_RERUNS and self.pick(3) == 2:
            self._rerun(workflow)


def _is_over(command: Command) -> bool:
    """Whether it tells of a pause in a workflow that ended in the same batch."""
    return command["type"] in ("paused", "unpaused") and command["status"] in FINAL


def _essence(command: Command) -> dict[str, Any]:
    # Who asks again for a pause that is over, or for what was refused, hears how it stands now.
    stands = ("status", "paused_at", "paused_by", "reason", "problem")
    now = stands if command["type"] in ("paused", "unpaused", "refused") else ()
    return {key: value for key, value in command.items() if key not in ("created", "cause", *now)}
