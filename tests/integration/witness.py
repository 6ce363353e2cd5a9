"""Looks at the state after every call and holds it to its promises."""

import asyncio
from collections import Counter
from typing import Any

import asyncpg
import orjson
from hypothesis import note

from shared.state import Command, Event

from .door import TABLES, USAGE
from .simulation import FINAL, PROBE

_TAKEN = """
    select what, count(*)::integer as times from (
        select h.type as what from history as h where not coalesce(h.data ? 'reused', false)
        union all select concat_ws(' ', s.status, s.error ->> 'type') from steps as s
        union all select concat_ws(
            ' ', 'workflow', w.status, w.error ->> 'type', substring(w.error ->> 'message' from 'passed its (.*)')
        ) from workflows as w
        union all select concat_ws(' ', 'woken by', s.woken ->> 'woken_by', s.woken ->> 'decision')
            from steps as s where s.woken is not null
        union all select 'cancelled while ' || (h.data #>> '{receipt,was}') from history as h where h.data ? 'receipt'
        union all select 'reused ' || s.status from steps as s where s.reused
    ) as t group by what
"""


class Runner:
    """A connection and the event loop that it lives in, for tests that hypothesis calls hundreds of times."""

    def __init__(self, dsn: str) -> None:
        self.loop = asyncio.Runner()
        self.run = self.loop.run
        self.connection: asyncpg.Connection[asyncpg.Record] = self.run(asyncpg.connect(dsn))
        self.run(self.connection.execute(PROBE))

    def empty(self) -> None:
        """Forget everything."""
        self.run(self.connection.execute("; ".join(f"delete from {table}" for table in TABLES)))

    def close(self) -> None:
        """Leave the database to others."""
        self.run(self.connection.close())
        self.loop.close()


class Witness:
    """What every state must be like, whatever happened, and every step from one to the next."""

    def __init__(self, runner: Runner, max_running: int) -> None:
        self._runner = runner
        self._max_running = max_running
        self.workflows: dict[str, dict[str, Any]] = {}
        self.steps: dict[tuple[str, str], dict[str, Any]] = {}
        self._resumed: set[str] = set()
        self._own: dict[str, list[dict[str, Any]]] = {}
        self.seen: dict[tuple[str, int], tuple[str, dict[str, str]]] = {}

    def look(self, events: list[Event], commands: list[Command], state: dict[str, Any]) -> None:
        """What came back from one call, and the whole state after it."""
        note(f"{[_short(event) for event in events]} → {[_short(command) for command in commands]}")
        before, known = self.steps, self.workflows
        halted = {id for id, row in known.items() if row["paused_at"] is not None}
        self.workflows = {row["id"]: row for row in state["workflows"]}
        self._resumed = {id for id, row in known.items() if row["resumed"] < self.workflows[id]["resumed"]}
        ended = {id for id, row in known.items() if row["status"] in FINAL} - self._resumed
        self.steps = {(row["workflow_id"], row["id"]): row for row in state["steps"]}
        self._own = {id: [] for id in self.workflows}
        for row in state["steps"]:
            self._own[row["workflow_id"]].append(row)
        self._recorded_results_stay(before)
        self._steps_start_after_their_needs()
        self._counters_agree()
        self._whatever_can_start_has()
        self._whatever_is_due_is_looked_at()
        self._what_was_used_is_counted_once()
        self._what_was_told_is_counted(events, before)
        for command in commands:
            if command["type"] == "dispatch":
                assert command["workflow"] not in ended, "dispatched after the workflow's end"
                self._is_rightly_dispatched(command)
                if command["workflow"] in halted and self.workflows[command["workflow"]]["paused_at"] is not None:
                    under_way = before.get((command["workflow"], command["step"]), {})
                    assert (under_way.get("status"), under_way.get("attempt")) == ("RUNNING", command["attempt"]), (
                        "started while paused"
                    )
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
            own = self._own[id]
            still_open = [step["id"] for step in own if step["status"] not in FINAL]
            assert row["steps_total"] == len(own)
            assert row["steps_open"] == len(still_open)
            assert not (row["status"] in FINAL and still_open), "open steps in a workflow that has ended"
            self._slots_are_for_work(row, own)
            spent = {"max_tokens": row["input_tokens"] + row["output_tokens"], "max_cost_microdollars": row["cost_microdollars"]}
            over = [limit for limit, used in spent.items() if row[limit] is not None and used > row[limit]]
            assert not (over and still_open), f"{id} goes on and has passed its {over}"
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
            models = row["models"] or {}
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
                known = self.steps[key]["models"] or {}
                assert event["models"].keys() <= known.keys(), f"{event['type']} of {key} was told and not counted"

    def _is_rightly_dispatched(self, command: Command) -> None:
        row = self.steps[command["workflow"], command["step"]]
        assert (row["status"], row["attempt"]) == ("RUNNING", command["attempt"])
        outputs = {need: self.steps[command["workflow"], need]["output"] for need in row["needs"]}
        assert command["upstream"] == outputs

    def _remember(self) -> None:
        """A workflow looks the same whenever it is at one entry of its history."""
        for id, row in self.workflows.items():
            statuses = {step["id"]: step["status"] for step in self._own[id]}
            now = (row["status"], statuses)
            assert self.seen.setdefault((id, row["seq"]), now) == now, "something changed without an entry in the history"

    def _whatever_can_start_has(self) -> None:
        """What has no open needs is under way where it may be, and no slot is free while somebody waits for one."""
        for id, row in self.workflows.items():
            if row["status"] in FINAL:
                continue
            for step in self._own[id]:
                if step["status"] not in ("PENDING", "WAITING"):
                    continue
                hears_of = step["needs"] if step["status"] == "PENDING" else step["children"] or []
                still_open = sum(self.steps[id, other]["status"] not in FINAL for other in hears_of)
                assert step["needs_open"] == still_open, f"{step['id']} waits for {still_open} and counts {step['needs_open']}"
                if step["status"] == "WAITING":
                    assert still_open or step["children"] is None, f"the children of {step['id']} have ended, and it has not"
                elif row["status"] == "RUNNING" and row["paused_at"] is None:
                    assert still_open, f"{step['id']} could start and does not"
                elif row["status"] == "WAITING" and row["paused_at"] is None:
                    assert still_open, f"{step['id']} could start and its workflow is not in the queue"
        running = sum(row["status"] == "RUNNING" for row in self.workflows.values())
        queued = [id for id, row in self.workflows.items() if row["status"] == "QUEUED"]
        assert not queued or running == self._max_running, f"{queued} wait for a slot, and {running} run"

    def _whatever_is_due_is_looked_at(self) -> None:
        for id, row in self.workflows.items():
            if row["status"] in FINAL:
                continue
            moments = [] if row["deadline_at"] is None else [row["deadline_at"]]
            for step in self._own[id]:
                waits = step["status"] == "WAITING" and step["children"] is None
                assert step["status"] != "RUNNING" or step["due_at"] is not None, f"{step['id']} runs without a lease"
                assert not waits or step["signal"] is not None or step["due_at"] is not None, f"{step['id']} waits for nothing"
                may = row["paused_at"] is None and (row["status"] == "RUNNING" or step["signal"] is not None)
                if step["due_at"] is not None and (step["status"] == "RUNNING" or (waits and may)):
                    moments.append(step["due_at"])
            assert not moments or (row["wake_at"] is not None and row["wake_at"] <= min(moments)), (
                f"{id} is looked at {row['wake_at']}, and something is due {min(moments)}"
            )

    def ended(self) -> bool:
        """Whether everything has."""
        return all(row["status"] in FINAL for row in self.workflows.values())

    def histories_and_snapshots_agree(self) -> None:
        for id, row in self.workflows.items():
            entries = self._fetch("select seq from history where workflow_id = $1 order by seq", id)
            assert [entry["seq"] for entry in entries] == list(range(1, row["seq"] + 1))
            looked_at = {seq for of, seq in self.seen if of == id} | {row["seq"]}
            snapshots = self._fetch(
                "select seq, workflow_snapshot($1, seq) as snapshot from unnest($2::integer[]) as seq", id, sorted(looked_at)
            )
            for seq, snapshot in ((one["seq"], orjson.loads(one["snapshot"])) for one in snapshots):
                shown = (snapshot["status"], {step["id"]: step["status"] for step in snapshot["steps"]})
                assert self.seen.get((id, seq), shown) == shown, f"the snapshot at {seq} differs from what was"
            (now,) = self._fetch("select get_workflow($1) as workflow", id)
            fields = ("id", "parent", "agent", "status")
            last = orjson.loads(now["workflow"])
            self._models_are_summed(last)
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

    def taken(self) -> Counter[str]:
        """The transitions that the state knows of, and how often each was taken."""
        return Counter({row["what"]: row["times"] for row in self._fetch(_TAKEN)})

    def _fetch(self, query: str, *arguments: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._runner.run(self._runner.connection.fetch(query, *arguments))]


def _short(message: dict[str, Any]) -> str:
    names = ("type", "workflow", "step", "attempt", "deferrals", "status")
    return " ".join(str(message[name]) for name in names if name in message)
