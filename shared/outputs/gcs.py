"""Outputs in a bucket of Google Cloud Storage.

An object is made where there is none (`if_generation_match=0`) and never written again, so whoever puts needs no right to delete.
One that is there gets a new custom time, at most once a day: the bucket's lifecycle deletes by `daysSinceCustomTime`, and must not
count from the first of many who put the same. What this needs of the bucket: storage.objects.create, .get and .update.

The client is the library's own and blocks: its calls run in threads, with timeouts and without its retries, which are made above.
"""

import asyncio
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar

from shared.errors import AgentTeamError

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client  # type: ignore[import-untyped]

_Answer = TypeVar("_Answer")
_SECONDS: Final = (10.0, 60.0)
"""To connect, and between two pieces of an answer."""
_REFRESHED_AFTER: Final = timedelta(days=1)


class GcsStore:
    """Objects `<prefix>/<hash>` of a bucket. The client is made on first use."""

    def __init__(self, bucket: str, prefix: str, *, project: str | None, **client_options: Any) -> None:
        """`client_options` are for another service than Google's own: `credentials`, `client_options`."""
        self._bucket = bucket
        self._prefix = prefix
        self._project = project
        self._options = client_options
        self._client: Client | None = None
        self._opening = asyncio.Lock()

    async def put(self, id: str, data: bytes) -> None:
        await self._apart(lambda client: self._put(self._blob(client, id), data))

    async def get(self, id: str) -> bytes | None:
        return await self._apart(lambda client: self._get(self._blob(client, id)))

    async def stale(self, older_than: timedelta) -> list[str]:
        return []  # the bucket's lifecycle deletes

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        return 0

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    def _put(self, blob: "Blob", data: bytes) -> None:
        from google.api_core.exceptions import PreconditionFailed

        blob.custom_time = datetime.now(UTC)
        try:
            blob.upload_from_string(data, "application/json", if_generation_match=0, timeout=_SECONDS, retry=None)
        except PreconditionFailed:  # it is there
            blob.reload(timeout=_SECONDS, retry=None)
            now = datetime.now(UTC)
            if blob.custom_time is None or now - blob.custom_time > _REFRESHED_AFTER:
                blob.custom_time = now
                blob.patch(timeout=_SECONDS, retry=None)

    def _get(self, blob: "Blob") -> bytes | None:
        from google.api_core.exceptions import NotFound

        try:
            data: bytes = blob.download_as_bytes(timeout=_SECONDS, retry=None)
        except NotFound as error:
            # A bucket that is not there answers with the same status.
            if "bucket does not exist" in str(error):
                raise
            return None
        return data

    def _blob(self, client: "Client", id: str) -> "Blob":
        return client.bucket(self._bucket).blob(f"{self._prefix}/{id}" if self._prefix else id)

    async def _apart(self, work: "Callable[[Client], _Answer]") -> _Answer:
        try:
            async with self._opening:
                if self._client is None:
                    self._client = await asyncio.to_thread(self._open)
            client = self._client
            return await asyncio.to_thread(lambda: work(client))
        except Exception as error:
            raise self._translated(error) from error

    def _open(self) -> "Client":
        from google.cloud.storage import Client

        return Client(project=self._project, **self._options)

    def _translated(self, error: Exception) -> AgentTeamError:
        from shared.outputs.gcs_errors import translate

        return translate(error, f"the bucket {self._bucket}")
