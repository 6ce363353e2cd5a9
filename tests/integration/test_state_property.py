"""Whatever happens to messages, processes and people: every workflow ends once, and every step has one recorded result.

Each mix leans on transitions that touch each other; the last one holds all there are.
"""

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .door import Door
from .simulation import TURNS, Team
from .witness import Runner, Witness
from .works import Work, works

_IN_CI = "CI" in os.environ or settings.get_current_profile_name() == "ci"
_EXAMPLES = 500 if _IN_CI else 40
"""Of each mix."""
_MOST_TURNS = 400
_MOST_IDLE = 30
"""Far more than any example needs once nothing goes wrong any more; the second, with nothing under way."""


class Mix(NamedTuple):
    """What workflows are made of beside plain work, and what happens to them."""

    kinds: tuple[str, ...]
    turns: tuple[str, ...]
    taken: tuple[str, ...]
    """What must have happened in the course of enough examples."""


_DELIVER = ("deliver",) * 9
_TIME = ("wait", "wait", "expire", "recover", "repeat")
_ALWAYS = (
    "crash", "crash of a tick", "step.completed", "step.dispatched", "step.failed", "step.late", "step.retried", "step.deferred",
    "step.lease_expired", "step.expanded", "FAILED DeadLettered", "FAILED LeaseExpired", "CANCELLED",
    "workflow FAILED BudgetExceeded deadline_seconds", "workflow FAILED BudgetExceeded max_tokens",
    "workflow FAILED BudgetExceeded max_cost_usd", "workflow.started", "workflow.succeeded", "workflow.failed",
)  # fmt: skip
_WAITING = (
    "step.waiting", "step.woken", "woken by time", "woken by signal approve", "woken by signal amend", "woken by signal reject",
    "FAILED Rejected", "FAILED TimedOut", "workflow.waiting", "workflow.woken", "workflow.signalled", "step.signalled refused",
)  # fmt: skip
_PAUSING = ("workflow.paused", "workflow.unpaused", "workflow.paused refused")
MIXES = {
    "messages": Mix(
        ("skip", "many", "nested", "stage", "spawn"),
        (*_DELIVER, *_TIME, "cancel"),
        (
            *_ALWAYS, "SKIPPED", "FAILED InputError", "FAILED BudgetExceeded", "step.cancelled", "workflow.cancelled",
            "cancelled while QUEUED", "cancelled while RUNNING", "step.redriven",
        ),
    ),
    "people": Mix(
        ("approval", "signal", "time", "nested", "stage"),
        (*_DELIVER, *_TIME, "cancel", "signal", "signal", "pause", "pause", "unpause"),
        (*_ALWAYS, *_WAITING, *_PAUSING, "woken by signal", "cancelled while WAITING", "step.cancelled"),
    ),
    "second chances": Mix(
        ("many", "nested", "spawn", "approval"),
        (*_DELIVER, *_TIME, "pause", "unpause", "fork", "fork", "rerun", "rerun"),
        (
            *_ALWAYS, *_PAUSING, "workflow.forked", "fork with other input", "reused SUCCESS", "reused FAILED", "workflow.rerun",
            "rerun refused", "workflow.resumed", "step.redriven",
        ),
    ),
    "everything": Mix(
        (), TURNS, (*_ALWAYS, *_WAITING, *_PAUSING, "SKIPPED", "workflow.forked", "workflow.rerun", "workflow.cancelled")
    ),
}  # fmt: skip

LIMITS = st.fixed_dictionaries(
    {"tenant": st.sampled_from(["", "ann", "bob"])},
    optional={
        "max_steps": st.integers(4, 10),
        "max_tokens": st.integers(60, 300),
        "max_cost_microdollars": st.integers(10, 60),
        "deadline_seconds": st.sampled_from([45, 700]),
        "priority": st.integers(-1, 1),
    },
)


@pytest.fixture(scope="module")
def runner(module_database: str) -> Iterator[Runner]:
    runner = Runner(module_database)
    yield runner
    runner.close()


@pytest.mark.parametrize("name", MIXES)
def test_every_workflow_ends_once_with_one_result_per_step(runner: Runner, name: str) -> None:
    mix = MIXES[name]
    taken: Counter[str] = Counter()

    @settings(
        max_examples=_EXAMPLES,
        derandomize=_IN_CI,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(
        plans=st.lists(st.tuples(works(most=6, depth=2, kinds=mix.kinds), LIMITS), min_size=1, max_size=3),
        max_running=st.integers(1, 3),
        numbers=st.binary(min_size=60, max_size=120),
    )
    def it_ends(plans: list[tuple[tuple[Work, ...], dict[str, Any]]], max_running: int, numbers: bytes) -> None:
        taken.update(_whatever_happens(runner, plans, max_running, numbers, mix.turns))

    it_ends()
    # Fewer examples than in CI, and others each time, need not come to everything.
    wanted = (*mix.turns, *mix.taken) if _IN_CI else mix.turns
    assert not {what for what in wanted if not taken[what]}, "this never happened"


def _whatever_happens(
    runner: Runner, plans: list[tuple[tuple[Work, ...], dict[str, Any]]], max_running: int, numbers: bytes, turns: tuple[str, ...]
) -> Counter[str]:
    runner.empty()
    witness = Witness(runner, max_running)
    team = Team(Door(runner.connection, max_running=max_running), runner.run, iter(numbers), witness.look, turns)
    for steps, limits in plans:
        team.request(steps, **limits)

    idle = 0
    for _ in range(_MOST_TURNS):
        team.turn()
        idle = 0 if team.flying else idle + 1
        if (not team.flying and len(witness.workflows) == len(team.workflows) and witness.ended()) or idle > _MOST_IDLE:
            break
    assert witness.ended(), f"what has not ended never will: { ({id: w['status'] for id, w in witness.workflows.items()}) }"

    if not team.a_tick_was_lost:
        ends = {(id, row["resumed"]) for id, row in witness.workflows.items()}
        assert ends <= team.told, "a workflow ended and nobody was told"
    doors = [[event] for event in team.applied if event["type"] in ("fork", "rerun")]
    for batch in [[event for event in team.applied if event["type"] not in ("fork", "rerun")], *doors]:
        again = team.repeat(batch) if batch else []
        assert not [command for command in again if command["type"] in ("dispatch", "render")]
    witness.histories_and_snapshots_agree()
    return team.taken + witness.taken()
