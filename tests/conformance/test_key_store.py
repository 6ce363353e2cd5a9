"""Every store of signing keys keeps them alike: in a file, and in Secret Manager over its own wire format."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.clock import ManualClock
from shared.errors import Conflict, NotFound
from shared.keys import FileKeyStore, KeyStore, LiveRing, StaticKeys, ring_of
from shared.keys.manager import SECRET, SecretManagerKeyStore
from shared.keys.rotation import carry_on
from shared.messages import KeyState
from tests.support.doubles import SECRET as STATIC_SECRET
from tests.support.secret_manager import serving

GRACE = 24 * 3600.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


class Stores:
    """Two processes' ways to one store."""

    def __init__(self, one: KeyStore, other: KeyStore) -> None:
        self.one, self.other = one, other


@pytest.fixture(params=["file", "secret-manager"])
async def stores(request: pytest.FixtureRequest, clock: ManualClock, tmp_path: Path) -> AsyncIterator[Stores]:
    """A store that holds one key, `k1`, which signs."""
    if request.param == "file":
        stores = Stores(FileKeyStore(tmp_path, clock), FileKeyStore(tmp_path, clock))
        await stores.one.add()
        await stores.one.activate("k1", now=clock.now())
        yield stores
        return
    async with serving(clock) as service:
        service.put(SECRET)
        managers = [service.manager(), service.manager()]
        stores = Stores(*(SecretManagerKeyStore(manager) for manager in managers))
        await stores.one.add()
        await stores.one.activate("k1", now=clock.now())
        yield stores
        for manager in managers:
            await manager.close()


async def states(store: KeyStore) -> dict[str, str]:
    held = await store.read()
    return {key.id: held.state(key).value for key in held.keys}


async def test_a_key_verifies_then_signs_and_is_refused_once_retired(stores: Stores, clock: ManualClock) -> None:
    assert await stores.one.add() == "k2"
    assert await states(stores.other) == {"k1": "active", "k2": "verify"}
    await clock.advance(60)
    await stores.one.activate("k2", now=clock.now())
    assert await states(stores.other) == {"k1": "verify", "k2": "active"}
    await stores.one.retire("k1")
    held = await stores.other.read()
    assert await states(stores.other) == {"k1": "retired", "k2": "active"}
    assert [key.secret is None for key in held.keys] == [True, False]
    assert held.last_signed_at(held.key("k1")) == held.key("k2").activated_at == clock.now()


async def test_repeating_a_change_changes_nothing(stores: Stores, clock: ManualClock) -> None:
    await stores.one.add()
    await stores.one.activate("k2", now=clock.now())
    await stores.one.retire("k1")
    before = await stores.other.read()
    await clock.advance(5)
    await stores.other.activate("k2", now=clock.now())
    await stores.other.retire("k1")
    assert await stores.one.read() == before


async def test_the_active_key_is_not_retired_and_a_retired_one_not_activated(stores: Stores, clock: ManualClock) -> None:
    with pytest.raises(Conflict, match="k1 is the active one; activate another key first"):
        await stores.one.retire("k1")
    await stores.one.add()
    await stores.one.activate("k2", now=clock.now())
    await stores.one.retire("k1")
    with pytest.raises(Conflict, match="k1 is retired, and stays so"):
        await stores.other.activate("k1", now=clock.now())


@pytest.mark.parametrize("key_id", ["k9", "prod-v1", ""])
async def test_a_key_that_is_not_there_is_named(stores: Stores, clock: ManualClock, key_id: str) -> None:
    with pytest.raises(NotFound, match="there is no signing key"):
        await stores.one.activate(key_id, now=clock.now())
    with pytest.raises(NotFound, match="there is no signing key"):
        await stores.one.retire(key_id)


async def test_no_two_keys_share_a_secret_or_an_id_even_when_two_add_at_once(stores: Stores) -> None:
    await asyncio.gather(*(store.add() for store in (stores.one, stores.other) * 3))
    held = await stores.one.read()
    assert [key.id for key in held.keys] == [f"k{number}" for number in range(1, 8)]
    assert len({key.secret.get_secret_value() for key in held.keys if key.secret is not None}) == 7
    assert held.active == "k1"


async def test_a_whole_rotation_leaves_one_key_that_signs(stores: Stores, clock: ManualClock) -> None:
    settle = 2 * stores.one.refresh_seconds
    step = await carry_on(stores.one, clock, rotate=True)
    assert step is not None
    assert await states(stores.one) == {"k1": "active", "k2": "verify"}
    await clock.advance(settle - 0.001)
    await carry_on(stores.other, clock, rotate=False)
    assert await states(stores.one) == {"k1": "active", "k2": "verify"}
    await clock.advance(0.001)
    await carry_on(stores.other, clock, rotate=False)
    assert await states(stores.one) == {"k1": "verify", "k2": "active"}
    await clock.advance(settle + GRACE - 0.001)
    await carry_on(stores.one, clock, rotate=False)
    assert await states(stores.one) == {"k1": "verify", "k2": "active"}
    await clock.advance(0.001)
    assert await carry_on(stores.one, clock, rotate=False) is None
    assert await states(stores.one) == {"k1": "retired", "k2": "active"}


async def test_a_notice_that_comes_again_begins_no_second_rotation(stores: Stores, clock: ManualClock) -> None:
    for _ in range(3):
        await carry_on(stores.one, clock, rotate=True)
    assert await states(stores.one) == {"k1": "active", "k2": "verify"}


async def test_two_rotators_at_once_do_no_harm(stores: Stores, clock: ManualClock) -> None:
    both = (stores.one, stores.other)
    settle = 2 * stores.one.refresh_seconds
    for seconds in (0.0, settle, settle + GRACE, 0.0, settle + GRACE):
        await clock.advance(seconds)
        await asyncio.gather(*(carry_on(store, clock, rotate=seconds == 0.0) for store in both), return_exceptions=False)
        held = await stores.one.read()
        assert held.active in {key.id for key in held.usable}
    found = await states(stores.one)
    assert list(found.values()).count("active") == 1


async def test_a_running_ring_learns_of_a_rotation_without_a_restart(stores: Stores, clock: ManualClock) -> None:
    static = StaticKeys("prod-v1", {}, STATIC_SECRET)
    rings = [LiveRing(store, lambda held: ring_of(static, held), clock) for store in (stores.one, stores.other)]
    for ring in rings:
        await ring.fresh()
    old = rings[0].sign("topic", b"data")
    assert old["hmac-key-id"] == "k1"
    await stores.one.add()
    await clock.advance(2 * stores.one.refresh_seconds)
    await stores.one.activate("k2", now=clock.now())
    await clock.advance(stores.one.refresh_seconds)
    for ring in rings:
        await ring.fresh()
    assert rings[0].sign("topic", b"data")["hmac-key-id"] == "k2"
    rings[1].verify("topic", b"data", old)
    rings[1].verify("topic", b"data", rings[0].sign("topic", b"data"))
    assert rings[1].states["K1"] is KeyState.VERIFY
