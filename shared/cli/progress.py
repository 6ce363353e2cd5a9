"""A workflow's progress, worked out from its history: no I/O, no clock."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from shared.cli.output import counted, one_line

State = Literal["running", "waiting", "done", "skipped", "failed", "cancelled"]
_ENDED: tuple[State, ...] = ("done", "skipped", "failed", "cancelled")
_LONGEST_NOTE = 160


@dataclass(slots=True)
class StepProgress:
    """One step as far as it has come."""

    id: str
    started: datetime
    state: State = "running"
    ended: datetime | None = None
    note: str = ""
    """What is worth saying beside the state."""
    writing: str = ""
    """The end of what it has written so far, as it came: anything."""
    length: int = 0
    """How many characters it has written so far."""

    @property
    def depth(self) -> int:
        """How far down it stands: 0 for a step of the definition, 1 for its children."""
        return self.id.count("/")

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    def seconds(self, now: datetime) -> float:
        """How long it took, or has taken so far."""
        return max(0.0, ((now if self.ended is None else self.ended) - self.started).total_seconds())


@dataclass(slots=True)
class Progress:
    """All steps that have begun, in the order in which they did."""

    workflow: str = "ID"
    """Its id, for the commands that are shown."""
    steps: dict[str, StepProgress] = field(default_factory=dict)
    requested: datetime | None = None
    started: datetime | None = None
    """When the workflow got its slot; None while it is queued."""

    def apply(self, entry: Mapping[str, Any]) -> str | None:
        """Take in a history entry and return it as a line for people, without its time; None when there is nothing to say."""
        at = datetime.fromisoformat(entry["at"])
        if self.requested is None:
            self.requested = at
        if entry["step"] is None:
            return self._workflow_changed(entry, at)
        if "/@" in entry["step"] and entry["type"] != "step.failed":
            return None  # the input or the output of a nested workflow: nobody works on it
        step = self.steps.get(entry["step"])
        if step is None:
            step = self.steps[entry["step"]] = StepProgress(entry["step"], at)
            if entry["type"] == "step.dispatched":
                return f"{step.id}: started"
        said = self._waits(step, entry) if entry["type"] == "step.waiting" else _changed(step, entry, at)
        return None if said is None else f"{step.id}: {said}"

    def write(self, news: Mapping[str, Any]) -> None:
        """Take in what a running step has written: `{step, attempt, text, length}`."""
        step = self.steps.get(news["step"])
        if step is not None and step.state == "running":
            step.writing, step.length = str(news["text"]), int(news["length"])

    def elapsed_seconds(self, at: datetime) -> float:
        """Time since the workflow was asked for."""
        return 0.0 if self.requested is None else max(0.0, (at - self.requested).total_seconds())

    def in_order(self) -> Iterator[StepProgress]:
        """Every step, each followed by its children."""
        children: dict[str, list[StepProgress]] = {}
        for step in self.steps.values():
            children.setdefault(step.id.rpartition("/")[0], []).append(step)
        pending = children.get("", [])[::-1]
        while pending:
            step = pending.pop()
            yield step
            pending.extend(children.get(step.id, [])[::-1])

    def _waits(self, step: StepProgress, entry: Mapping[str, Any]) -> str:
        step.state, step.note = "waiting", what_it_waits_for(self.workflow, entry["data"])
        links = entry.get("links")  # the gateway gives them to who may decide
        return f"waits {step.note}" if links is None else f"waits {step.note}; whoever has this link can decide: {links['approve']}"

    def _workflow_changed(self, entry: Mapping[str, Any], at: datetime) -> str | None:
        kind = entry["type"]
        if kind == "workflow.signalled":
            return _told(entry["data"])
        if kind in ("workflow.paused", "workflow.unpaused"):
            by = f" by {entry['data']['by']}" if entry["data"]["by"] else ""
            how = "paused" if kind == "workflow.paused" else "resumed"
            return one_line(f"{how}{by}", longest=_LONGEST_NOTE)
        if kind == "workflow.started":
            is_first, self.started = self.started is None, at
            if not is_first:
                return None
            waited = self.elapsed_seconds(at)
            return f"waited {waited:.1f} s for a free slot" if waited >= 1 else None
        if kind in ("workflow.failed", "workflow.cancelled"):
            for step in self.steps.values():
                if not step.has_ended:
                    step.state, step.ended = "cancelled", at
        return None


def what_it_waits_for(workflow: str, data: Mapping[str, Any]) -> str:
    """What a step of `workflow` waits for, on one line, with the command that answers it; `data` is as the state shows it."""
    moment = None if data["until"] is None else datetime.fromisoformat(data["until"]).astimezone(UTC)
    until = "" if moment is None else f" until {moment:%Y-%m-%dT%H:%M:%SZ}"
    command = f"agent-team signal {workflow} {data['name']}"
    match data["for"]:
        case "approval":
            asked = one_line(data["prompt"], longest=_LONGEST_NOTE)
            return f"for an approval{until}: {command} --approve (or --reject): {asked}"
        case "signal":
            return f"for a signal{until}: {command}"
        case _:
            return until.strip()


def why_skipped(data: Mapping[str, Any]) -> str:
    """What a `step.skipped` entry of the history says, for people."""
    reason = data.get("reason")
    return "its condition does not hold" if reason in (None, "when") else str(reason)


def _changed(step: StepProgress, entry: Mapping[str, Any], at: datetime) -> str | None:
    data = entry["data"] if entry["data"] is not None else {}
    match entry["type"]:
        case "step.dispatched":
            return _dispatched(step)
        case "step.completed":
            return _completed(step, data, at)
        case "step.failed":
            return f"{_ended(step, at, 'failed', 'failed after', note=_error(data))}: {step.note}"
        case "step.skipped" | "step.cancelled":
            return _left_out(step, entry["type"], data, at)
        case "step.expanded":
            step.state, step.note = "waiting", f"waits for {counted(data['steps'], 'step')}"
            return f"goes on in {counted(data['steps'], 'step')}"
        case "step.retried" | "step.lease_expired":
            return _retried(step, entry["attempt"], data, at)
        case "step.deferred":
            step.state, step.note = "waiting", f"for {_pause(data, at):.1f} s, a quota is used up"
            return f"waits {step.note}"
        case "step.woken":
            step.note = ""
            return "waits no longer" if data["by"] == "time" else None
        case "step.late":
            return f"what attempt {entry['attempt']} told came too late: only what it used counts"
        case _:
            return None


def _told(data: Mapping[str, Any]) -> str:
    by = f" by {data['by']}" if "by" in data else ""
    comment = f": {data['comment']}" if "comment" in data else ""
    return one_line(f"{data['name']}: {data.get('decision', 'signal')}{by}{comment}", longest=_LONGEST_NOTE)


def _completed(step: StepProgress, data: Mapping[str, Any], at: datetime) -> str:
    if not data.get("reused"):
        return _ended(step, at, "done", "done in")
    _ended(step, at, "done", "", note="taken over")
    return step.note


def _left_out(step: StepProgress, kind: str, data: Mapping[str, Any], at: datetime) -> str:
    if kind == "step.cancelled":
        _ended(step, at, "cancelled", "", note="its nested workflow failed")
    else:
        _ended(step, at, "skipped", "", note=why_skipped(data))
    return f"{step.state}: {step.note}"


def _dispatched(step: StepProgress) -> str | None:
    again = step.state == "running"
    step.state, step.writing, step.length = "running", "", 0
    # A retry was announced when the attempt before it failed.
    return "starts again" if again else None


def _retried(step: StepProgress, attempt: int, data: Mapping[str, Any], at: datetime) -> str:
    reason = "nothing was heard of it" if data["error"] is None else _error(data["error"])
    upcoming = f"attempt {attempt} in {_pause(data, at):.1f} s"
    step.state, step.note = "waiting", f"{upcoming}: {reason}"
    return f"attempt {attempt - 1} failed ({reason}); {upcoming}"


def _ended(step: StepProgress, at: datetime, state: State, how: str, *, note: str = "") -> str:
    step.state, step.ended, step.note = state, at, note
    return f"{how} {step.seconds(at):.2f} s"


def _error(error: Mapping[str, Any]) -> str:
    return one_line(f"{error.get('type', 'error')}: {error.get('message', '')}", longest=_LONGEST_NOTE)


def _pause(data: Mapping[str, Any], at: datetime) -> float:
    return max(0.0, (datetime.fromisoformat(data["not_before"]) - at).total_seconds())
