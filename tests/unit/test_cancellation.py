"""Attempts that end with their workflow: before a call, in the middle of one, and not when the workflow was resumed since."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shared.ai import Reply, Request
from shared.clock import ManualClock
from shared.errors import Cancelled, StoreUnavailable
from shared.guards import Cache, open_guards
from shared.messages import StepCompleted, StepFailed, Usage
from shared.runtime import Result, Task, Team
from shared.runtime.cancellation import Attempt, Cancellations
from shared.telemetry import metrics
from tests.support.desk import Desk
from tests.support.doubles import TTL_SECONDS, WORKFLOW

OTHER = "wf_01K00000000000000000000001"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class CountingCache:
    """A cache that counts its readers, or fails them."""

    def __init__(self, clock: ManualClock) -> None:
        self.asked: list[str] = []
        self.error: Exception | None = None
        self._inner: Cache = open_guards("memory", clock).cache

    async def get(self, key: str) -> bytes | None:
        self.asked.append(key)
        if self.error is not None:
            raise self.error
        return await self._inner.get(key)

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if self.error is not None:
            raise self.error
        await self._inner.put(key, value, ttl_seconds=ttl_seconds)


@pytest.fixture
def cache(clock: ManualClock) -> CountingCache:
    return CountingCache(clock)


@pytest.fixture
def cancellations(cache: CountingCache, clock: ManualClock) -> Cancellations:
    return Cancellations(cache, clock, ttl_seconds=TTL_SECONDS)


class Work:
    """Attempts that would go on for ever."""

    def __init__(self, cancellations: Cancellations) -> None:
        self._cancellations = cancellations
        self.tasks: list[asyncio.Task[str]] = []

    def begin(self, workflow: str = WORKFLOW, *, resumed: int = 0) -> asyncio.Task[str]:
        self.tasks.append(asyncio.create_task(self._attempt(workflow, resumed)))
        return self.tasks[-1]

    async def _attempt(self, workflow: str, resumed: int) -> str:
        attempt: Attempt
        try:
            async with asyncio.timeout(1000) as limit:
                with self._cancellations.watching(workflow, resumed=resumed, limit=limit) as attempt:
                    await asyncio.Event().wait()
        except TimeoutError:
            return "stopped" if attempt.stopped else "late"
        return "ended"


@asynccontextmanager
async def working(cancellations: Cancellations) -> AsyncIterator[Work]:
    work = Work(cancellations)
    try:
        yield work
    finally:
        for task in work.tasks:
            task.cancel()
        await asyncio.gather(*work.tasks, return_exceptions=True)


@pytest.mark.parametrize("resumed", [0, 1, 2])
async def test_a_check_stops_what_was_dispatched_before_the_end(cancellations: Cancellations, resumed: int) -> None:
    await cancellations.check(WORKFLOW, resumed=0)
    await cancellations.mark(WORKFLOW, resumed=1)
    if resumed > 1:
        await cancellations.check(WORKFLOW, resumed=resumed)
    else:
        with pytest.raises(Cancelled):
            await cancellations.check(WORKFLOW, resumed=resumed)
    await cancellations.check(OTHER, resumed=0)


async def test_attempts_in_progress_are_stopped_within_a_second_and_others_go_on(
    cancellations: Cancellations, clock: ManualClock
) -> None:
    async with working(cancellations) as work:
        first, again = work.begin(), work.begin()
        resumed, other = work.begin(resumed=1), work.begin(OTHER)
        await clock.advance(0.6)
        young = work.begin()
        await clock.advance(0.1)
        await cancellations.mark(WORKFLOW, resumed=0)
        await clock.advance(0.95)

        assert [task.done() for task in work.tasks] == [True, True, False, False, True]
        assert {first.result(), again.result(), young.result()} == {"stopped"}
        assert not resumed.done()
        assert not other.done()


@pytest.mark.parametrize("begun", [0.01, 0.2, 0.24, 0.26, 0.49])
async def test_wherever_between_two_looks_an_attempt_begins_it_is_stopped_in_time(
    cancellations: Cancellations, clock: ManualClock, begun: float
) -> None:
    async with working(cancellations) as work:
        work.begin(OTHER)
        await clock.advance(begun)
        attempt = work.begin()
        await clock.advance(0)
        await cancellations.mark(WORKFLOW, resumed=0)
        await clock.advance(0.8)
        assert attempt.done()


async def test_many_attempts_of_a_workflow_cost_one_look_and_short_ones_none(
    cancellations: Cancellations, cache: CountingCache, clock: ManualClock
) -> None:
    async with working(cancellations) as work:
        for _ in range(50):
            work.begin()
        work.begin(OTHER)
        await clock.advance(0.45)
        short = work.begin("wf_01K00000000000000000000002")
        await clock.advance(0.1)
        assert sorted(cache.asked) == [f"ended:{WORKFLOW}", f"ended:{OTHER}"]
        short.cancel()
        await clock.advance(0.5)
        assert len(cache.asked) == 4
    await clock.advance(5)
    assert len(cache.asked) == 4


async def test_a_store_that_fails_stops_nobody_and_the_next_look_finds_the_mark(
    cancellations: Cancellations, cache: CountingCache, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(cancellations) as work:
        attempt = work.begin()
        await clock.advance(0)
        await cancellations.mark(WORKFLOW, resumed=0)
        cache.error = StoreUnavailable("gone")
        await clock.advance(0.6)
        assert not attempt.done()
        assert "nobody can tell" in caplog.text
        cache.error = None
        await clock.advance(0.5)
        assert attempt.done()


async def test_a_mark_that_cannot_be_made_is_logged_and_no_more(
    cancellations: Cancellations, cache: CountingCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.error = StoreUnavailable("gone")
    await cancellations.mark(WORKFLOW, resumed=0)
    assert "is not marked" in caplog.text


class Hanging:
    """A model that never answers its second call."""

    def __init__(self) -> None:
        self.asked = 0
        self.hanging = asyncio.Event()
        self.cut_off = False

    async def generate(self, request: Request) -> Reply:
        self.asked += 1
        if self.asked > 1:
            self.hanging.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cut_off = True
        return Reply("text", "scripted", Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7))


async def twice(task: Task, team: Team) -> Result:
    await team.generate()
    return Result(await team.generate())


async def test_an_attempt_that_is_stopped_tells_what_it_has_spent_and_counts_as_neither(caplog: pytest.LogCaptureFixture) -> None:
    model = Hanging()
    desk = Desk(twice, model=model)
    labels = {"task": "writer", "error": "Cancelled"}
    before = metrics.value("task.success", task="writer"), metrics.value("task.failure", **labels)
    with caplog.at_level(logging.INFO):
        answer = asyncio.create_task(desk.reply(StepFailed))
        await asyncio.wait_for(model.hanging.wait(), 10)
        await desk.cancellations.mark(WORKFLOW, resumed=0)
        await desk.stage.clock.advance(0.5)
        reply = await asyncio.wait_for(answer, 10)
    assert model.cut_off
    assert (reply.error.type, reply.permanent, reply.retry_after_seconds) == ("Cancelled", True, None)
    assert reply.usage == Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7)
    assert reply.models == {"scripted": reply.usage}
    assert (metrics.value("task.success", task="writer"), metrics.value("task.failure", **labels)) == before
    (record,) = [one for one in caplog.records if getattr(one, "status", None)]
    assert (record.levelname, record.__dict__["status"], record.__dict__["step"]) == ("INFO", "cancelled", "draft")


async def test_no_call_is_made_for_a_workflow_that_has_ended() -> None:
    model = Hanging()
    desk = Desk(model=model)
    await desk.cancellations.mark(WORKFLOW, resumed=0)
    assert (await desk.reply(StepFailed)).error.type == "Cancelled"
    assert model.asked == 0


async def test_a_workflow_that_was_resumed_since_goes_on() -> None:
    model = Hanging()
    desk = Desk(model=model)
    await desk.cancellations.mark(WORKFLOW, resumed=1)
    assert (await desk.reply(StepFailed, resumed=1)).error.type == "Cancelled"
    assert (await desk.reply(StepCompleted, attempt=2, resumed=2)).output == "text"


async def test_an_agent_that_makes_another_error_of_it_is_cancelled_all_the_same() -> None:
    async def stubborn(task: Task, team: Team) -> Result:
        try:
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    desk = Desk(stubborn)
    answer = asyncio.create_task(desk.reply(StepFailed))
    await desk.stage.clock.advance(0.1)
    await desk.cancellations.mark(WORKFLOW, resumed=0)
    await desk.stage.clock.advance(0.5)
    assert (await asyncio.wait_for(answer, 10)).error.type == "Cancelled"


async def test_a_process_that_ends_is_not_taken_for_a_workflow_that_ends() -> None:
    model = Hanging()
    desk = Desk(twice, model=model)
    answer = asyncio.create_task(desk.messages())
    await asyncio.wait_for(model.hanging.wait(), 10)
    answer.cancel()
    await desk.cancellations.mark(WORKFLOW, resumed=0)
    with pytest.raises(asyncio.CancelledError):
        await answer


async def test_a_provider_that_hangs_never_holds_a_step_beyond_its_deadline() -> None:
    model = Hanging()
    reply = await asyncio.wait_for(Desk(twice, model=model).reply(StepFailed, timeout_seconds=0.05), 10)
    assert model.cut_off
    assert "longer than its 0.05 s" in reply.error.message
