"""Why a delivery failed, for whom a redriven message is, and what belongs together."""

import asyncio
from typing import Any

import pytest

from shared.bus import Delivery, Outcome
from shared.clock import ManualClock
from shared.errors import BusUnavailable, ConfigurationError, RateLimited, StoreUnavailable
from shared.guards import open_guards
from shared.runtime import letters
from shared.runtime.letters import (
    DEAD_LETTERS,
    EXHAUSTED,
    NOTHING_HEARD,
    addressed,
    cause_of,
    note_failure,
    noted_failure,
    redrive_attributes,
)


@pytest.mark.parametrize(
    ("reason", "error", "cause"),
    [
        ("rejected: signature", None, "rejected:signature"),
        ("rejected: key", "StoreUnavailable", "rejected:key"),
        (NOTHING_HEARD, None, "timeout"),
        (EXHAUSTED, None, "unknown"),
        (EXHAUSTED, "StoreUnavailable", "store"),
        (EXHAUSTED, "BusUnavailable", "bus"),
        (EXHAUSTED, "HostUnavailable", "host"),
        (EXHAUSTED, "ModelUnavailable", "model"),
        (EXHAUSTED, "CircuitOpen", "model"),
        (EXHAUSTED, "RateLimited", "quota"),
        (EXHAUSTED, "ConfigurationError", "configuration"),
        (EXHAUSTED, "ZeroDivisionError", "unknown:ZeroDivisionError"),
    ],
)
def test_letters_of_one_cause_are_one_group(reason: str, error: str | None, cause: str) -> None:
    assert cause_of(reason, None if error is None else {"type": error, "message": "", "at": ""}) == cause


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreUnavailable("the database is away"), "the database is away"),
        (ConfigurationError("x" * 9999), "x" * 500),
        (RateLimited("a\0b"), "ab"),
        (ValueError("a secret"), ""),
    ],
)
async def test_the_last_failure_is_noted_with_the_message_of_our_own_errors_only(error: Exception, message: str) -> None:
    clock = ManualClock()
    cache = open_guards("memory", clock).cache
    await note_failure(cache, "writer:x#1", BusUnavailable("before"), now=clock.now(), ttl_seconds=60)
    await note_failure(cache, "writer:x#1", error, now=clock.now(), ttl_seconds=60)
    note = await noted_failure(cache, "writer:x#1")
    assert note == {"type": type(error).__name__, "message": message, "at": clock.now().isoformat()}
    assert await noted_failure(cache, "critic:x#1") is None
    await clock.advance(61)
    assert await noted_failure(cache, "writer:x#1") is None


class BadCache:
    """Fails, hangs or holds what nobody wrote."""

    def __init__(self, value: bytes | None = None, *, hangs: bool = False) -> None:
        self._value = value
        self._hangs = hangs

    async def get(self, key: str) -> bytes | None:
        return await self._answer()

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        await self._answer()

    async def _answer(self) -> bytes:
        if self._hangs:
            await asyncio.Event().wait()
        if self._value is None:
            raise StoreUnavailable("away")
        return self._value


@pytest.mark.parametrize("cache", [BadCache(), BadCache(b"no note"), BadCache(b"[]"), BadCache(b"{}"), BadCache(hangs=True)])
async def test_a_cache_that_does_not_work_changes_nothing(cache: BadCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "_NOTING_SECONDS", 0.01)
    await note_failure(cache, "writer:x#1", ValueError(), now=ManualClock().now(), ttl_seconds=60)
    assert await noted_failure(cache, "writer:x#1") is None


@pytest.mark.parametrize(
    ("subscription", "topic", "meant", "handled"),
    [
        ("events.a", "events", None, True),
        ("events.a", "events", "events.a", True),
        ("events.b", "events", "events.a", False),
        ("dead-letters.dead_letter", DEAD_LETTERS, "events.a", True),
    ],
)
async def test_a_redriven_message_is_for_one_subscription_and_dropped_by_the_others(
    subscription: str, topic: str, meant: str | None, handled: bool
) -> None:
    seen: list[Delivery] = []

    async def handler(delivery: Delivery) -> Outcome:
        seen.append(delivery)
        return Outcome.RETRY

    attributes: dict[str, Any] = {} if meant is None else redrive_attributes(meant, "first id", 1)
    outcome = await addressed(handler)(Delivery(subscription, topic, b"", attributes, "bus id", 1))
    assert outcome is (Outcome.RETRY if handled else Outcome.ACK)
    assert [one.message_id for one in seen] == ([("bus id" if meant is None else "first id")] if handled else [])
