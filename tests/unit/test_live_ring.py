"""The ring of a running process: how often its store is asked, and what holds while that does not answer."""

import asyncio
from datetime import datetime

import pytest
from pydantic import SecretStr

from shared.clock import ManualClock
from shared.errors import ConfigurationError, EnvelopeRejected, StoreUnavailable
from shared.keys import Key, KeySet, LiveRing, StaticKeys, ring_of

STATIC = StaticKeys("prod-v1", {}, None)


class Store:
    """Keys that are told, as slowly as wanted."""

    refresh_seconds = 300.0

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.keys = KeySet((self.key("k1"),), "k1")
        self.reads = 0
        self.error: Exception | None = None
        self.answering = asyncio.Event()
        self.answering.set()

    def key(self, key_id: str) -> Key:
        return Key(key_id, self.clock.now(), SecretStr(key_id * 20))

    async def read(self) -> KeySet:
        self.reads += 1
        await self.answering.wait()
        if self.error is not None:
            raise self.error
        return self.keys

    async def add(self) -> str:
        raise AssertionError("a ring only reads")

    async def activate(self, key_id: str, *, now: datetime) -> None:
        raise AssertionError("a ring only reads")

    async def retire(self, key_id: str) -> None:
        raise AssertionError("a ring only reads")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(clock: ManualClock) -> Store:
    return Store(clock)


@pytest.fixture
def ring(store: Store, clock: ManualClock) -> LiveRing:
    return LiveRing(store, lambda held: ring_of(STATIC, held), clock)


async def test_it_asks_once_for_all_who_wait_and_again_when_the_answer_is_old(
    ring: LiveRing, store: Store, clock: ManualClock
) -> None:
    store.answering.clear()
    waiting = [asyncio.create_task(ring.fresh()) for _ in range(20)]
    await clock.advance(0.5)
    store.answering.set()
    await asyncio.gather(*waiting)
    assert store.reads == 1
    await clock.advance(299.4)
    await ring.fresh()
    assert store.reads == 1
    await clock.advance(1)
    await asyncio.gather(*(ring.fresh() for _ in range(20)))
    assert store.reads == 2


async def test_an_unknown_key_is_looked_for_at_once_but_a_forger_causes_no_storm(
    ring: LiveRing, store: Store, clock: ManualClock
) -> None:
    await ring.fresh()
    store.keys = KeySet((*store.keys.keys, store.key("k2")), "k2")
    await clock.advance(10)
    assert await ring.renewed()
    assert ring.active == "k2"
    for _ in range(1000):
        assert not await ring.renewed()
    assert store.reads == 2
    await clock.advance(10)
    assert not await ring.renewed()
    assert store.reads == 3


async def test_it_stays_as_it_was_while_the_store_does_not_answer(ring: LiveRing, store: Store, clock: ManualClock) -> None:
    await ring.fresh()
    signed = ring.sign("topic", b"data")
    store.error = StoreUnavailable("not now")
    await clock.advance(301)
    for _ in range(50):
        await ring.fresh()
    assert store.reads == 2
    ring.verify("topic", b"data", signed)
    store.error, store.keys = None, KeySet((store.key("k2"),), "k2")
    await clock.advance(10)
    await ring.fresh()
    with pytest.raises(EnvelopeRejected, match="is unknown"):
        ring.verify("topic", b"data", signed)


async def test_without_any_key_nothing_is_signed_and_the_next_one_asks_again(ring: LiveRing, store: Store) -> None:
    with pytest.raises(ConfigurationError, match="have not been read yet"):
        ring.sign("topic", b"data")
    store.error = ConfigurationError("secret COMM_HMAC_KEYS refuses this account")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="refuses this account"):
            await ring.fresh()
    store.error = None
    await ring.fresh()
    assert ring.active == "k1"
