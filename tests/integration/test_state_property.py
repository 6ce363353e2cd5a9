"""Whatever happens to messages and processes: every workflow ends once, and every step has one recorded result."""

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import orjson
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from shared.state import Command, Event

from .door import TABLES, USAGE, Door
from .simulation import FINAL, WAITS, Team, Work

_TURNS = 400
"""Far more than any example needs once nothing goes wrong any more."""


class Runner:
    """A connection and the event loop that it lives in, for tests that hypothesis calls hundreds of times."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.Runner()
        self.run = self.loop.run
        self.connection: asyncpg.Connection[asyncpg.Record] = self.run(asyncpg.connect(dsn))

    def close(self) -> None:
        self.run(self.connection.close())
        self.loop.close()


@pytest.fixture(scope="module")
def runner(module_database: str) -> Iterator[Runner]:
    runner = Runner(module_database)
    yield runner
    runner.close()


class Witness:
    """Looks at the state after every call and holds it to its promises."""

    def __init__(self, runner: Runner, max_running: int) -> None:
        self._runner = runner
        self._max_running = max_running
        self.workflows: dict[str, dict[str, Any]] = {}
        self.steps: dict[tuple[str, str], dict[str, Any]] = {}
        self._resumed: set[str] = set()
        self.seen: dict[tuple[str, int], tuple[str, dict[str, str]]] = {}

    def look(self, events: list[Event], commands: list[Command]) -> None:
        note(f"{[_short(event) for event in events]} → {[_short(command) for command in commands]}")
        before, known = self.steps, self.workflows
        halted = {id for id, row in known.items() if row["paused_at"] is not None}
        self.workflows = {row["id"]: row for row in self._fetch("select * from workflows")}
        self._resumed = {id for id, row in known.items() if row["resumed"] < self.workflows[id]["resumed"]}
        ended = {id for id, row in known.items() if row["status"] in FINAL} - self._resumed
        self.steps = {(row["workflow_id"], row["id"]): row for row in self._fetch("select * from steps")}
        self._recorded_results_stay(before)
        self._steps_start_after_their_needs()
        self._counters_agree()
        self._what_was_used_is_counted_once()
        self._what_was_told_is_counted(events, before)
        for command in commands:
            if command["type"] == "dispatch":
                assert command["workflow"] not in ended, "dispatched after the workflow's end"
                self._is_rightly_dispatched(command)
                if command["workflow"] in halted and self.workflows[command["workflow"]]["paused_at"] is not None:
                    under_way = before[command["workflow"], command["step"]]
                    assert (under_way["status"], under_way["attempt"]) == ("RUNNING", command["attempt"]), "started while paused"
        if len(events) == 1 and events[0]["type"] == "workflow.cancelled":
            self._the_receipt_says_what_was(events[0]["workflow"], known, before)
        self._remember()

    def _recorded_results_stay(self, before: dict[tuple[str, str], dict[str, Any]]) -> None:
        for key, row in before.items():
            reopened = row["workflow_id"] in self._resumed and row["status"] in ("FAILED", "CANCELLED")
            if row["status"] in FINAL and not reopened:
                # What comes too late changes nothing but the ledger.
                ledger = dict.fromkeys(("late", "models", *USAGE)) if self.steps[key]["late"] != row["late"] else {}
                assert {**self.steps[key], **ledger} == {**row, **ledger}, "a step changed after it had ended"

    def _the_receipt_says_what_was(
        self, workflow: str, known: dict[str, dict[str, Any]], before: dict[tuple[str, str], dict[str, Any]]
    ) -> None:
        was = known.get(workflow)
        if was is None or was["status"] in FINAL:
            return
        (row,) = self._fetch("select cancel_receipt($1) as receipt", workflow)
        receipt = orjson.loads(row["receipt"])
        own = [step["status"] for (owner, _), step in before.items() if owner == workflow]
        counts = {"running": own.count("RUNNING"), "finished": sum(status in FINAL for status in own)}
        counts["stopped"] = len(own) - sum(counts.values())
        assert {name: receipt[name] for name in counts} == counts, "the receipt tells of other steps than there were"
        assert receipt["usage"] == {name: was[name] for name in USAGE}, "the receipt tells of other usage than there was"

    def _steps_start_after_their_needs(self) -> None:
        for (workflow, id), row in self.steps.items():
            if row["started_at"] is not None:
                open_needs = [need for need in row["needs"] if self.steps[workflow, need]["status"] not in FINAL]
                assert not open_needs, f"{id} started before {open_needs} had ended"
            may_be_due = row["status"] in ("RUNNING", "CANCELLED") or (row["status"] == "WAITING" and row["children"] is None)
            assert may_be_due or row["due_at"] is None, f"{id} is {row['status']} and due"
            assert row["attempt"] <= row["max_retries"] + 1, f"{id} has more attempts than it may"

    def _counters_agree(self) -> None:
        for id, row in self.workflows.items():
            own = [step for (workflow, _), step in self.steps.items() if workflow == id]
            still_open = [step["id"] for step in own if step["status"] not in FINAL]
            assert row["steps_total"] == len(own)
            assert row["steps_open"] == len(still_open)
            assert not (row["status"] in FINAL and still_open), "open steps in a workflow that has ended"
            self._slots_are_for_work(row, own)
        running = [id for id, row in self.workflows.items() if row["status"] == "RUNNING"]
        assert len(running) <= self._max_running, f"{running} run at once"

    def _slots_are_for_work(self, row: dict[str, Any], own: list[dict[str, Any]]) -> None:
        waits = [step["id"] for step in own if step["status"] == "WAITING" and step["signal"] is not None]
        active = [
            step["id"]
            for step in own
            if step["status"] == "RUNNING" or (step["status"] == "WAITING" and step["children"] is None and step["signal"] is None)
        ]
        at_work = [step["id"] for step in own if step["status"] == "RUNNING"]
        assert row["steps_waiting"] == len(waits)
        assert row["status"] == "RUNNING" or not at_work, f"{row['id']} is {row['status']}, and {at_work} are at work"
        if row["paused_at"] is not None:
            assert row["status"] in ("RUNNING", "WAITING"), f"{row['id']} is paused and {row['status']}"
            assert row["status"] == "WAITING" or at_work or not row["steps_open"], f"{row['id']} keeps a slot and is paused"
            return
        assert not (row["status"] == "WAITING" and (active or not waits)), f"{row['id']} waits, and {active} are at work"
        assert not (row["status"] == "RUNNING" and waits and not active), f"{row['id']} keeps a slot and only waits"

    def _what_was_used_is_counted_once(self) -> None:
        totals = {id: dict.fromkeys(USAGE, 0) for id in self.workflows}
        for (workflow, id), row in self.steps.items():
            models = {} if row["models"] is None else orjson.loads(row["models"])
            assert all(usage == USAGE for usage in models.values()), f"{id} counted an attempt twice: {models}"
            for name in USAGE:
                assert row[name] == len(models) * USAGE[name], f"the counters of {id} are not those of its attempts"
                totals[workflow][name] += row[name]
        for id, row in self.workflows.items():
            assert {name: row[name] for name in USAGE} == totals[id], "a workflow's usage is not that of its steps"

    def _what_was_told_is_counted(self, events: list[Event], before: dict[tuple[str, str], dict[str, Any]]) -> None:
        results = {(event["workflow"], event["step"]) for event in events if event["type"] == "step.completed"}
        for event in events:
            key = (event.get("workflow", ""), event.get("step", ""))
            if "models" not in event or key not in before:
                continue
            was = before[key]
            in_time = was["status"] == "RUNNING" or (was["status"] == "CANCELLED" and was["due_at"] is not None)
            this_one = (was["attempt"], event.get("deferrals", was["deferrals"])) == (event["attempt"], was["deferrals"])
            # Of other errors nobody can tell whether they came before; beside a result they may be about what it ended.
            if event["type"] == "step.completed" or (in_time and this_one and key not in results):
                known = orjson.loads(self.steps[key]["models"] or "{}")
                assert event["models"].keys() <= known.keys(), f"{event['type']} of {key} was told and not counted"

    def _is_rightly_dispatched(self, command: Command) -> None:
        row = self.steps[command["workflow"], command["step"]]
        assert (row["status"], row["attempt"]) == ("RUNNING", command["attempt"])
        outputs = {need: self.steps[command["workflow"], need]["output"] for need in row["needs"]}
        assert command["upstream"] == {need: output and orjson.loads(output) for need, output in outputs.items()}

    def _remember(self) -> None:
        """A workflow looks the same whenever it is at one entry of its history."""
        for id, row in self.workflows.items():
            statuses = {step["id"]: step["status"] for (workflow, _), step in self.steps.items() if workflow == id}
            now = (row["status"], statuses)
            assert self.seen.setdefault((id, row["seq"]), now) == now, "something changed without an entry in the history"

    def histories_and_snapshots_agree(self) -> None:
        for id, row in self.workflows.items():
            entries = self._fetch("select seq from history where workflow_id = $1 order by seq", id)
            assert [entry["seq"] for entry in entries] == list(range(1, row["seq"] + 1))
            snapshots = self._fetch(
                "select seq, workflow_snapshot($1, seq) as snapshot from generate_series(1, $2) as seq", id, row["seq"]
            )
            for seq, snapshot in ((one["seq"], orjson.loads(one["snapshot"])) for one in snapshots):
                shown = (snapshot["status"], {step["id"]: step["status"] for step in snapshot["steps"]})
                assert self.seen.get((id, seq), shown) == shown, f"the snapshot at {seq} differs from what was"
            (now,) = self._fetch("select get_workflow($1) as workflow", id)
            fields = ("id", "parent", "agent", "status")
            self._models_are_summed(orjson.loads(now["workflow"]))
            last = orjson.loads(now["workflow"])
            assert [[step[name] for name in fields] for step in snapshot["steps"]] == [
                [step[name] for name in fields] for step in last["steps"]
            ]
            assert [step["output"] for step in snapshot["steps"]] == [step["output"] for step in last["steps"]]

    def _models_are_summed(self, shown: dict[str, Any]) -> None:
        total: dict[str, dict[str, int]] = {}
        for step in shown["steps"]:
            for model, usage in step["models"].items():
                known = total.setdefault(model, dict.fromkeys(USAGE, 0))
                total[model] = {name: known[name] + usage[name] for name in USAGE}
        assert shown["models"] == total

    def _fetch(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._runner.run(self._runner.connection.fetch(query, *arguments))]


def _short(message: dict[str, Any]) -> str:
    names = ("type", "workflow", "step", "attempt", "deferrals", "status")
    return " ".join(str(message[name]) for name in names if name in message)


@st.composite
def works(draw: st.DrawFn, *, most: int, depth: int, declared: bool = True) -> tuple[Work, ...]:
    made: list[Work] = []
    for n in range(draw(st.integers(0 if depth < 2 else 1, most))):
        kinds = ["plain", "plain", "plain", "skip", "many", "nested", "spawn"][: 7 if depth else 4]
        kind = draw(st.sampled_from([*kinds, *WAITS] if declared else kinds))
        acts = st.sampled_from(["fail", "fail for long", "defer", "defer shortly", "lost", "dead"])
        ends = ["ok", "ok", "ok", "answer late and again", "permanent"] if kind == "plain" else ["ok"]
        has_children = kind in ("many", "nested", "spawn")
        made.append(
            Work(
                kind=kind,
                needs=tuple(draw(st.sets(st.integers(0, n - 1), max_size=3))) if n else (),
                acts=() if kind in ("skip", "many", "nested") else tuple(draw(st.lists(acts, max_size=2))),
                end=draw(st.sampled_from(ends)),
                on_failure=draw(st.sampled_from(["continue", "fail"])),
                max_retries=draw(st.sampled_from([3, 1, 0])),
                join=draw(st.sampled_from([99, None, 0])) if has_children else None,
                children=draw(works(most=3, depth=depth - 1, declared=kind == "nested")) if has_children else (),
            )
        )
    return tuple(made)


LIMITS = st.fixed_dictionaries(
    {},
    optional={
        "max_steps": st.integers(4, 10),
        "max_tokens": st.integers(60, 300),
        "deadline_seconds": st.sampled_from([45, 700]),
        "priority": st.integers(-1, 1),
    },
)


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    plans=st.lists(st.tuples(works(most=8, depth=2), LIMITS), min_size=1, max_size=3),
    max_running=st.integers(1, 3),
    numbers=st.lists(st.integers(0, 11), max_size=100),
)
def test_every_workflow_ends_once_with_one_result_per_step(
    runner: Runner, plans: list[tuple[tuple[Work, ...], dict[str, Any]]], max_running: int, numbers: list[int]
) -> None:
    runner.run(runner.connection.execute("; ".join(f"delete from {table}" for table in TABLES)))
    door = Door(runner.connection, max_running=max_running)
    witness = Witness(runner, max_running)
    team = Team(door, runner.run, iter(numbers), witness.look)
    for steps, limits in plans:
        team.request(steps, **limits)

    for _ in range(_TURNS):
        team.turn()
        if (
            not team.flying
            and len(witness.workflows) == len(plans)
            and all(w["status"] in FINAL for w in witness.workflows.values())
        ):
            break
    else:
        pytest.fail(f"after {_TURNS} turns there are { ({id: w['status'] for id, w in witness.workflows.items()}) }")

    if not team.a_tick_was_lost:
        assert team.told == set(team.workflows), "a workflow ended and nobody was told"
    before = team.dump()
    assert not [c for c in runner.run(door.advance(*team.applied)) if c["type"] in ("dispatch", "render")]
    assert team.dump() == before, "all that was applied, applied again, changed the state"
    witness.histories_and_snapshots_agree()
