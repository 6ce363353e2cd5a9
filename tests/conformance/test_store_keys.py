"""What the state promises of the API's keys, of every way to reach it."""

import asyncio
from datetime import datetime, timedelta

import pytest

from shared.clock import ManualClock
from shared.errors import Conflict, InputError, NotFound
from shared.state import Caller, WorkflowStore
from shared.state.keys import digest, id_of

from .conftest import START

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_key_is_added_found_listed_and_revoked(store: WorkflowStore, clock: ManualClock) -> None:
    keys = store.keys
    assert (await keys.listed(), await keys.exist()) == ([], False)
    key = await keys.add("ci", "submit")
    id = id_of(key)
    assert id is not None
    assert await keys.find(id) == {"id": id, "name": "ci", "hash": digest(key), "scope": "submit"}
    (listed,) = await keys.listed()
    assert datetime.fromisoformat(listed.pop("created_at")) == START
    assert listed == {"id": id, "name": "ci", "scope": "submit", "last_used_at": None, "revoked_at": None}
    await clock.advance(60)
    await keys.revoke("ci")
    assert await keys.find(id) is None
    assert datetime.fromisoformat((await keys.listed())[0]["revoked_at"]) == START + timedelta(seconds=60)
    assert await keys.exist(), "an API whose keys were all revoked would be open again"
    with pytest.raises(NotFound, match="there is no key 'ci' in use"):
        await keys.revoke("ci")


async def test_what_is_kept_does_not_hold_the_key(store: WorkflowStore, caller: Caller) -> None:
    key = await store.keys.add("ci", "admin")
    found = await store.keys.find(str(id_of(key)))
    _, _, secret = key.split("_", 2)  # which may hold underscores of its own
    assert secret not in str((found, await caller.call("list_api_keys", {})))
    assert "hash" not in (await store.keys.listed())[0]


async def test_a_name_is_one_key_s_until_it_is_revoked(store: WorkflowStore) -> None:
    outcomes = await asyncio.gather(*(store.keys.add("ci", "read") for _ in range(6)), return_exceptions=True)
    (key,) = [one for one in outcomes if isinstance(one, str)]
    assert [type(one) for one in outcomes if one != key] == [Conflict] * 5
    await store.keys.revoke("ci")
    again = await store.keys.add("ci", "read")
    assert again != key
    assert [one["revoked_at"] is None for one in await store.keys.listed()].count(True) == 1


@pytest.mark.parametrize("name", ["", " ", "a b", "-a", "a\n", "a\0", "\ud800", "ä", "a" * 65])
async def test_a_name_that_could_be_mistaken_is_refused(store: WorkflowStore, name: str) -> None:
    with pytest.raises(InputError, match="cannot be a key's name"):
        await store.keys.add(name, "read")
    assert await store.keys.listed() == []


async def test_the_last_use_is_written_once_a_minute(store: WorkflowStore, clock: ManualClock) -> None:
    id = str(id_of(await store.keys.add("ci", "read")))

    async def last_used() -> float:
        await store.keys.note_use(id)
        (key,) = await store.keys.listed()
        return (datetime.fromisoformat(key["last_used_at"]) - START).total_seconds()

    assert await last_used() == 0
    await clock.advance(59)
    assert await last_used() == 0
    await clock.advance(1)
    assert await last_used() == 60
    await store.keys.note_use("nobodys-key-")
