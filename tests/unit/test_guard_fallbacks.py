"""Guards whose store goes down and comes back."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.ai.budget import WorkflowAccount
from shared.clock import ManualClock
from shared.errors import CircuitOpen, ConfigurationError, RateLimited, ShareUsed, StoreUnavailable
from shared.guards import Guards, New, Window, open_guards
from shared.guards.fallback import with_fallbacks
from shared.messages import Remaining
from shared.telemetry import metrics

ERRORS = [StoreUnavailable("the store is gone"), ConfigurationError("the store refuses the password")]


class Store:
    """Memory guards, reached over a line that can be cut."""

    def __init__(self, clock: ManualClock) -> None:
        self.error: Exception | None = None
        self.asked = 0
        self.closed = False
        inner = open_guards("memory", clock)
        self.guards = Guards(
            idempotency=self._over_the_line(inner.idempotency),
            limiter=self._over_the_line(inner.limiter),
            breaker=self._over_the_line(inner.breaker),
            cache=self._over_the_line(inner.cache),
            closing=self.close,
        )

    def _over_the_line(self, guard: object) -> Any:
        return Line(self, guard)

    async def close(self) -> None:
        self.closed = True


class Line:
    def __init__(self, store: Store, guard: object) -> None:
        self._store = store
        self._guard = guard

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any, **options: Any) -> Any:
            self._store.asked += 1
            if self._store.error is not None:
                raise self._store.error
            return await getattr(self._guard, name)(*arguments, **options)

        return call


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock)


@pytest.fixture
def guards(store: Store, clock: ManualClock) -> Guards:
    return with_fallbacks(store.guards, clock, instances=10)


async def claim(guards: Guards) -> Any:
    return await guards.idempotency.claim("k", lease_seconds=10, ttl_seconds=100)


async def reserve(guards: Guards, *, max_wait: float | None = None) -> float:
    return await guards.limiter.reserve("b", rate=10, burst=20, max_wait_seconds=max_wait)


@pytest.mark.parametrize("error", ERRORS)
async def test_idempotency_fails_closed_and_always_as_a_transient_error(store: Store, guards: Guards, error: Exception) -> None:
    first = await claim(guards)
    assert isinstance(first, New)
    store.error = error
    for call in (
        claim(guards),
        guards.idempotency.complete("k", token=first.token, result=b"r"),
        guards.idempotency.release("k", token=first.token),
    ):
        with pytest.raises(StoreUnavailable, match=str(error)):
            await call
    assert store.asked == 4

    store.error = None
    assert await guards.idempotency.complete("k", token=first.token, result=b"r")


@pytest.mark.parametrize("error", ERRORS)
async def test_the_limiter_keeps_to_its_share(store: Store, guards: Guards, clock: ManualClock, error: Exception) -> None:
    store.error = error

    assert [await reserve(guards) for _ in range(4)] == [0, 0, pytest.approx(1), pytest.approx(2)]
    with pytest.raises(ShareUsed):
        await reserve(guards, max_wait=2)
    await clock.advance(10)
    assert await reserve(guards, max_wait=0) == 0


async def test_the_limiter_returns_to_the_whole_limit_when_the_store_answers(
    store: Store, guards: Guards, clock: ManualClock
) -> None:
    store.error = ERRORS[0]
    await reserve(guards)
    store.error = None
    await clock.advance(1)

    assert [await reserve(guards) for _ in range(21)] == [0] * 20 + [pytest.approx(0.1)]


async def test_a_penalty_outlives_the_store_that_knew_it(store: Store, guards: Guards) -> None:
    await guards.limiter.penalise("b", 30)
    store.error = ERRORS[0]
    assert await reserve(guards) == 30
    await guards.limiter.penalise("other", 5)

    assert await guards.limiter.reserve("other", rate=10, burst=20) == 5


def minute(cost: float) -> list[Window]:
    return [Window("minute", 1000, cost, 60, 60)]


async def tokens(guards: Guards, cost: float) -> float:
    return await guards.limiter.reserve("b", rate=1000, burst=1000, windows=minute(cost))


async def test_the_limiter_keeps_to_its_share_of_a_window(store: Store, guards: Guards) -> None:
    store.error = ERRORS[0]

    assert [await tokens(guards, cost) for cost in (60, 40, 1)] == [0, 0, 60]


async def test_a_cost_above_the_share_of_a_window_has_a_window_to_itself(store: Store, guards: Guards) -> None:
    store.error = ERRORS[0]

    assert [await tokens(guards, cost) for cost in (1, 900, 1, 100)] == [0, 60, 120, 180]
    with pytest.raises(ConfigurationError, match="never"):
        await tokens(guards, 1001)


async def test_a_correction_counts_where_reservations_are_counted(store: Store, guards: Guards, clock: ManualClock) -> None:
    await tokens(guards, 1000)
    await guards.limiter.settle("b", window="minute", cost=-100, age_seconds=0)
    store.error = ERRORS[0]
    await tokens(guards, 100)
    await guards.limiter.settle("b", window="minute", cost=-100, age_seconds=0)
    assert await tokens(guards, 100) == 0
    store.error = None
    await clock.advance(1)

    with pytest.raises(RateLimited):
        await guards.limiter.reserve("b", rate=1000, burst=1000, windows=minute(101), max_wait_seconds=0)
    await guards.limiter.settle("b", window="minute", cost=-50, age_seconds=1)
    store.error = ERRORS[0]
    assert await tokens(guards, 1) == 59, "the share is used up, whatever was corrected in the store"
    store.error = None
    await clock.advance(1)
    assert await tokens(guards, 150) == 0


async def test_a_limit_that_cannot_be_kept_says_nothing_of_the_store(
    store: Store, guards: Guards, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigurationError, match="rate"):
        await guards.limiter.reserve("b", rate=0, burst=1)

    assert (store.asked, caplog.records) == (0, [])


@pytest.mark.parametrize("error", ERRORS)
async def test_the_breaker_and_the_cache_fail_open(store: Store, guards: Guards, clock: ManualClock, error: Exception) -> None:
    for _ in range(5):
        await guards.breaker.after("m", success=False)
    await guards.cache.put("k", b"v", ttl_seconds=100)
    store.error = error

    await guards.breaker.before("m")
    await guards.breaker.after("m", success=True)
    assert await guards.breaker.state("m") == "CLOSED"
    await guards.cache.put("k", b"new", ttl_seconds=100)
    assert await guards.cache.get("k") is None

    store.error = None
    await clock.advance(1)
    with pytest.raises(CircuitOpen):
        await guards.breaker.before("m")
    assert await guards.breaker.state("m") == "OPEN"
    assert await guards.cache.get("k") == b"v"


async def test_a_store_that_is_down_is_asked_by_one_caller_a_second(store: Store, guards: Guards, clock: ManualClock) -> None:
    store.error = ERRORS[0]
    for _ in range(10):
        await guards.cache.get("k")
    assert store.asked == 1

    await clock.advance(1)
    await asyncio.gather(*(guards.cache.get("k") for _ in range(10)))

    assert store.asked == 2


async def test_each_change_is_logged_once_and_each_outage_counted_once(
    store: Store, guards: Guards, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    counted = metrics.value("guards.outage", guard="cache")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            store.error = ERRORS[0]
            for _ in range(5):
                await guards.cache.get("k")
                await clock.advance(1)
            store.error = None
            for _ in range(5):
                await guards.cache.get("k")
                await clock.advance(1)

    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2
    assert [record.getMessage() for record in caplog.records[:2]] == [
        "the guards' store is down, so the cache answers nothing: the store is gone",
        "the guards' store answers again: the cache works as usual",
    ]
    assert metrics.value("guards.outage", guard="cache") == counted + 2


async def test_a_refusal_is_an_answer(store: Store, guards: Guards, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    await guards.limiter.reserve("b", rate=1, burst=1, cost=100)
    store.error = ERRORS[0]
    await reserve(guards)
    store.error = None
    await clock.advance(1)
    with caplog.at_level(logging.INFO), pytest.raises(RateLimited):
        await guards.limiter.reserve("b", rate=1, burst=1, max_wait_seconds=0)

    assert "answers again" in caplog.text


async def test_an_unknown_error_passes(store: Store, guards: Guards) -> None:
    store.error = KeyError("a bug")
    with pytest.raises(KeyError):
        await guards.cache.get("k")


async def test_closing_the_guards_closes_the_store(store: Store, guards: Guards) -> None:
    await guards.close()
    await open_guards("memory", ManualClock()).close()

    assert store.closed


async def test_a_workflow_is_not_failed_for_good_by_what_only_the_share_of_its_budget_refuses(
    store: Store, guards: Guards, clock: ManualClock
) -> None:
    account = WorkflowAccount(guards.limiter, clock, workflow="w", remaining=Remaining(max_tokens=1000, tokens=1000))
    store.error = ERRORS[0]
    await account.hold(tokens=100, cost_microdollars=0)
    with pytest.raises(StoreUnavailable, match="share of the workflow's budget"):
        await account.hold(tokens=1, cost_microdollars=0)
    store.error = None
    await clock.advance(1)
    await account.hold(tokens=900, cost_microdollars=0)
