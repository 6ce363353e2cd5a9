"""Models of several instances that share their limits and breakers in a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest

from shared.ai import Model, Request, ToolCall, Turn
from shared.ai.cached import CachedModel
from shared.ai.catalog import Limit
from shared.ai.guarded import BreakerModel
from shared.ai.limited import LimitedModel
from shared.ai.retrying import RetryingModel
from shared.clock import Clock, ManualClock
from shared.errors import CircuitOpen, ModelUnavailable, RateLimited
from shared.guards import Guards, open_guards
from shared.messages import Usage
from tests.support.doubles import ScriptedModel, SkippingClock
from tests.support.servers import RedisServer, redis_server

REQUEST = Request(prompt="x" * 400, max_tokens=900, timeout_seconds=100)
INSTANCES = 3


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as running:
        yield running


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that a busy machine lets wait is not down: then each instance would go on with its share."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):
        monkeypatch.setattr(f"shared.redis.connections.{name}", 60.0)


@pytest.fixture
async def fleet(server: RedisServer) -> AsyncIterator[list[Guards]]:
    """The guards of each instance."""
    server.execute("FLUSHALL")
    opened = [open_guards("redis", ManualClock(), redis_url=server.url, instances=INSTANCES) for _ in range(INSTANCES)]
    yield opened
    for guards in opened:
        await guards.close()


class TellingClock(ManualClock):
    """Tells when somebody waits for it to move."""

    def __init__(self) -> None:
        super().__init__()
        self.asleep = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.asleep.set()
        await super().sleep(seconds)


def limited(guards: Guards, limit: Limit, inner: Model, clock: Clock) -> LimitedModel:
    return LimitedModel(inner, guards.limiter, limit, clock, name="gemini-over-redis")


async def served(models: list[LimitedModel], calls: int) -> int:
    """How many of so many calls at once come through."""
    outcomes = await asyncio.gather(*(models[n % len(models)].generate(REQUEST) for n in range(calls)), return_exceptions=True)
    assert {type(outcome).__name__ for outcome in outcomes} <= {"Reply", "RateLimited", "ShareUsed"}
    return sum(not isinstance(outcome, RateLimited) for outcome in outcomes)


async def test_a_days_requests_are_shared(fleet: list[Guards]) -> None:
    limit = Limit(qps=1000, burst=1000, per_day=20)
    models = [limited(guards, limit, ScriptedModel("answer"), ManualClock()) for guards in fleet]
    assert await served(models, 60) == 20


async def test_a_minutes_tokens_are_shared_and_settled(fleet: list[Guards]) -> None:
    # Each call uses 15 of the 1,000 tokens that were guessed.
    limit = Limit(qps=1000, burst=1000, tokens_per_minute=1100)
    models = [limited(guards, limit, ScriptedModel("answer"), ManualClock()) for guards in fleet]
    assert [await served([models[n % INSTANCES]], 1) for n in range(8)] == [1, 1, 1, 1, 1, 1, 1, 0]


async def test_a_429_of_one_instance_holds_the_others_back(fleet: list[Guards]) -> None:
    limit = Limit(qps=1000, burst=1000)
    one = limited(fleet[0], limit, ScriptedModel(RateLimited("full", retry_after_seconds=3000)), ManualClock())
    other = limited(fleet[1], limit, ScriptedModel("answer"), ManualClock())
    assert (await other.generate(REQUEST)).output == "answer"
    with pytest.raises(RateLimited, match="full"):
        await one.generate(REQUEST)

    with pytest.raises(RateLimited, match="rate limit model:gemini-over-redis") as refused:
        await other.generate(REQUEST)
    assert refused.value.retry_after_seconds == pytest.approx(3000, abs=60)


async def test_a_wait_that_is_cancelled_gives_back_its_request(fleet: list[Guards]) -> None:
    clock, limit = TellingClock(), Limit(qps=1 / 15, burst=1, per_day=2)
    model = limited(fleet[0], limit, ScriptedModel("answer"), clock)
    await model.generate(REQUEST)
    waiting = asyncio.create_task(model.generate(REQUEST))
    async with asyncio.timeout(10):
        await clock.asleep.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    # Of the day there is one request left.
    assert await served([limited(fleet[1], limit, ScriptedModel("answer"), SkippingClock())], 5) == 1


async def test_a_breaker_that_one_instance_opened_is_open_for_the_others(fleet: list[Guards]) -> None:
    def behind_breaker(guards: Guards, inner: Model) -> BreakerModel:
        return BreakerModel(inner, guards.breaker, ManualClock(), name="gemini-over-redis")

    one = behind_breaker(fleet[0], ScriptedModel(ModelUnavailable("gone")))
    other = behind_breaker(fleet[1], ScriptedModel("answer"))
    for _ in range(5):
        with pytest.raises(ModelUnavailable):
            await one.generate(REQUEST)
    with pytest.raises(CircuitOpen):
        await other.generate(REQUEST)


async def test_a_limit_that_others_fill_is_not_waited_for_again_by_the_retries(fleet: list[Guards]) -> None:
    # The next place is free in 50 s; a call waits for 30 s at most.
    limit = Limit(qps=1 / 50, burst=1)
    await limited(fleet[0], limit, ScriptedModel("answer"), ManualClock()).generate(REQUEST)
    clock, inner = TellingClock(), ScriptedModel("answer")
    with pytest.raises(RateLimited) as refused:
        await RetryingModel(limited(fleet[1], limit, inner, clock), clock).generate(REQUEST)
    assert refused.value.retry_after_seconds == pytest.approx(50, abs=20)
    assert (inner.requests, clock.asleep.is_set()) == ([], False)


async def test_what_one_instance_was_answered_the_others_need_not_ask(fleet: list[Guards]) -> None:
    asked, not_asked = ScriptedModel({"title": "ä"}), ScriptedModel("other")
    call = ToolCall("look_up", {"word": "a"}, signature=b"\xff")
    request = replace(REQUEST, turns=(Turn("m", (call,), ({"found": 1},)),))
    assert (await CachedModel(asked, fleet[0].cache, models=["m"]).generate(request)).output == {"title": "ä"}
    hit = await CachedModel(not_asked, fleet[1].cache, models=["m"]).generate(request)
    assert (hit.output, hit.usage, not_asked.requests) == ({"title": "ä"}, Usage(), [])


async def test_without_the_store_each_instance_goes_on_with_its_share() -> None:
    limit = Limit(qps=1000, burst=1000, per_day=20, tokens_per_minute=100_000)
    with redis_server() as server:
        guards = open_guards("redis", ManualClock(), redis_url=server.url, instances=10)
        model = limited(guards, limit, ScriptedModel("answer"), ManualClock())
        assert await served([model], 1) == 1
        server.kill()
        assert await served([model], 20) == 2
        await guards.close()
