"""From whatever entry of whatever finished workflow a fork starts, it ends as the original did, and only what was missing runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.state import Command
from shared.workflows import reusable

from .door import Door, requested
from .simulation import FINAL, Team
from .witness import Runner, Witness
from .works import Work, decided, family, works

_TURNS = 400


@pytest.fixture(scope="module")
def runner(module_database: str) -> Iterator[Runner]:
    runner = Runner(module_database)
    yield runner
    runner.close()


def _going_on(works: Sequence[Work]) -> tuple[Work, ...]:
    """The same work, in workflows that go on after a failure: what a failure cuts off differs from one time to the next."""
    return tuple(replace(work, on_failure="continue", children=_going_on(work.children)) for work in works)


def _finish(team: Team, witness: Witness) -> None:
    for _ in range(_TURNS):
        if not team.flying and all(row["status"] in FINAL for row in witness.workflows.values()):
            return
        team.turn()
    pytest.fail(f"after {_TURNS} turns there are { {id: row['status'] for id, row in witness.workflows.items()} }")


def _outcome(shown: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    steps = {
        step["id"]: (step["parent"], step["agent"], step["status"], _said(step["output"]), step["error"]) for step in shown["steps"]
    }
    return {**steps, "": (shown["status"], _said(shown["output"]))}


def _said(output: Any) -> Any:
    """Whoever is asked again answers in other words, at another time; a nested workflow's output may hold what they said."""
    if isinstance(output, list):
        return [_said(one) for one in output]
    if isinstance(output, dict):
        told = ("at", "data") if "woken_by" in output else ()
        return {key: _said(one) for key, one in output.items() if key not in told}
    return output


def _agents(commands: Sequence[Command], workflow: str) -> set[str]:
    return {
        command["step"]
        for command in commands
        if command["type"] == "dispatch" and command["workflow"] == workflow and decided(command) is None
    }


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(wanted=works(most=8, depth=2).map(_going_on).filter(bool), place=st.floats(0, 1), crash=st.booleans())
def test_a_fork_ends_like_its_original_and_runs_exactly_what_was_not_finished(
    runner: Runner, wanted: tuple[Work, ...], place: float, crash: bool
) -> None:
    runner.empty()
    door = Door(runner.connection)
    witness = Witness(runner, door.max_running)
    heard: list[Command] = []

    def look(events: list[Any], commands: list[Command], state: dict[str, Any]) -> None:
        heard.extend(commands)
        witness.look(events, commands, state)

    team = Team(door, runner.run, iter(()), look)
    team.workflows.append("wf_0")
    team.flying.append(requested(family("", wanted), "wf_0"))
    team.turn()
    _finish(team, witness)

    original = runner.run(door.workflow("wf_0"))
    at = 1 + round(place * (original["seq"] - 1))
    plan = orjson.loads(runner.run(runner.connection.fetchval("select fork_plan('wf_0', $1)", at)))
    reuse = reusable(plan["steps"], ())
    fork = {
        "from": "wf_0",
        "workflow": "wf_fork",
        "at": at,
        "input": original["input"],
        "request_key": "key",
        "request_hash": "hash",
    }
    fork |= {"traceparent": None, **reuse._asdict()}
    commands = runner.run(door.call("fork_workflow", fork=fork))
    before = team.dump()
    again = runner.run(door.call("fork_workflow", fork={**fork, "workflow": "wf_other"}))
    assert team.dump() == before, "a fork that was asked for before changed the state"
    assert _essences(commands) == _essences(again), "a fork that was asked for again did not return its commands"
    if crash:
        commands = again

    team.workflows.append("wf_fork")
    look([], commands, orjson.loads(team.dump()))
    team.take(commands)
    _finish(team, witness)

    forked = runner.run(door.workflow("wf_fork"))
    assert _outcome(forked) == _outcome(original)
    assert {step["id"] for step in forked["steps"] if step["reused"]} == {*reuse.finished, *reuse.expanded}
    ended = {step["id"] for step in original["steps"] if _was_done(runner, at, step["id"])}
    called = {step["id"] for step in original["steps"] if step["id"] in _agents(heard, "wf_0")}
    assert _agents(heard, "wf_fork") == called - ended
    assert (forked["forked_from"], forked["forked_at"]) == ("wf_0", at)
    witness.histories_and_snapshots_agree()


def _essences(commands: Sequence[Command]) -> list[str]:
    return sorted(repr({key: value for key, value in command.items() if key not in ("created", "cause")}) for command in commands)


def _was_done(runner: Runner, at: int, step: str) -> bool:
    """Whether the step's own work was over by then, told by its entries one by one."""
    rows = runner.run(
        runner.connection.fetch(
            "select type from history where workflow_id = 'wf_0' and step_id = $1 and seq <= $2 and type <> 'step.late'"
            " order by seq",
            step,
            at,
        )
    )
    types = [row["type"] for row in rows]
    return "step.completed" in types or "step.skipped" in types or "step.expanded" in types or types[-1:] == ["step.failed"]
