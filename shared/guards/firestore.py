"""Guards in Firestore: shared by all instances, without a server of one's own.

One document per record, in one collection per guard: agent-team-claims, -buckets, -breakers and -cache. They decide by
shared.guards.policy; a record is replaced only if nobody else changed it since it was read. A new claim is one call, `create`,
which fails when the document is there, and so is what its holder does next.

Ends are checked here; the service's TTL policy on `expire_at` only cleans up. Time is the instances' own clocks, kept within
milliseconds of each other in the cloud: one that is off by some seconds ends leases, pauses and waits by as much too early or too
late, and says so in the log. The order of writes, and so the fencing token, does not depend on any clock.
"""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar, cast

from shared.clock import Clock
from shared.errors import CircuitOpen
from shared.guards import policy
from shared.guards.base import Claim, Guards, New
from shared.guards.firestore_limiter import FirestoreRateLimiter
from shared.guards.firestore_store import DATABASE, Document, Fields, FirestoreStore, Version, moment, seconds
from shared.guards.policy import BreakerRules, BreakerState, Circuit, ClaimRecord

_REMEMBERED_CLAIMS: Final = 1024
_LARGEST_VALUE_BYTES: Final = 1_000_000  # a document holds 1 MiB
_CIRCUIT_KEPT_SECONDS: Final = 7 * 86_400.0
_ANSWER = TypeVar("_ANSWER")


class _Held(NamedTuple):
    """A claim as this process stored it."""

    record: ClaimRecord
    version: Version


class FirestoreIdempotency:
    """Claims."""

    def __init__(self, store: FirestoreStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        """By document and token. Nobody else may change what these say while they say it: completing needs no read first."""

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        path, token = self._store.path("claims", key), secrets.token_hex(16)

        def decide(record: ClaimRecord | None) -> tuple[Claim, ClaimRecord | None]:
            if record is not None and record.token == token:
                return New(token), None  # the answer to an earlier attempt of ours was lost
            return policy.claim(record, self._now(), token=token, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)

        async with self._store.lock(path):
            answer, wanted = decide(None)
            if wanted is not None and await self._create(path, wanted):
                return answer
            for pause in self._store.pauses():
                found = await self._read(path)
                answer, wanted = decide(None if found is None else found.record)
                if wanted is None:
                    return answer
                if await self._write(path, wanted, found):
                    return answer
                await self._clock.sleep(pause)
        raise self._store.crowded("a claim")

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        return await self._change(
            key, token, lambda record: policy.renew(record, self._now(), token=token, lease_seconds=lease_seconds)
        )

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        return await self._change(key, token, lambda record: policy.complete(record, self._now(), token=token, result=result))

    async def release(self, key: str, *, token: str) -> bool:
        return await self._change(key, token, lambda record: policy.release(record, self._now(), token=token))

    def _now(self) -> float:
        return seconds(self._clock.now())

    async def _change(self, key: str, token: str, decide: Callable[[ClaimRecord | None], ClaimRecord | None]) -> bool:
        path = self._store.path("claims", key)
        async with self._store.lock(path):
            found = self._held.pop((path, token), None) or await self._read(path)
            for pause in self._store.pauses():
                wanted = decide(None if found is None else found.record)
                if wanted is None:
                    return False
                if await self._write(path, wanted, found):
                    return True
                await self._clock.sleep(pause)
                found = await self._read(path)
        raise self._store.crowded("a claim")

    async def _read(self, path: str) -> _Held | None:
        document = await self._store.read(path)
        return None if document is None else _Held(_claim_record(document), document.version)

    async def _create(self, path: str, record: ClaimRecord) -> bool:
        return self._remember(path, record, await self._store.create(path, _claim_fields(record)))

    async def _write(self, path: str, record: ClaimRecord, found: _Held | None) -> bool:
        if found is None:
            return await self._create(path, record)
        return self._remember(path, record, await self._store.replace(path, _claim_fields(record), found.version))

    def _remember(self, path: str, record: ClaimRecord, version: Version | None) -> bool:
        if version is None:
            return False
        if record.token and not (record.done and record.result is None):
            # Results may be large and are not needed to decide.
            self._held[path, record.token] = _Held(record._replace(result=None), version)
            if len(self._held) > _REMEMBERED_CLAIMS:
                self._held.popitem(last=False)
        return True


class FirestoreBreaker:
    """Circuit breakers by name."""

    def __init__(self, store: FirestoreStore, clock: Clock, rules: BreakerRules | None = None) -> None:
        self._store = store
        self._clock = clock
        self._rules = BreakerRules() if rules is None else rules

    async def before(self, name: str) -> None:
        def decide(circuit: Circuit) -> tuple[tuple[float | None, str], Circuit]:
            refused_for, after = policy.permit(circuit, self._now(), self._rules)
            return (refused_for, after.state), after

        refused_for, state = await self._change(name, decide)
        if refused_for is not None:
            raise CircuitOpen(policy.open_message(name, state, refused_for), retry_after_seconds=refused_for)

    async def after(self, name: str, *, success: bool) -> None:
        await self._change(name, lambda circuit: (None, policy.report(circuit, self._now(), self._rules, success=success)))

    async def state(self, name: str) -> str:
        document = await self._store.read(self._store.path("breakers", name))
        return policy.state(_circuit(document), self._now())

    def _now(self) -> float:
        return seconds(self._clock.now())

    async def _change(self, name: str, decide: Callable[[Circuit], tuple[_ANSWER, Circuit]]) -> _ANSWER:
        """Decide on the circuit as it is, and store what comes of it where that is something else."""
        path = self._store.path("breakers", name)
        async with self._store.lock(path):
            for pause in self._store.pauses():
                document = await self._store.read(path)
                before = _circuit(document)
                answer, after = decide(before)
                if after == before:
                    return answer
                fields = self._fields(after)
                if document is None:
                    version = await self._store.create(path, fields)
                else:
                    version = await self._store.replace(path, fields, document.version)
                if version is not None:
                    return answer
                await self._clock.sleep(pause)
        raise self._store.crowded(f"circuit breaker {name}")

    def _fields(self, circuit: Circuit) -> Fields:
        expire_at = moment(max(self._now(), circuit.until) + _CIRCUIT_KEPT_SECONDS)
        return {"state": circuit.state, "streak": circuit.streak, "until": circuit.until, "expire_at": expire_at}


class FirestoreCache:
    """Values by key. A value above 1 MB is not kept."""

    def __init__(self, store: FirestoreStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def get(self, key: str) -> bytes | None:
        document = await self._store.read(self._store.path("cache", key))
        if document is None or cast(float, document.fields["until"]) <= seconds(self._clock.now()):
            return None
        return cast(bytes, document.fields["value"])

    async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
        if len(value) > _LARGEST_VALUE_BYTES:
            return
        until = seconds(self._clock.now()) + ttl_seconds
        await self._store.put(self._store.path("cache", key), {"value": value, "until": until, "expire_at": moment(until)})


def open_firestore(
    project: str, clock: Clock, *, database: str = DATABASE, emulator: str | None = None, spacing_seconds: float = 1.0
) -> Guards:
    """Guards in a project's Firestore, or in an emulator at host:port. Nothing is connected yet.

    An instance that is kept busy writes each rate limit about once in `spacing_seconds`; with 0 nothing is leased.
    """
    store = FirestoreStore(project, clock, database=database, emulator=emulator)
    limiter = FirestoreRateLimiter(store, clock, spacing_seconds=spacing_seconds)

    async def close() -> None:
        await limiter.close()
        await store.close()

    return Guards(
        FirestoreIdempotency(store, clock), limiter, FirestoreBreaker(store, clock), FirestoreCache(store, clock), closing=close
    )


def _claim_fields(record: ClaimRecord) -> Fields:
    return {
        "token": record.token,
        "lease_until": record.lease_until,
        "done": record.done,
        "result": record.result,
        "kept_until": record.expires_at,
        "expire_at": moment(record.expires_at),
    }


def _claim_record(document: Document) -> ClaimRecord:
    fields = document.fields
    return ClaimRecord(
        cast(str, fields["token"]),
        cast(float, fields["lease_until"]),
        cast(float, fields["kept_until"]),
        cast(bool, fields["done"]),
        cast("bytes | None", fields["result"]),
    )


def _circuit(document: Document | None) -> Circuit:
    if document is None:
        return Circuit()
    fields = document.fields
    return Circuit(cast(BreakerState, fields["state"]), cast(int, fields["streak"]), cast(float, fields["until"]))
