"""Every store of outputs keeps the same promises."""

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
from google.auth.credentials import AnonymousCredentials

from shared.errors import ConfigurationError, StoreUnavailable
from shared.outputs import OutputStore
from shared.outputs.folder import FolderStore
from shared.outputs.gcs import GcsStore
from shared.outputs.supabase import SupabaseStore
from tests.support.storage import BUCKET, Storage, storage

Kind = Literal["folder", "gcs", "supabase"]


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def gcs_at(url: str, *, bucket: str = BUCKET, prefix: str = "team") -> GcsStore:
    options = {"api_endpoint": url}
    return GcsStore(bucket, prefix, project="p", credentials=AnonymousCredentials(), client_options=options)  # type: ignore[no-untyped-call]


def supabase_at(double: Storage, *, bucket: str = BUCKET, key: str | None = None) -> SupabaseStore:
    return SupabaseStore(double.url, double.key if key is None else key, bucket=bucket, prefix="team")


@dataclass
class Rig:
    """A store, another one over the same, and what is behind both."""

    kind: Kind
    store: OutputStore
    other: OutputStore
    folder: Path
    double: Storage

    def contents(self) -> list[bytes]:
        files = [path.read_bytes() for path in self.folder.glob("??/*")]
        return [*files, *self.double.objects.values()]


@pytest.fixture(params=["folder", "gcs", "supabase"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_of(request.param, tmp_path / "outputs") as opened:
        yield opened


@asynccontextmanager
async def rig_of(kind: Kind, folder: Path) -> AsyncIterator[Rig]:
    async with storage() as double:

        def store() -> OutputStore:
            if kind == "folder":
                return FolderStore(folder)
            return gcs_at(double.url) if kind == "gcs" else supabase_at(double)

        made = Rig(kind, store(), store(), folder, double)
        yield made
        await made.store.close()
        await made.other.close()


@pytest.mark.parametrize("size", [0, 1, 70_000, 9_000_000])
async def test_what_was_put_is_there_for_everybody(rig: Rig, size: int) -> None:
    data = os.urandom(size)
    await rig.store.put(hashed(data), data)
    assert await rig.other.get(hashed(data)) == data


async def test_what_was_never_put_is_not_there(rig: Rig) -> None:
    assert await rig.store.get("0" * 64) is None


async def test_the_same_put_by_many_at_once_is_kept_once(rig: Rig) -> None:
    data = b'"the same"' * 10_000
    stores = [rig.store, rig.other]
    await asyncio.gather(*(stores[number % 2].put(hashed(data), data) for number in range(20)))
    assert rig.contents() == [data]
    assert await rig.store.get(hashed(data)) == data


async def test_one_leaves_the_others_as_they_are(rig: Rig) -> None:
    for data in (b"one", b"two", b"three"):
        await rig.store.put(hashed(data), data)
    assert [await rig.store.get(hashed(data)) for data in (b"one", b"two", b"three")] == [b"one", b"two", b"three"]
    assert sorted(rig.contents()) == [b"one", b"three", b"two"]


async def test_nothing_is_stale_that_was_just_put(rig: Rig) -> None:
    await rig.store.put(hashed(b"new"), b"new")
    assert await rig.store.stale(timedelta(days=1)) == []
    assert await rig.store.remove([hashed(b"new")], timedelta(days=1)) == 0
    assert await rig.store.get(hashed(b"new")) == b"new"


async def test_a_closed_store_opens_again(rig: Rig) -> None:
    await rig.store.put(hashed(b"one"), b"one")
    await rig.store.close()
    assert await rig.store.get(hashed(b"one")) == b"one"


# Over HTTP


@pytest.fixture(params=["gcs", "supabase"])
async def remote(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_of(request.param, tmp_path) as opened:
        yield opened


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_service_that_cannot_now_is_worth_another_try(remote: Rig, status: int) -> None:
    remote.double.statuses = [status]
    with pytest.raises(StoreUnavailable, match=BUCKET):
        await remote.store.put(hashed(b"x"), b"x")
    remote.double.statuses = [status]
    with pytest.raises(StoreUnavailable):
        await remote.store.get(hashed(b"x"))


@pytest.mark.parametrize("status", [401, 403])
async def test_a_service_that_lets_nobody_in_is_a_matter_of_configuration(remote: Rig, status: int) -> None:
    remote.double.statuses = [status, status]
    with pytest.raises(ConfigurationError, match=BUCKET) as refusal:
        await remote.store.put(hashed(b"x"), b"x")
    assert remote.double.key not in str(refusal.value)


@pytest.mark.parametrize("kind", ["gcs", "supabase"])
async def test_a_bucket_that_is_not_there_is_not_taken_for_an_output_that_is_not(kind: Kind) -> None:
    async with storage() as double:
        store: OutputStore = gcs_at(double.url, bucket="other") if kind == "gcs" else supabase_at(double, bucket="other")
        with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
            await store.get(hashed(b"x"))
        with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
            await store.put(hashed(b"x"), b"x")
        await store.close()


@pytest.mark.parametrize("kind", ["gcs", "supabase"])
async def test_nobody_there_is_worth_another_try(kind: Kind) -> None:
    async with storage() as double:
        pass
    store: OutputStore = gcs_at(double.url) if kind == "gcs" else supabase_at(double)
    with pytest.raises(StoreUnavailable):
        await store.get(hashed(b"x"))
    await store.close()


async def test_what_is_put_again_in_a_bucket_is_not_uploaded_over_it_but_counts_as_new(tmp_path: Path) -> None:
    async with rig_of("gcs", tmp_path) as rig:
        name, first = f"team/{hashed(b'x')}", "2020-01-01T00:00:00.000000Z"
        await rig.store.put(hashed(b"x"), b"x")
        rig.double.custom_times[name] = first
        await rig.other.put(hashed(b"x"), b"x")
        assert rig.double.custom_times[name] > first
        patches = [method for method, _ in rig.double.asked if method == "PATCH"]
        await rig.other.put(hashed(b"x"), b"x")
        assert [method for method, _ in rig.double.asked if method == "PATCH"] == patches == ["PATCH"], "once a day is enough"


# In a folder


async def test_a_folder_forgets_what_is_stale_unless_it_is_put_again(tmp_path: Path) -> None:
    store, month = FolderStore(tmp_path), timedelta(days=30)
    for data in (b"old", b"again"):
        await store.put(hashed(data), data)
        long_ago = time.time() - 31 * 86_400
        os.utime(tmp_path / hashed(data)[:2] / hashed(data), (long_ago, long_ago))
    stale = await store.stale(month)
    assert set(stale) == {hashed(b"old"), hashed(b"again")}
    await store.put(hashed(b"again"), b"again")
    assert await store.remove(stale, month) == 1
    assert (await store.get(hashed(b"old")), await store.get(hashed(b"again"))) == (None, b"again")


async def test_a_file_that_was_cut_short_is_put_anew(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put(hashed(b"whole"), b"whole")
    (tmp_path / hashed(b"whole")[:2] / hashed(b"whole")).write_bytes(b"who")
    await store.put(hashed(b"whole"), b"whole")
    assert await store.get(hashed(b"whole")) == b"whole"
    assert {path.name for path in tmp_path.iterdir()} == {".lock", hashed(b"whole")[:2]}  # noqa: ASYNC240


async def test_a_folder_that_cannot_be_one_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
        await FolderStore(tmp_path / "file").put(hashed(b"x"), b"x")
    with pytest.raises(ConfigurationError, match="OUTPUTS_URL"):
        await FolderStore(tmp_path / "file").get(hashed(b"x"))
