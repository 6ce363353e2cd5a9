"""What the memory guards promise beyond all guards: see tests/conformance for the rest."""

import pytest

from shared.clock import ManualClock
from shared.errors import CircuitOpen, ConfigurationError
from shared.guards import New, Window, open_guards
from shared.guards.memory import MemoryBreaker, MemoryCache, MemoryIdempotency, MemoryRateLimiter
from shared.guards.policy import BreakerRules


async def test_records_of_claims_are_forgotten_bit_by_bit() -> None:
    clock = ManualClock()
    idempotency = MemoryIdempotency(clock)
    for round_number in range(20):
        for n in range(100):
            await idempotency.claim(f"{round_number}/{n}", lease_seconds=5, ttl_seconds=10)
        await clock.advance(10)

    assert len(idempotency) <= 200


async def test_a_record_that_was_claimed_anew_outlives_its_first_expiry() -> None:
    clock = ManualClock()
    idempotency = MemoryIdempotency(clock)
    await idempotency.claim("k", lease_seconds=5, ttl_seconds=10)
    await clock.advance(6)
    again = await idempotency.claim("k", lease_seconds=5, ttl_seconds=10)
    assert isinstance(again, New)
    await clock.advance(4)
    await idempotency.claim("other", lease_seconds=5, ttl_seconds=1)

    assert await idempotency.complete("k", token=again.token, result=b"r")
    await clock.advance(6)
    for n in range(3):
        await idempotency.claim(f"more-{n}", lease_seconds=1, ttl_seconds=1)
    assert len(idempotency) == 3


async def test_claiming_and_releasing_one_key_again_and_again_stores_one_record() -> None:
    clock = ManualClock()
    idempotency = MemoryIdempotency(clock)
    for _ in range(100):
        answer = await idempotency.claim("k", lease_seconds=5, ttl_seconds=86_400)
        assert isinstance(answer, New)
        await idempotency.release("k", token=answer.token)

    assert len(idempotency) == 1


async def test_buckets_that_are_full_again_are_forgotten() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(clock)
    for minute in range(20):
        for n in range(100):
            await limiter.reserve(f"ip-{minute}-{n}", rate=100 / 60, burst=100)
        await limiter.penalise(f"penalised-{minute}", 30)
        await clock.advance(60)

    assert len(limiter) <= 202


async def test_windows_that_are_long_over_are_forgotten() -> None:
    clock = ManualClock()
    limiter = MemoryRateLimiter(clock)
    for n in range(100):
        await limiter.reserve(f"model-{n}", rate=1, burst=1, windows=[Window("minute", 10, 1, 60, 60)])
        await limiter.settle(f"model-{n}", window="minute", cost=-1, age_seconds=0)
    await clock.advance(2 * 3600)
    for n in range(100):
        await limiter.reserve(f"other-{n}", rate=1, burst=1)

    assert len(limiter) == 100


async def test_a_breakers_rules_can_be_chosen() -> None:
    clock = ManualClock()
    breaker = MemoryBreaker(clock, BreakerRules(failures_to_open=1, pause_seconds=2, successes_to_close=1, probe_seconds=3))
    await breaker.before("m")
    await breaker.after("m", success=False)
    assert await breaker.state("m") == "OPEN"
    await clock.advance(2)
    await breaker.before("m")
    await clock.advance(1)
    with pytest.raises(CircuitOpen) as refused:
        await breaker.before("m")
    assert refused.value.retry_after_seconds == 2
    await breaker.after("m", success=True)

    assert await breaker.state("m") == "CLOSED"


async def test_the_cache_evicts_what_was_least_recently_used() -> None:
    cache = MemoryCache(ManualClock(), max_entries=3)
    for key in ("a", "b", "c"):
        await cache.put(key, b"v", ttl_seconds=10)
    await cache.get("a")
    await cache.put("d", b"v", ttl_seconds=10)

    assert [key for key in "abcd" if await cache.get(key) is not None] == ["a", "c", "d"]
    assert len(cache) == 3


async def test_the_cache_stays_within_its_bytes() -> None:
    cache = MemoryCache(ManualClock(), max_bytes=100)
    for key in "abc":
        await cache.put(key, b"v" * 39, ttl_seconds=10)
    assert [key for key in "abc" if await cache.get(key) is not None] == ["b", "c"]

    await cache.put("b", b"small", ttl_seconds=10)
    await cache.put("d", b"v" * 39, ttl_seconds=10)

    assert [key for key in "bcd" if await cache.get(key) is not None] == ["b", "c", "d"]


async def test_a_value_larger_than_the_cache_is_not_kept_and_neither_is_its_predecessor() -> None:
    cache = MemoryCache(ManualClock(), max_bytes=10)
    await cache.put("k", b"old", ttl_seconds=10)
    await cache.put("other", b"v", ttl_seconds=10)
    await cache.put("k", b"v" * 10, ttl_seconds=10)

    assert await cache.get("k") is None
    assert await cache.get("other") == b"v"


async def test_an_expired_value_gives_its_room_back_when_asked_for() -> None:
    clock = ManualClock()
    cache = MemoryCache(clock)
    await cache.put("k", b"v", ttl_seconds=10)
    await clock.advance(10)
    await cache.get("k")

    assert len(cache) == 0


async def test_guards_of_one_process_are_not_those_of_another() -> None:
    clock = ManualClock()
    first, second = open_guards("memory", clock), open_guards("memory", clock)
    await first.cache.put("k", b"v", ttl_seconds=10)

    assert await second.cache.get("k") is None


@pytest.mark.parametrize("backend", ["dynamo", ""])
def test_unknown_guards_are_a_configuration_error(backend: str) -> None:
    with pytest.raises(ConfigurationError, match="GUARDS_BACKEND"):
        open_guards(backend, ManualClock())
