"""Starts what the schedules of the definitions ask for: the sweeper's every look, and each of the scheduler's messages.

A schedule counts from when it is first seen, or seen with another expression: nothing is caught up from before. Whoever looks, and
however often and at once, a tick starts one workflow at most: its id and request key are made of the definition's name and the
tick, and the state keeps how far each schedule has come in the transaction that starts the workflow. Time is the state's.
"""

import logging
from datetime import datetime, timedelta
from typing import Any, Final

from shared.ids import workflow_id_for
from shared.messages import WorkflowRequested
from shared.runtime.dispatcher import Dispatcher
from shared.runtime.requests import request_event
from shared.runtime.wiring import Runtime
from shared.state import Event
from shared.telemetry import TraceContext
from shared.workflows import Schedule
from shared.workflows.schedules import due, just_before, next_tick

_log = logging.getLogger(__name__)

_AGAIN: Final = timedelta(seconds=1)


async def start_due(live: Runtime, dispatcher: Dispatcher) -> None:
    """Start every workflow whose moment has come, and register schedules that are new. Errors as `Caller.call`."""
    if not live.settings.orch_enabled:
        return
    scheduled = _scheduled(live)
    state = await live.store.schedules()
    known = {row["name"]: row for row in state["schedules"]}
    now = datetime.fromisoformat(state["moment"])
    notes: list[dict[str, Any]] = [{"name": name} for name in known if name not in scheduled]
    events: list[Event] = []
    for name, schedule in scheduled.items():
        row = known.get(name)
        if row is None or row["cron"] != schedule.cron:
            _log.info("workflow %s is scheduled: %s", name, schedule.cron)
            notes.append(_note(name, schedule, now))
        else:
            _look(live, name, schedule, datetime.fromisoformat(row["last_tick"]), now, events, notes)
    await _carry_out(live, dispatcher, events, notes)


async def start_due_of(live: Runtime, dispatcher: Dispatcher, name: str) -> None:
    """The same for one definition, because somebody says that its moment has come. Errors as `Caller.call`.

    What was started for the last tick is asked for again while that is on time: whoever did may have gone before it could publish.
    """
    if not live.settings.orch_enabled:
        return
    schedule = _scheduled(live)[name]
    state = await live.store.schedules()
    now = datetime.fromisoformat(state["moment"])
    row = next((one for one in state["schedules"] if one["name"] == name), None)
    events: list[Event] = []
    notes: list[dict[str, Any]] = []
    if row is None:
        # The scheduler came before the sweeper's first look, with a tick that is not from before the schedule.
        since = just_before(schedule.cron, now)
        await live.store.note_schedules([_note(name, schedule, since)])
    else:
        since = datetime.fromisoformat(row["last_tick"]) - _AGAIN
    # Of two expressions one is of another version, and the sweeper says from when the new one counts.
    if row is None or row["cron"] == schedule.cron:
        _look(live, name, schedule, since, now, events, notes)
    await _carry_out(live, dispatcher, events, notes)


async def overview(live: Runtime) -> list[dict[str, Any]]:
    """Every schedule by name: `{workflow, cron, catch_up, decided_until, next_tick, last_run}`. Errors as `Caller.call`."""
    state = await live.store.schedules()
    known = {row["name"]: row for row in state["schedules"]}
    return [_shown(name, schedule, known.get(name), state["moment"]) for name, schedule in _scheduled(live).items()]


def _shown(name: str, schedule: Schedule, row: dict[str, Any] | None, now: str) -> dict[str, Any]:
    current = row is not None and row["cron"] == schedule.cron
    following = next_tick(schedule.cron, datetime.fromisoformat(now))
    return {
        "workflow": name,
        "cron": schedule.cron,
        "catch_up": schedule.catch_up,
        "decided_until": row["last_tick"] if row is not None and current else None,
        "next_tick": None if following is None else following.isoformat(),
        "last_run": None if row is None else row["workflow"],
    }


def _scheduled(live: Runtime) -> dict[str, Schedule]:
    """Sorted, so that two that look at once lock rows in one order."""
    return {name: one.schedule for name, one in sorted(live.definitions.items()) if one.schedule is not None}


def _look(
    live: Runtime,
    name: str,
    schedule: Schedule,
    since: datetime,
    now: datetime,
    events: list[Event],
    notes: list[dict[str, Any]],
) -> None:
    """Add what one schedule asks for."""
    found = due(schedule, since, now)
    events += [_event(live, name, schedule, tick) for tick in found.start]
    if found.passed is not None:
        notes.append(_note(name, schedule, found.passed))


async def _carry_out(live: Runtime, dispatcher: Dispatcher, events: list[Event], notes: list[dict[str, Any]]) -> None:
    if notes:
        await live.store.note_schedules(notes)
    if events:
        await dispatcher.apply(events)


def _note(name: str, schedule: Schedule, tick: datetime) -> dict[str, Any]:
    return {"name": name, "cron": schedule.cron, "tick": tick.isoformat()}


def _event(live: Runtime, name: str, schedule: Schedule, tick: datetime) -> Event:
    key = f"schedule/{name}/{tick:%Y-%m-%dT%H:%M:%SZ}"
    wanted = WorkflowRequested(workflow=name, input=schedule.input)
    trace = TraceContext.new().header  # each of them is a story of its own, and not part of the look that found it
    event = request_event(live, wanted, workflow=workflow_id_for(key, tick), request_key=key, traceparent=trace)
    return {**event, "schedule": _note(name, schedule, tick)}
