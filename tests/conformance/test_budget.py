"""A workflow's budget over every back end of the guards: shared by its attempts, held before a call, corrected after it."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from shared.ai import Hold
from shared.ai.budget import COST, TOKENS, WorkflowAccount, bucket_of, seed
from shared.errors import BudgetExceeded, RateLimited
from shared.guards import Window
from shared.messages import Remaining, Usage

from .harness import GuardsRig

WORKFLOW = "wf_01K00000000000000000000000"
WEEK = 7 * 86_400.0


def account(rig: GuardsRig, workflow: str = WORKFLOW, **remaining: int) -> WorkflowAccount:
    return WorkflowAccount(rig.guards.limiter, rig.time.clock, workflow=workflow, remaining=Remaining(**remaining))


def used(tokens: int, cost: int = 0) -> Usage:
    return Usage(model_calls=1, input_tokens=tokens, cost_microdollars=cost)


async def left(rig: GuardsRig, name: str, limit: int) -> int:
    """What the window still holds: the most that can be taken of it."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        try:
            window = Window(name, limit, middle, WEEK, WEEK)
            await rig.guards.limiter.reserve(bucket_of(WORKFLOW), rate=1, burst=1, cost=0, windows=[window], max_wait_seconds=0)
        except RateLimited:
            high = middle - 1
        else:
            await rig.guards.limiter.settle(bucket_of(WORKFLOW), window=name, cost=-middle, age_seconds=0)
            low = middle
    return low


async def test_attempts_of_a_workflow_share_its_budget_and_others_are_left_untouched(guards_rig: GuardsRig) -> None:
    first, second = (account(guards_rig, max_tokens=100, tokens=100) for _ in range(2))
    await first.hold(tokens=60, cost_microdollars=0)
    with pytest.raises(BudgetExceeded, match=r"max_tokens does not cover .* raise budget\.max_tokens"):
        await second.hold(tokens=41, cost_microdollars=0)
    await second.hold(tokens=40, cost_microdollars=0)

    await account(guards_rig, "wf_01K00000000000000000000001", max_tokens=100).hold(tokens=100, cost_microdollars=0)


async def test_what_a_call_did_not_use_is_free_again_and_what_it_used_more_is_gone(guards_rig: GuardsRig) -> None:
    one = account(guards_rig, max_tokens=100, max_cost_microdollars=1000)
    less = await one.hold(tokens=50, cost_microdollars=500)
    await one.settle(less, model="a", usage=used(10, 700))

    assert [await left(guards_rig, TOKENS, 100), await left(guards_rig, COST, 1000)] == [90, 300]
    more = await one.hold(tokens=20, cost_microdollars=100)
    await one.settle(more, model="b", usage=used(45, 0))
    assert [await left(guards_rig, TOKENS, 100), await left(guards_rig, COST, 1000)] == [45, 300]
    assert one.models == {"a": used(10, 700), "b": used(45, 0)}
    assert one.usage == used(10, 700) + used(45, 0)


async def test_a_call_that_is_given_back_has_cost_nothing(guards_rig: GuardsRig) -> None:
    one = account(guards_rig, max_tokens=100, tokens=100)
    for _ in range(5):
        hold = await one.hold(tokens=100, cost_microdollars=0)
        await one.settle(hold, model="a", usage=Usage())
    assert one.usage == Usage()


async def test_who_was_refused_may_hold_what_is_left(guards_rig: GuardsRig) -> None:
    await account(guards_rig, max_tokens=100, tokens=100).hold(tokens=10, cost_microdollars=0)
    one = account(guards_rig, max_tokens=100, tokens=100)
    with pytest.raises(BudgetExceeded):
        await one.hold(tokens=95, cost_microdollars=0)
    await one.hold(tokens=90, cost_microdollars=0)


async def test_a_call_of_which_nothing_is_heard_counts_as_spent(guards_rig: GuardsRig) -> None:
    await account(guards_rig, max_tokens=100).hold(tokens=70, cost_microdollars=0)
    with pytest.raises(BudgetExceeded):
        await account(guards_rig, max_tokens=100).hold(tokens=31, cost_microdollars=0)


@pytest.mark.parametrize(
    ("tokens", "cost", "refusing"), [(30, 101, "cost"), (101, 30, "tokens"), (61, 30, "tokens"), (30, 61, "cost")]
)
async def test_who_is_refused_by_one_limit_has_taken_nothing_of_the_other(
    guards_rig: GuardsRig, tokens: int, cost: int, refusing: str
) -> None:
    await account(guards_rig, max_tokens=100, max_cost_microdollars=100).hold(tokens=40, cost_microdollars=40)
    with pytest.raises(BudgetExceeded, match=refusing):
        await account(guards_rig, max_tokens=100, max_cost_microdollars=100).hold(tokens=tokens, cost_microdollars=cost)
    assert [await left(guards_rig, TOKENS, 100), await left(guards_rig, COST, 100)] == [60, 60]


async def test_what_is_spent_stays_spent_until_the_workflow_is_long_over(guards_rig: GuardsRig) -> None:
    await account(guards_rig, max_tokens=100).hold(tokens=100, cost_microdollars=0)
    await guards_rig.time.pass_by(6 * 86_400)
    with pytest.raises(BudgetExceeded):
        await account(guards_rig, max_tokens=100).hold(tokens=1, cost_microdollars=0)


async def test_what_the_dispatch_said_is_left_bounds_an_attempt_whose_window_was_lost(guards_rig: GuardsRig) -> None:
    one = account(guards_rig, max_tokens=100, tokens=30, max_cost_microdollars=100, cost_microdollars=50)
    with pytest.raises(BudgetExceeded, match="max_cost_usd"):
        await one.hold(tokens=1, cost_microdollars=51)
    hold = await one.hold(tokens=20, cost_microdollars=0)
    with pytest.raises(BudgetExceeded, match="max_tokens"):
        await one.hold(tokens=11, cost_microdollars=0)
    await one.settle(hold, model="a", usage=used(5))
    await one.hold(tokens=25, cost_microdollars=0)
    with pytest.raises(BudgetExceeded):
        await one.hold(tokens=1, cost_microdollars=0)


async def test_of_a_budget_of_nothing_nothing_can_be_held(guards_rig: GuardsRig) -> None:
    with pytest.raises(BudgetExceeded, match="max_tokens"):
        await account(guards_rig, max_tokens=0).hold(tokens=1, cost_microdollars=0)
    free = account(guards_rig, max_cost_microdollars=0, cost_microdollars=0)
    await free.settle(await free.hold(tokens=9, cost_microdollars=0), model="offline", usage=used(9))
    assert free.usage.tokens == 9


async def test_a_limiter_that_forgot_is_told_what_was_spent(guards_rig: GuardsRig) -> None:
    limits = Remaining(max_tokens=100, max_cost_microdollars=1000)
    await seed(guards_rig.guards.limiter, workflow=WORKFLOW, limits=limits, spent=used(70, 5000))
    assert [await left(guards_rig, TOKENS, 100), await left(guards_rig, COST, 1000)] == [30, 0]
    await seed(guards_rig.guards.limiter, workflow="wf_01K00000000000000000000001", limits=Remaining(), spent=used(70, 5000))


@dataclass
class Ledger:
    """What all attempts together hold and have spent, and the most that it ever was."""

    now: int = 0
    most: int = 0
    refused: int = 0

    def add(self, amount: int) -> None:
        self.now += amount
        self.most = max(self.most, self.now)


async def spend(one: WorkflowAccount, ledger: Ledger, roll: Callable[[int, int], int]) -> None:
    for _ in range(6):
        tokens = roll(1, 400)
        try:
            hold: Hold = await one.hold(tokens=tokens, cost_microdollars=3 * tokens)
        except BudgetExceeded:
            ledger.refused += 1
            continue
        ledger.add(tokens)
        await asyncio.sleep(0)
        spent = roll(0, tokens)
        if roll(0, 9) == 0:
            continue  # no answer came
        ledger.add(spent - tokens)  # before the window is told, so that the ledger never says more than it
        await one.settle(hold, model="m", usage=used(spent, 3 * spent))


@pytest.mark.parametrize("seed_of_dice", range(4))
async def test_many_attempts_at_once_never_get_past_the_limit(guards_rig: GuardsRig, seed_of_dice: int) -> None:
    dice, ledger = random.Random(seed_of_dice), Ledger()
    attempts = 20 if guards_rig.abilities.examples is None else 5
    limit = 150 * attempts
    accounts = [account(guards_rig, max_tokens=limit, max_cost_microdollars=3 * limit) for _ in range(attempts)]
    await asyncio.gather(*(spend(one, ledger, dice.randint) for one in accounts))

    assert ledger.most <= limit
    assert ledger.refused > 0
    assert await left(guards_rig, TOKENS, limit) == limit - ledger.now
    assert await left(guards_rig, COST, 3 * limit) == 3 * (limit - ledger.now)
