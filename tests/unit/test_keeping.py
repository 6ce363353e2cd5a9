"""What is kept apart and what is not, whatever the store."""

from collections.abc import Collection
from datetime import timedelta

import orjson
import pytest

from shared.config import load_settings
from shared.errors import ConfigurationError, InputError, NotFound, OutputDamaged, StoreUnavailable
from shared.outputs import INLINE_BYTES, LARGEST_BYTES, Outputs, open_outputs
from shared.outputs.folder import FolderStore
from shared.outputs.gcs import GcsStore
from shared.outputs.supabase import SupabaseStore
from shared.references import Reference, reference
from tests.support.apart import FailingStore
from tests.support.doubles import SkippingClock

LARGE = "x" * INLINE_BYTES


class DictStore:
    """Keeps everything at hand, and counts."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.puts = self.gets = 0

    async def put(self, id: str, data: bytes) -> None:
        self.puts += 1
        self.kept[id] = data

    async def get(self, id: str) -> bytes | None:
        self.gets += 1
        return self.kept.get(id)

    async def stale(self, older_than: timedelta) -> list[str]:
        return list(self.kept)

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        return len([self.kept.pop(id) for id in ids])

    async def close(self) -> None:
        pass


@pytest.fixture
def store() -> DictStore:
    return DictStore()


@pytest.fixture
def outputs(store: DictStore) -> Outputs:
    return Outputs(store, SkippingClock())


async def test_what_has_64_kilobytes_stays_and_a_byte_more_goes(outputs: Outputs, store: DictStore) -> None:
    fits = "x" * (INLINE_BYTES - 2)  # and its quotes
    assert await outputs.keep(fits) == fits
    assert store.kept == {}
    kept = await outputs.keep(fits + "x")
    stored = reference(kept)
    assert stored is not None
    assert stored.size_bytes == INLINE_BYTES + 1
    assert await outputs.whole({"in": [kept]}) == {"in": [fits + "x"]}
    assert await outputs.whole_json(kept) == orjson.dumps(fits + "x")


async def test_what_many_share_is_put_once_and_the_rest_stays(outputs: Outputs, store: DictStore) -> None:
    items = [{"text": LARGE, "number": number} for number in range(5)]
    known: dict[int, object] = {}
    kept = [await outputs.keep_parts(item, known) for item in items]
    assert [one["number"] for one in kept] == [0, 1, 2, 3, 4]
    assert (len(store.kept), store.puts) == (1, 1)
    assert await outputs.whole(kept) == items


async def test_what_is_large_in_many_small_parts_goes_whole(outputs: Outputs, store: DictStore) -> None:
    value = {"a": {str(number): "y" * 1000 for number in range(100)}, "b": LARGE}
    kept = await outputs.keep_parts(value)
    assert reference(kept["a"]) is not None
    assert await outputs.whole(kept) == value
    many = [{"text": LARGE}, *["z" * 1000] * 100]
    whole = await outputs.keep_parts(many)
    assert reference(whole) is not None
    assert await outputs.whole(whole) == many


async def test_what_was_put_in_parts_is_put_together(outputs: Outputs) -> None:
    inner = await outputs.keep(LARGE)
    outer = await outputs.keep([inner, *["z" * 1000] * 100])
    assert (await outputs.whole(outer))[0] == LARGE
    assert orjson.loads(await outputs.whole_json(outer))[0] == LARGE


@pytest.mark.parametrize(
    ("value", "reason"), [("x" * LARGEST_BYTES, "over the"), (f"{LARGE}\0", "NUL"), ({1, 2}, "JSON"), (LARGE + "\ud800", "JSON")]
)
async def test_what_cannot_be_kept_is_refused(outputs: Outputs, store: DictStore, value: object, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        await outputs.keep(value)
    assert store.kept == {}


async def test_what_is_at_hand_is_not_read_again_and_does_not_grow_without_end(outputs: Outputs, store: DictStore) -> None:
    kept = [await outputs.keep(str(number) * 30_000_000) for number in range(3)]
    await outputs.whole(kept[2])
    await outputs.whole(kept[1])
    assert store.gets == 0
    await outputs.whole(kept[0])
    assert store.gets == 1, "64 MB have no room for three"


async def test_what_is_gone_or_damaged_is_told_by_its_hash(store: DictStore) -> None:
    stored = reference(await Outputs(store, SkippingClock()).keep(LARGE))
    assert stored is not None
    store.kept[stored.sha256] = store.kept[stored.sha256].replace(b"x", b"y", 1)
    with pytest.raises(OutputDamaged, match=f"{stored.sha256}.*run the workflow again"):
        await Outputs(store, SkippingClock()).read(stored)
    store.kept.clear()
    with pytest.raises(NotFound, match=f"{stored.sha256}.*OUTPUTS_URL"):
        await Outputs(store, SkippingClock()).read(stored)


async def test_a_store_is_asked_four_times_in_all(store: DictStore) -> None:
    clock = SkippingClock()
    await Outputs(FailingStore(store, failures=3), clock).keep(LARGE)
    assert clock.slept == [0.2, 0.4, 0.8]
    down = FailingStore(store, failures=99)
    with pytest.raises(StoreUnavailable):
        await Outputs(down, SkippingClock()).keep(LARGE)
    assert down.calls == ["put"] * 4


async def test_without_a_store_everything_stays_and_nothing_can_be_read() -> None:
    outputs = Outputs(None, SkippingClock())
    assert await outputs.keep(LARGE) == await outputs.keep_parts(LARGE) == LARGE
    with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
        await outputs.read(Reference("0" * 64, 1))


async def test_what_expires_is_what_nobody_uses(outputs: Outputs, store: DictStore) -> None:
    kept = [reference(await outputs.keep(f"{number}{LARGE}")) for number in range(3)]
    assert kept[0] is not None
    used = kept[0].sha256

    async def in_use(hashes: list[str]) -> list[str]:
        assert len(hashes) == 3
        return [used]

    assert await outputs.expire(timedelta(days=1), in_use) == 2
    assert list(store.kept) == [used]


PRODUCTION = {
    **{"NODE_ENV": "production", "GEMINI_API_KEY": "k", "COMM_HMAC_DEFAULT_SECRET": "s" * 32, "AGENT_BUS_PROVIDER": "memory"},
    **{"DATABASE_URL": "postgresql://u@h/d", "SUPABASE_URL": "https://p.supabase.co", "SUPABASE_SERVICE_ROLE_KEY": "key"},
    "SENTRY_DSN": "https://k@sentry.example/1",
}


@pytest.mark.parametrize(
    ("variables", "kind"),
    [
        ({}, FolderStore),
        (PRODUCTION, type(None)),
        ({"OUTPUTS_URL": "file:///var/outputs"}, FolderStore),
        ({"OUTPUTS_URL": "gs://bucket/some/prefix"}, GcsStore),
        ({**PRODUCTION, "OUTPUTS_URL": "supabase://bucket"}, SupabaseStore),
    ],
)
def test_the_settings_say_where(variables: dict[str, str], kind: type) -> None:
    assert type(open_outputs(load_settings(variables), SkippingClock())._store) is kind


@pytest.mark.parametrize("url", ["file://elsewhere/folder", "supabase://bucket"])
def test_an_address_that_cannot_be_used_is_told(url: str) -> None:
    with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
        open_outputs(load_settings({"OUTPUTS_URL": url}), SkippingClock())
