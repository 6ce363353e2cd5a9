"""What comes next in a rotation, for any keys, killed anywhere, by any number of rotators."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.clock import ManualClock
from shared.keys import Key, KeySet
from shared.keys.rotation import Action, Step, carry_on, next_step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SETTLE, GRACE = 600.0, 86_400.0


class Store:
    """Keys in memory. It is killed before or after what it does, when told so."""

    refresh_seconds = SETTLE / 2

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.keys = KeySet((Key("k1", clock.now(), SecretStr("x"), clock.now()),), "k1")
        self.killed: bool | None = None
        self.signed: list[tuple[str, datetime]] = [("k1", clock.now())]
        self.retired: list[tuple[str, datetime]] = []

    async def read(self) -> KeySet:
        return self.keys

    async def add(self) -> str:
        key = Key(f"k{len(self.keys.keys) + 1}", self.clock.now(), SecretStr("x"))
        self._do(replace(self.keys, keys=(*self.keys.keys, key)))
        return key.id

    async def activate(self, key_id: str, *, now: datetime) -> None:
        key = self.keys.to_activate(key_id)
        keys = tuple(replace(one, activated_at=now) if one.id == key.id else one for one in self.keys.keys)
        self._do(replace(self.keys, keys=keys, active=key.id))
        self.signed.append((key_id, now))

    async def retire(self, key_id: str) -> None:
        key = self.keys.to_retire(key_id)
        self._do(replace(self.keys, keys=tuple(replace(one, secret=None) if one.id == key.id else one for one in self.keys.keys)))
        self.retired.append((key_id, self.clock.now()))

    def _do(self, keys: KeySet) -> None:
        killed, self.killed = self.killed, None
        if killed is False:
            raise KeyboardInterrupt
        self.keys = keys
        if killed is True:
            raise KeyboardInterrupt


def after(action: Action, key_id: str, seconds: float) -> Step:
    return Step(action, key_id, NOW + timedelta(seconds=seconds))


def step_of(keys: KeySet, *, rotate: bool = False) -> Step | None:
    return next_step(keys, now=NOW, rotate=rotate, settle=SETTLE, grace=GRACE)


def test_each_step_follows_from_the_keys_alone() -> None:
    one, two = Key("k1", NOW, SecretStr("x"), NOW), Key("k2", NOW, SecretStr("x"))
    assert step_of(KeySet((one,), "k1")) is None
    assert step_of(KeySet((one,), "k1"), rotate=True) == after(Action.ADD, "", 0)
    assert step_of(KeySet((one, two), "k1"), rotate=True) == after(Action.ACTIVATE, "k2", SETTLE)
    signing = replace(two, activated_at=NOW)
    assert step_of(KeySet((one, signing), "k2"), rotate=True) == after(Action.RETIRE, "k1", SETTLE + GRACE)
    assert step_of(KeySet((replace(one, secret=None), signing), "k2")) is None


def test_a_first_key_of_a_store_beside_the_environments_signs_once_all_have_it() -> None:
    assert step_of(KeySet(), rotate=True) == after(Action.ADD, "", 0)
    assert step_of(KeySet((Key("k1", NOW, SecretStr("x")),))) == after(Action.ACTIVATE, "k1", SETTLE)


def test_of_two_keys_that_were_added_at_once_the_later_one_signs() -> None:
    keys = tuple(Key(f"k{number}", NOW, SecretStr("x"), NOW if number == 1 else None) for number in (1, 2, 3))
    assert step_of(KeySet(keys, "k1")) == after(Action.ACTIVATE, "k3", SETTLE)
    signing = (*keys[:2], replace(keys[2], activated_at=NOW))
    assert step_of(KeySet(signing, "k3")) == after(Action.RETIRE, "k1", SETTLE + GRACE)
    assert step_of(KeySet((replace(signing[0], secret=None), *signing[1:]), "k3")) == after(Action.RETIRE, "k2", SETTLE + GRACE)


@given(st.lists(st.tuples(st.floats(0, 90_000), st.sampled_from([None, True, False]), st.booleans()), max_size=40))
def test_killed_anywhere_it_goes_on_and_no_key_signs_too_early_or_goes_too_soon(
    moments: list[tuple[float, bool | None, bool]],
) -> None:
    async def run() -> None:
        clock = ManualClock()
        store = Store(clock)
        for seconds, killed, rotate in [*moments, *[(90_000.0, None, False)] * 4]:
            await clock.advance(seconds)
            store.killed = killed
            try:
                await carry_on(store, clock, rotate=rotate)
            except KeyboardInterrupt:
                continue
            finally:
                store.killed = None
        created = {key.id: key.created_at for key in store.keys.keys}
        for key_id, at in store.signed[1:]:
            assert at - created[key_id] >= timedelta(seconds=SETTLE)
        for key_id, at in store.retired:
            later = [key.activated_at for key in store.keys.keys if int(key.id[1:]) > int(key_id[1:])]
            assert any(at - since >= timedelta(seconds=SETTLE + GRACE) for since in later if since is not None)
        assert [key.id for key in store.keys.usable] == [store.keys.active], "one key is left, and signs"

    asyncio.run(run())
