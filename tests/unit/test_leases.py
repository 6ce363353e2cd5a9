"""Claims on work in progress: renewed while the holder lives, free soon after it died."""

import asyncio
from collections.abc import Sequence

import pytest

from shared.bus import Message, Outcome
from shared.errors import StoreUnavailable
from shared.guards import Idempotency, InFlight, New
from shared.messages import Envelope
from shared.runtime.leases import LEASE_SECONDS
from shared.runtime.pipeline import Pipeline
from tests.support.doubles import SabotagedIdempotency, Saboteur, Stage

LONGEST_SECONDS = 330.0


class Slow:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.calls = asyncio.Event(), asyncio.Event(), 0

    async def __call__(self, envelope: Envelope) -> Sequence[Message]:
        self.calls += 1
        self.begun.set()
        await self.go_on.wait()
        return ()


def pipeline(stage: Stage, work: Slow, guard: Idempotency | None = None) -> Pipeline:
    link = stage.link() if guard is None else stage.link(idempotency=guard)
    return Pipeline(link, "writer", work, longest_seconds=LONGEST_SECONDS, keeps_reply=True)


async def test_work_that_takes_long_stays_claimed_and_is_done_once() -> None:
    stage, work = Stage(), Slow()
    handler = pipeline(stage, work)
    first = asyncio.create_task(handler(stage.dispatched()))
    await work.begun.wait()
    for _ in range(10):
        copy = asyncio.create_task(handler(stage.dispatched()))
        await stage.clock.advance(30)
        assert copy.done(), "it must not wait for as long as the work takes"
        assert await copy is Outcome.RETRY
    work.go_on.set()

    assert await first is Outcome.ACK
    assert await handler(stage.dispatched()) is Outcome.ACK
    assert work.calls == 1


async def test_work_under_five_seconds_costs_no_renewal() -> None:
    stage, work, saboteur = Stage(), Slow(), Saboteur()
    handler = pipeline(stage, work, SabotagedIdempotency(stage.guards.idempotency, saboteur))
    for _ in range(5):
        running = asyncio.create_task(handler(stage.dispatched(attempt=saboteur.journal.count("claim") + 1)))
        await stage.clock.advance(4.9)
        work.go_on.set()
        assert await running is Outcome.ACK
        work.go_on.clear()
    await stage.clock.advance(60)

    assert saboteur.journal == ["claim", "mark"] * 5
    assert stage.clock.sleepers == 0, "nobody keeps claims that are not there"


@pytest.mark.parametrize("died_after", [0.5, 9.5, 10.5, 25, 100])
async def test_a_claim_is_free_soon_after_its_holder_died(died_after: float) -> None:
    stage, work, saboteur = Stage(), Slow(), Saboteur()
    first = asyncio.create_task(pipeline(stage, work, SabotagedIdempotency(stage.guards.idempotency, saboteur))(stage.dispatched()))
    await work.begun.wait()
    await stage.clock.advance(died_after)
    saboteur.dead = True
    await stage.clock.advance(LEASE_SECONDS)

    other = Slow()
    other.go_on.set()
    assert await pipeline(stage, other)(stage.dispatched()) is Outcome.ACK
    assert other.calls == 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_no_claim_is_held_for_longer_than_a_delivery_may_take() -> None:
    stage, work = Stage(), Slow()
    first = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await work.begun.wait()
    await stage.clock.advance(LONGEST_SECONDS - 1)
    other = Slow()
    copy = asyncio.create_task(pipeline(stage, other)(stage.dispatched()))
    await stage.clock.advance(0.9)
    assert other.calls == 0
    other.go_on.set()
    await stage.clock.advance(0.2)

    assert await copy is Outcome.ACK
    work.go_on.set()
    assert await first is Outcome.ACK


async def test_a_renewal_that_fails_is_tried_again_before_the_lease_ends(caplog: pytest.LogCaptureFixture) -> None:
    stage, work = Stage(), Slow()
    saboteur = Saboteur("renew", error=StoreUnavailable("the guards are away"))
    handler = pipeline(stage, work, SabotagedIdempotency(stage.guards.idempotency, saboteur))
    first = asyncio.create_task(handler(stage.dispatched()))
    await work.begun.wait()
    await stage.clock.advance(45)

    copy = asyncio.create_task(handler(stage.dispatched()))
    await stage.clock.advance(LEASE_SECONDS)
    assert await copy is Outcome.RETRY
    assert [record.message.split(":")[0] for record in caplog.records if "renewed" in record.message] == ["the claim of writer"]
    work.go_on.set()
    assert await first is Outcome.ACK


async def test_a_claim_that_was_lost_is_told_once_and_left_to_its_new_holder(caplog: pytest.LogCaptureFixture) -> None:
    stage, work = Stage(), Slow()
    guard = stage.guards.idempotency
    first = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await work.begun.wait()
    [key] = list(stage.guards.idempotency._records._records)  # type: ignore[attr-defined]
    claim = await guard.claim(key, lease_seconds=1, ttl_seconds=1)
    assert isinstance(claim, InFlight)
    # As after a pause of the whole process: its lease ran out, and another instance began.
    stage.clock._elapsed += LEASE_SECONDS + 1
    theirs = await guard.claim(key, lease_seconds=300, ttl_seconds=300)
    assert isinstance(theirs, New)
    await stage.clock.advance(60)

    assert len([record for record in caplog.records if "was lost" in record.message]) == 1
    work.go_on.set()
    await first
    assert await guard.complete(key, token=theirs.token, result=None)
