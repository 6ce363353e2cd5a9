"""The way to Firestore: a document is read, created, or replaced if nobody changed it since it was read.

Nothing is connected before the first call, which belongs to one event loop. Every call has a timeout; the first moments of an
outage, such as a connection that died while the instance had no CPU, are tried again.

Uses the service's generated client: it takes a channel of one's own and can be closed, which the client above it cannot.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final, Protocol, TypeVar
from weakref import WeakValueDictionary

import grpc.aio  # type: ignore[import-untyped]
from google.api_core import exceptions as google
from google.api_core.retry_async import AsyncRetry, if_exception_type
from google.auth import default as default_credentials
from google.cloud.firestore_v1.services.firestore import FirestoreAsyncClient
from google.cloud.firestore_v1.services.firestore.transports import FirestoreGrpcAsyncIOTransport
from google.cloud.firestore_v1.types import BatchGetDocumentsRequest, BatchGetDocumentsResponse, CommitRequest

from shared.clock import Clock
from shared.errors import StoreUnavailable
from shared.guards.firestore_errors import translate

_log = logging.getLogger(__name__)

DATABASE: Final = "(default)"
PREFIX: Final = "agent-team-"
_CALL_SECONDS: Final = 10.0
_ATTEMPT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 3.0
_RACES: Final = 12
_FIRST_PAUSE_SECONDS: Final = 0.01
_LONGEST_PAUSE_SECONDS: Final = 0.5
_SKEW_WORTH_A_WARNING_SECONDS: Final = 1.0
_SCOPES: Final = ("https://www.googleapis.com/auth/datastore",)
_CHANNEL: Final = (("grpc.keepalive_time_ms", 30_000),)
_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
_LOST_RACE = (google.FailedPrecondition, google.Aborted, google.NotFound)
_ANSWER = TypeVar("_ANSWER")

Field = str | bytes | int | float | bool | datetime | None | tuple[float, ...]
Fields = Mapping[str, Field]


class Version(Protocol):
    """When a document was last written, by the service's clock; it names what was written then."""

    def ToDatetime(self, *, tzinfo: tzinfo) -> datetime:
        """As Python says it."""
        ...


def seconds(moment: datetime) -> float:
    """A moment as seconds since 2026: near enough that a float still tells nanoseconds apart."""
    return (moment - _EPOCH).total_seconds()


def moment(at: float) -> datetime:
    """The moment that lies `at` seconds after the start of 2026; what lies beyond all calendars is their end."""
    try:
        return _EPOCH + timedelta(seconds=at)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was at `version`."""

    fields: Fields
    version: Version


class FirestoreStore:
    """Documents of one database. `emulator` is host:port of an emulator, which needs no credentials."""

    def __init__(self, project: str, clock: Clock, *, database: str = DATABASE, emulator: str | None = None) -> None:
        self._database = f"projects/{project}/databases/{database}"
        self._where = f"Firestore ({self._database})"
        self._emulator = emulator
        self._clock = clock
        self._client: FirestoreAsyncClient | None = None
        self._opening = asyncio.Lock()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._warned = False
        self._retry = AsyncRetry(
            if_exception_type(google.ServiceUnavailable), initial=0.05, maximum=0.5, multiplier=2, timeout=_RETRY_SECONDS
        )

    def path(self, guard: str, key: str) -> str:
        """The document of `key`: ids may hold no slash and at most 1,500 bytes, so the key's hash is one."""
        return f"{self._database}/documents/{PREFIX}{guard}/{hashlib.sha256(key.encode()).hexdigest()}"

    def lock(self, path: str) -> asyncio.Lock:
        """Held while a document is changed: what one process does at once must not race against itself."""
        lock = self._locks.get(path)
        if lock is None:
            lock = self._locks[path] = asyncio.Lock()
        return lock

    async def read(self, path: str) -> Document | None:
        """The document, None when there is none. Raises StoreUnavailable or ConfigurationError, as every call."""
        request = BatchGetDocumentsRequest(database=self._database, documents=[path])

        async def call(client: FirestoreAsyncClient) -> BatchGetDocumentsResponse | None:
            answers = await client.batch_get_documents(request, retry=self._retry, timeout=_ATTEMPT_SECONDS)
            async for answer in answers:
                return answer
            return None

        answer = await self._call(call)
        found = None if answer is None else BatchGetDocumentsResponse.pb(answer).found
        if not found or not found.name:
            return None
        return Document(_decode(found.fields), found.update_time)

    async def create(self, path: str, fields: Fields) -> Version | None:
        """Write a document that must not exist, and return its version; None, changing nothing, when it does."""
        request = self._write(path, fields)
        CommitRequest.pb(request).writes[0].current_document.exists = False
        return await self._commit(request, (google.AlreadyExists, google.Aborted))

    async def replace(self, path: str, fields: Fields, version: Version) -> Version | None:
        """Write a document that must still be at `version`; its new version, or None, changing nothing, when it is not."""
        request = self._write(path, fields)
        CommitRequest.pb(request).writes[0].current_document.update_time.CopyFrom(version)
        return await self._commit(request, _LOST_RACE)

    async def put(self, path: str, fields: Fields) -> None:
        """Write a document whatever there is."""
        for pause in self.pauses():
            if await self._commit(self._write(path, fields), (google.Aborted,)) is not None:
                return
            await self._clock.sleep(pause)
        raise self.crowded("a document")

    def pauses(self) -> Iterable[float]:
        """How long to wait, with jitter, after each lost race before the next attempt."""
        longest = _FIRST_PAUSE_SECONDS
        for _ in range(_RACES):
            yield random.uniform(0.2, 1.0) * longest
            longest = min(2 * longest, _LONGEST_PAUSE_SECONDS)

    def crowded(self, what: str) -> StoreUnavailable:
        """The error when every race for a document was lost."""
        return StoreUnavailable(f"{self._where}: too many want to change {what} at once; try again", retry_after_seconds=1.0)

    async def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        client, self._client = self._client, None
        if client is not None:
            await client.transport.close()  # type: ignore[no-untyped-call]

    def _write(self, path: str, fields: Fields) -> CommitRequest:
        request = CommitRequest(database=self._database)
        update = CommitRequest.pb(request).writes.add().update
        update.name = path
        for name, value in fields.items():
            _encode(value, update.fields[name])
        return request

    async def _commit(self, request: CommitRequest, lost: tuple[type[Exception], ...]) -> Version | None:
        async def call(client: FirestoreAsyncClient) -> Version | None:
            try:
                before = self._clock.now()
                answer = await client.commit(request, retry=self._retry, timeout=_ATTEMPT_SECONDS)
            except lost:
                return None
            version: Version = type(answer).pb(answer).commit_time
            self._compare_clocks(before, version)
            written: Version = type(answer).pb(answer).write_results[0].update_time
            return written

        return await self._call(call)

    async def _call(self, call: Callable[[FirestoreAsyncClient], Awaitable[_ANSWER]]) -> _ANSWER:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                return await call(self._client if self._client is not None else await self._open())
        except Exception as error:
            raise translate(error, self._where) from error

    async def _open(self) -> FirestoreAsyncClient:
        async with self._opening:
            if self._client is None:
                transport = FirestoreGrpcAsyncIOTransport
                if self._emulator is not None:
                    channel = grpc.aio.insecure_channel(self._emulator, options=_CHANNEL)
                else:
                    # Asks files and, outside of them, the metadata server: neither may hold up the event loop.
                    credentials, _ = await asyncio.to_thread(default_credentials, scopes=_SCOPES)
                    channel = transport.create_channel(credentials=credentials, options=_CHANNEL)
                self._client = FirestoreAsyncClient(transport=transport(channel=channel))
        return self._client

    def _compare_clocks(self, before: datetime, commit_time: Version) -> None:
        """Warn, once, when this machine's clock and the service's differ: leases are told by the former."""
        if self._warned:
            return
        committed = commit_time.ToDatetime(tzinfo=UTC)
        ahead = (before - committed).total_seconds()
        behind = (committed - self._clock.now()).total_seconds()
        skew = max(ahead, behind)
        if skew > _SKEW_WORTH_A_WARNING_SECONDS:
            self._warned = True
            side = "ahead of" if ahead > behind else "behind"
            _log.warning("this machine's clock is %.1f s %s Firestore's: leases and rate limits are off by as much", skew, side)


def _encode(value: Field, into: Any) -> None:
    match value:
        case None:
            into.null_value = 0
        case bool():
            into.boolean_value = value
        case int():
            into.integer_value = value
        case float():
            into.double_value = value
        case str():
            into.string_value = value
        case bytes():
            into.bytes_value = value
        case datetime():
            into.timestamp_value.FromDatetime(value)
        case tuple():
            into.array_value.SetInParent()
            for one in value:
                into.array_value.values.add().double_value = one


def _decode(fields: Mapping[str, Any]) -> dict[str, Field]:
    return {name: _decoded(value) for name, value in fields.items()}


def _decoded(value: Any) -> Field:
    kind = value.WhichOneof("value_type")
    match kind:
        case "null_value":
            return None
        case "timestamp_value":
            at: datetime = value.timestamp_value.ToDatetime(tzinfo=UTC)
            return at
        case "array_value":
            return tuple(one.double_value for one in value.array_value.values)
        case _:
            plain: Field = getattr(value, kind)
            return plain
