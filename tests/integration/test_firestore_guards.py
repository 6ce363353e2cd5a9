"""What the guards in Firestore promise beyond the conformance suite: many processes, leases of tokens, and clear errors."""

import asyncio
import inspect
import json
import logging
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import IO, Any, cast

import pytest
from google.api_core import exceptions as google
from google.auth import exceptions as auth

from shared.clock import ManualClock, SystemClock
from shared.errors import AgentTeamError, ConfigurationError, Permanent, RateLimited, StoreUnavailable
from shared.guards import Done, Guards, InFlight, New, Window, open_guards
from shared.guards.firestore import open_firestore
from shared.guards.firestore_errors import translate
from shared.guards.firestore_store import Fields, FirestoreStore, seconds
from tests.support import firestore
from tests.support.live import until

PROCESSES = 8


@pytest.fixture(scope="module")
def emulator() -> Iterator[str]:
    firestore.require()
    with firestore.emulator() as address:
        yield address


@pytest.fixture
def project() -> str:
    return f"test-{random.getrandbits(40):x}"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator on a busy machine takes its time."""
    for name in ("_CALL_SECONDS", "_ATTEMPT_SECONDS"):
        monkeypatch.setattr(f"shared.guards.firestore_store.{name}", 60.0)


@pytest.fixture
def clock() -> ManualClock:
    """The time of day, which stands still."""
    return ManualClock(datetime.now(UTC))


@pytest.fixture
async def still(emulator: str, project: str, clock: ManualClock) -> AsyncIterator[Guards]:
    """Guards for which no time passes but what the test lets pass."""
    opened = open_firestore(project, clock, emulator=emulator)
    yield opened
    await opened.close()


@pytest.fixture
async def guards(emulator: str, project: str) -> AsyncIterator[Guards]:
    opened = open_firestore(project, SystemClock(), emulator=emulator)
    yield opened
    await opened.close()


@pytest.fixture
async def store(emulator: str, project: str) -> AsyncIterator[FirestoreStore]:
    opened = FirestoreStore(project, SystemClock(), emulator=emulator)
    yield opened
    await opened.close()


async def stored(store: FirestoreStore, guard: str, key: str) -> Fields:
    document = await store.read(store.path(guard, key))
    assert document is not None
    return document.fields


# --- many processes --------------------------------------------------------------------------------------------------------------


@contextmanager
def instances(count: int, *arguments: object) -> Iterator[list["subprocess.Popen[str]"]]:
    """Processes that are ready to begin; ended at the latest when the block is left."""
    command = [sys.executable, "-m", "tests.support.firestore_process", *map(str, arguments)]
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert cast("IO[str]", process.stdout).readline() == "ready\n"
        yield started


def begin(processes: list["subprocess.Popen[str]"]) -> list[Any]:
    """Let all begin at once, and return what each one tells."""
    for process in processes:
        stdin = cast("IO[str]", process.stdin)
        stdin.write("go\n")
        stdin.flush()
    return [json.loads(cast("IO[str]", process.stdout).readline()) for process in processes]


def test_of_eight_processes_that_race_for_the_same_ids_each_id_is_claimed_once(emulator: str, project: str) -> None:
    count = 300
    with instances(PROCESSES, emulator, project, "claim", count, 60) as processes:
        won = begin(processes)

    assert sorted(key for one in won for key in one) == sorted(f"message {number}" for number in range(count))


async def test_ids_of_a_killed_process_are_free_after_the_lease_and_its_late_completion_is_refused(
    emulator: str, project: str, guards: Guards
) -> None:
    with instances(1, emulator, project, "claim", 5, 600) as [process]:
        [held] = begin([process])
        process.kill()
        process.wait()
    assert len(held) == 5

    refused = [await guards.idempotency.claim(key, lease_seconds=60, ttl_seconds=60) for key in held]
    assert all(isinstance(one, InFlight) for one in refused)
    longest = max(one.seconds for one in refused if isinstance(one, InFlight))
    later = open_firestore(project, ManualClock(datetime.now(UTC) + timedelta(seconds=longest)), emulator=emulator)
    for key, token in held.items():
        mine = await later.idempotency.claim(key, lease_seconds=60, ttl_seconds=60)
        assert isinstance(mine, New)
        assert not await later.idempotency.complete(key, token=token, result=b"late")
        assert await later.idempotency.complete(key, token=mine.token, result=b"mine")
    await later.close()


def test_1600_callers_in_eight_processes_never_pass_the_limit_and_use_up_all_but_a_hundredth(emulator: str, project: str) -> None:
    rate, burst, duration = 50.0, 50.0, 5.0
    with instances(PROCESSES, emulator, project, "reserve", 200, rate, burst, duration, 0) as processes:
        calls = [tuple(call) for told in begin(processes) for call in told]

    def granted(first: float) -> int:
        return sum(first <= through <= first + duration for _, through in calls)

    assert granted(min(arrived for arrived, _ in calls)) <= burst + rate * duration
    # A full bucket overflows until the first of them is written: what flows past by then is nobody's.
    assert granted(min(through for _, through in calls)) >= 0.99 * (burst + rate * duration)


def test_a_busy_fleet_writes_far_less_often_than_it_calls(emulator: str, project: str) -> None:
    with instances(2, emulator, project, "reserve", 15, 100, 100, 4, 0.5) as processes:
        calls = [call for told in begin(processes) for call in told]

    async def writes() -> object:
        store = FirestoreStore(project, SystemClock(), emulator=emulator)
        fields = await stored(store, "buckets", "model")
        await store.close()
        return fields["writes"]

    # Whoever is served of a lease waits for nothing; a write takes as long as the machine lets it.
    assert median(through - arrived for arrived, through in calls) < 0.5
    assert len(calls) > 60
    assert cast(int, asyncio.run(writes())) < len(calls) / 4


def test_many_processes_never_pass_a_windows_limit_and_use_it_up(emulator: str, project: str) -> None:
    limit, length = 300.0, 2.0
    with instances(PROCESSES, emulator, project, "window", 30, limit, length, 5, 0.05) as processes:
        calls = sorted(tuple(call) for told in begin(processes) for call in told)

    first = calls[0][0] // length
    for number in range(1, 4):
        end = (first + number) * length
        # An answer takes its time: who was served of one window may go through in the next, but never the other way round.
        used = sum(cost for _, through, cost in calls if through < end)
        assert used <= number * limit
        assert number == 1 or used >= 0.9 * (number - 1) * limit


# --- the limiter -----------------------------------------------------------------------------------------------------------------


async def test_callers_at_once_share_a_write(guards: Guards, store: FirestoreStore) -> None:
    waits = await asyncio.gather(*(guards.limiter.reserve("b", rate=1, burst=100) for _ in range(200)))

    assert sorted(waits) == waits
    assert (await stored(store, "buckets", "b"))["writes"] == 1


async def test_who_calls_often_is_served_of_a_lease(guards: Guards, store: FirestoreStore) -> None:
    for _ in range(100):
        assert await guards.limiter.reserve("b", rate=200, burst=1000) == 0

    assert cast(int, (await stored(store, "buckets", "b"))["writes"]) < 20


def minute(cost: float, limit: float = 1000) -> list[Window]:
    return [Window("minute", limit, cost, 60, 60)]


async def test_who_calls_often_is_served_of_a_lease_of_windows_too(guards: Guards, store: FirestoreStore) -> None:
    for _ in range(100):
        assert await guards.limiter.reserve("b", rate=200, burst=1000, windows=minute(5)) == 0

    assert cast(int, (await stored(store, "buckets", "b"))["writes"]) < 20


async def test_what_is_leased_of_a_window_is_used_up_before_anybody_waits(guards: Guards) -> None:
    began = time.monotonic()
    for _ in range(200):
        assert await guards.limiter.reserve("b", rate=1000, burst=1000, windows=minute(5)) == 0

    left = 60 - (time.monotonic() - began)
    assert left > 0, "the minute is over"
    assert await guards.limiter.reserve("b", rate=1000, burst=1000, windows=minute(1)) > left - 10


async def test_a_window_ends_when_the_caller_said_however_late_it_is_written(
    still: Guards, clock: ManualClock, store: FirestoreStore
) -> None:
    await still.limiter.reserve("b", rate=10, burst=10, cost=20)
    asked_at = seconds(clock.now())
    waiting = asyncio.create_task(still.limiter.reserve("b", rate=10, burst=10, windows=minute(5)))
    await until(lambda: clock.sleepers == 1)
    await clock.advance(0.7)
    assert clock.sleepers == 1, "it was not written late"
    await clock.advance(0.2)
    await waiting

    _, ends, _ = cast("tuple[float, ...]", (await stored(store, "buckets", "b"))["window_minute"])
    assert ends == pytest.approx(asked_at + 60, abs=0.001)


async def test_corrections_wait_for_the_next_write_and_are_lost_by_none(
    still: Guards, clock: ManualClock, store: FirestoreStore
) -> None:
    async def known() -> tuple[object, float]:
        fields = await stored(store, "buckets", "b")
        return fields["writes"], cast("tuple[float, ...]", fields["window_minute"])[2]

    await still.limiter.reserve("b", rate=10, burst=10, windows=minute(600))
    for _ in range(10):
        await still.limiter.settle("b", window="minute", cost=-10, age_seconds=0)
    assert await known() == (1, 600)
    await still.limiter.reserve("b", rate=10, burst=10, cost=5, windows=minute(200))
    await still.limiter.settle("b", window="minute", cost=50, age_seconds=0)

    async with asyncio.timeout(60):
        while await known() != (3, 750):
            await clock.advance(0.1)


async def test_what_a_write_gives_back_is_not_used_meanwhile(guards: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(20):
        await guards.limiter.reserve("b", rate=100, burst=1000)
    under_way, may_end, replace = asyncio.Event(), asyncio.Event(), FirestoreStore.replace

    async def slow(*arguments: Any) -> Any:
        under_way.set()
        await may_end.wait()
        return await replace(*arguments)

    monkeypatch.setattr(FirestoreStore, "replace", slow)
    writing = asyncio.create_task(guards.limiter.reserve("b", rate=100, burst=1000, cost=900))
    await under_way.wait()
    meanwhile = asyncio.create_task(guards.limiter.reserve("b", rate=100, burst=1000, cost=0.5))
    for _ in range(20):
        await asyncio.sleep(0)

    assert not meanwhile.done()
    may_end.set()
    assert await writing == await meanwhile == 0


async def test_who_must_wait_anyway_is_written_together_with_others(
    still: Guards, clock: ManualClock, store: FirestoreStore
) -> None:
    await still.limiter.reserve("b", rate=10, burst=10, cost=10)
    await still.limiter.reserve("b", rate=10, burst=10, cost=20)
    first = asyncio.create_task(still.limiter.reserve("b", rate=10, burst=10))
    await until(lambda: clock.sleepers == 1)
    await clock.advance(0.1)
    second = asyncio.create_task(still.limiter.reserve("b", rate=10, burst=10))
    await clock.advance(0.9)

    assert 0 < await first < await second < 2.2
    assert (await stored(store, "buckets", "b"))["writes"] == 3


async def test_who_would_wait_too_long_is_refused_at_once_and_without_a_write(still: Guards, store: FirestoreStore) -> None:
    await still.limiter.reserve("b", rate=1, burst=1, cost=60)
    async with asyncio.timeout(60):  # nobody moves the clock
        with pytest.raises(RateLimited):
            await still.limiter.reserve("b", rate=1, burst=1, max_wait_seconds=5)

    assert (await stored(store, "buckets", "b"))["writes"] == 1


async def test_a_caller_who_gave_up_takes_nothing(still: Guards, clock: ManualClock) -> None:
    await still.limiter.reserve("b", rate=10, burst=10, cost=20)
    given_up = asyncio.create_task(still.limiter.reserve("b", rate=10, burst=10, cost=1000))
    await until(lambda: clock.sleepers == 1)
    given_up.cancel()
    await asyncio.wait([given_up])

    another = asyncio.create_task(still.limiter.reserve("b", rate=10, burst=10))
    await clock.advance(1)
    assert await another < 2


async def test_a_penalty_of_one_instance_holds_the_others_back(emulator: str, project: str, guards: Guards) -> None:
    other = open_firestore(project, SystemClock(), emulator=emulator)
    assert await guards.limiter.reserve("b", rate=10, burst=10) == 0
    await other.limiter.penalise("b", 600)

    assert await guards.limiter.reserve("b", rate=10, burst=10) > 500
    await other.close()


async def test_closing_refuses_who_still_waits_for_an_answer(still: Guards, clock: ManualClock) -> None:
    await still.limiter.reserve("b", rate=1, burst=1, cost=60)
    waiting = asyncio.create_task(still.limiter.reserve("b", rate=1, burst=1))
    await until(lambda: clock.sleepers == 1)
    await still.close()

    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting


# --- documents -------------------------------------------------------------------------------------------------------------------


async def test_keys_of_any_form_are_keys(guards: Guards) -> None:
    for key in ("wf_1/draft/1", "..", "__x__", "ä" * 2000, ""):
        claimed = await guards.idempotency.claim(key, lease_seconds=10, ttl_seconds=60)
        assert isinstance(claimed, New)
        assert await guards.idempotency.complete(key, token=claimed.token, result=key.encode())
        assert await guards.idempotency.claim(key, lease_seconds=10, ttl_seconds=60) == Done(key.encode())


async def test_every_document_says_when_it_may_be_deleted(guards: Guards, store: FirestoreStore) -> None:
    await guards.idempotency.claim("k", lease_seconds=10, ttl_seconds=60)
    await guards.limiter.reserve("k", rate=1, burst=60, cost=10)
    await guards.breaker.after("k", success=False)
    await guards.cache.put("k", b"v", ttl_seconds=60)

    for guard in ("claims", "buckets", "breakers", "cache"):
        expire_at = (await stored(store, guard, "k"))["expire_at"]
        assert isinstance(expire_at, datetime)
        assert expire_at > datetime.now(UTC)


async def test_another_instance_can_complete_what_one_claimed(emulator: str, project: str, guards: Guards) -> None:
    other = open_firestore(project, SystemClock(), emulator=emulator)
    claimed = await guards.idempotency.claim("k", lease_seconds=10, ttl_seconds=60)
    assert isinstance(claimed, New)
    assert await other.idempotency.complete("k", token=claimed.token, result=b"one")
    assert await guards.idempotency.complete("k", token=claimed.token, result=b"two")
    assert await other.idempotency.claim("k", lease_seconds=10, ttl_seconds=60) == Done(b"two")
    await other.close()


async def test_a_value_that_no_document_can_hold_is_not_cached(guards: Guards) -> None:
    await guards.cache.put("k", bytes(1_100_000), ttl_seconds=60)

    assert await guards.cache.get("k") is None


async def test_a_result_that_no_document_can_hold_is_a_permanent_error(guards: Guards) -> None:
    claimed = await guards.idempotency.claim("k", lease_seconds=10, ttl_seconds=60)
    assert isinstance(claimed, New)
    with pytest.raises(Permanent, match="1 MiB"):
        await guards.idempotency.complete("k", token=claimed.token, result=bytes(1_100_000))


# --- errors ----------------------------------------------------------------------------------------------------------------------

WHERE = "Firestore (projects/p/databases/(default))"
SECRET = "hunter2"
CONFIGURATION = (
    google.NotFound,
    google.Forbidden,
    google.Unauthorized,
    google.FailedPrecondition,
    google.Redirection,
    google.MethodNotAllowed,
    google.MethodNotImplemented,
    google.AsyncRestUnsupportedParameterError,
)
PERMANENT = (google.InvalidArgument, google.OutOfRange)


def _driver_errors() -> list[type[Exception]]:
    return [cls for _, cls in inspect.getmembers(google, inspect.isclass) if issubclass(cls, Exception)]


def _intended(cls: type[Exception]) -> type[AgentTeamError]:
    if issubclass(cls, CONFIGURATION):
        return ConfigurationError
    return Permanent if issubclass(cls, PERMANENT) else StoreUnavailable


@pytest.mark.parametrize("cls", _driver_errors(), ids=lambda cls: cls.__name__)
def test_each_error_of_the_driver_is_translated(cls: type[Exception]) -> None:
    error = cls.__new__(cls)
    Exception.__init__(error, f"the document {SECRET} is wrong")
    _says_one_clear_line(translate(error, WHERE), _intended(cls))


@pytest.mark.parametrize(
    ("error", "intended"),
    [
        (auth.DefaultCredentialsError(f"no {SECRET}"), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(f"no {SECRET}"), ConfigurationError),  # type: ignore[no-untyped-call]
        (auth.RefreshError(f"no {SECRET}", retryable=True), StoreUnavailable),  # type: ignore[no-untyped-call]
        (auth.TransportError(f"no {SECRET}"), StoreUnavailable),  # type: ignore[no-untyped-call]
        (TimeoutError(), StoreUnavailable),
        (OSError(f"no {SECRET}"), StoreUnavailable),
        (RuntimeError(f"no {SECRET}"), StoreUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_of_credentials_and_network_is_translated(error: Exception, intended: type[AgentTeamError]) -> None:
    _says_one_clear_line(translate(error, WHERE), intended)


def test_an_error_of_ours_passes_as_it_is() -> None:
    error = RateLimited("later")
    assert translate(error, WHERE) is error


def test_the_walk_over_the_drivers_errors_finds_them() -> None:
    found = _driver_errors()
    assert len(found) > 35
    assert {_intended(cls) for cls in found} == {ConfigurationError, Permanent, StoreUnavailable}


def _says_one_clear_line(error: AgentTeamError, intended: type[AgentTeamError]) -> None:
    assert type(error) is intended
    assert "projects/p" in str(error)
    assert "\n" not in str(error)
    assert SECRET not in str(error)


async def test_a_server_that_is_not_there_is_unavailable_within_seconds() -> None:
    guards = open_firestore("p", SystemClock(), emulator="127.0.0.1:1")
    async with asyncio.timeout(30):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            await guards.cache.get("k")
        with pytest.raises(StoreUnavailable):
            await guards.limiter.reserve("b", rate=1, burst=1)
    await guards.close()


async def test_without_credentials_the_error_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(**_: object) -> object:
        raise auth.DefaultCredentialsError("none")  # type: ignore[no-untyped-call]

    monkeypatch.setattr("shared.guards.firestore_store.default_credentials", none)
    with pytest.raises(ConfigurationError, match="gcloud auth application-default login"):
        await open_firestore("p", SystemClock()).cache.get("k")


async def test_every_race_lost_is_unavailable(guards: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> None:
        return None

    for method in ("create", "replace", "_commit"):
        monkeypatch.setattr(FirestoreStore, method, lost)
    monkeypatch.setattr("shared.guards.firestore_store._LONGEST_PAUSE_SECONDS", 0.001)
    attempts = [
        guards.idempotency.claim("k", lease_seconds=1, ttl_seconds=1),
        guards.limiter.reserve("k", rate=1, burst=1),
        guards.limiter.penalise("k", 1),
        guards.breaker.after("k", success=False),
        guards.cache.put("k", b"v", ttl_seconds=1),
    ]
    for attempt in attempts:
        with pytest.raises(StoreUnavailable, match="at once"):
            await attempt


async def test_a_clock_that_is_wrong_is_told_once(emulator: str, project: str, caplog: pytest.LogCaptureFixture) -> None:
    guards = open_firestore(project, ManualClock(datetime(2020, 1, 1, tzinfo=UTC)), emulator=emulator)
    with caplog.at_level(logging.WARNING):
        for key in "ab":
            await guards.cache.put(key, b"v", ttl_seconds=1)
    await guards.close()

    [warning] = [record for record in caplog.records if "clock" in record.message]
    assert "behind Firestore's" in warning.message


def test_a_project_is_needed() -> None:
    with pytest.raises(ConfigurationError, match="GCP_PROJECT_ID"):
        open_guards("firestore", SystemClock())


async def test_the_settings_open_them_with_fallbacks() -> None:
    guards = open_guards("firestore", SystemClock(), gcp_project="p")
    await guards.close()
