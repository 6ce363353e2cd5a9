"""The pipeline: order, copies, crashes at every point, and what becomes of errors."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bus import Delivery, Message, Outcome
from shared.errors import BusUnavailable, ConfigurationError, EnvelopeRejected, InputError, StoreUnavailable
from shared.messages import Envelope, StepCompleted
from shared.runtime.letters import noted_failure
from shared.runtime.pipeline import Pipeline, Work, claim_key
from shared.telemetry import metrics
from tests.support.doubles import RING, WORKFLOW, Crash, RememberingBus, SabotagedBus, SabotagedIdempotency, Saboteur, Stage

LEASE_SECONDS = 330.0


class Author:
    """Dear work: every call gives another text, in a message whose id says what it answers."""

    def __init__(self, stage: Stage) -> None:
        self.calls = 0
        self._stage = stage

    async def __call__(self, envelope: Envelope) -> Sequence[Message]:
        self.calls += 1
        reply = StepCompleted(workflow=WORKFLOW, step="draft", attempt=1, output={"text": f"version {self.calls}"})
        return [
            self._stage.sender("writer").message(
                "workflow-events", reply, id=f"{envelope.id}/completed", subject="draft", workflow=WORKFLOW
            )
        ]


def pipeline(stage: Stage, work: Work, *, keeps_reply: bool = True, saboteur: Saboteur | None = None, **changes: Any) -> Pipeline:
    """The pipeline of one process."""
    if saboteur is None:
        return Pipeline(stage.link(**changes), "writer", work, longest_seconds=LEASE_SECONDS, keeps_reply=keeps_reply)
    witness = saboteur

    async def observed(envelope: Envelope) -> Sequence[Message]:
        witness.before("work")
        messages = await work(envelope)
        witness.done("work")
        return messages

    link = stage.link(
        bus=SabotagedBus(stage.bus, saboteur), idempotency=SabotagedIdempotency(stage.guards.idempotency, saboteur), **changes
    )
    return Pipeline(link, "writer", observed, longest_seconds=LEASE_SECONDS, keeps_reply=keeps_reply)


def failing(*errors: BaseException) -> tuple[Work, list[str]]:
    """Work that raises one error after the other and then gives nothing; and the ids that it was given."""
    seen: list[str] = []

    async def work(envelope: Envelope) -> Sequence[Message]:
        seen.append(envelope.id)
        if len(seen) <= len(errors):
            raise errors[len(seen) - 1]
        return ()

    return work, seen


async def test_a_delivery_is_claimed_worked_on_stored_published_and_marked_in_this_order() -> None:
    stage, saboteur = Stage(), Saboteur()
    assert await pipeline(stage, Author(stage), saboteur=saboteur)(stage.dispatched()) is Outcome.ACK
    assert saboteur.journal == ["claim", "work", "store", "publish", "mark"]


async def test_work_that_can_be_repeated_is_only_marked() -> None:
    stage, saboteur = Stage(), Saboteur()
    assert await pipeline(stage, Author(stage), keeps_reply=False, saboteur=saboteur)(stage.dispatched()) is Outcome.ACK
    assert saboteur.journal == ["claim", "work", "publish", "mark"]


@pytest.mark.parametrize(
    ("reason", "large", "key", "altered", "garbage", "late"),
    [
        ("size", True, "unknown-key\n", True, True, True),
        ("key", False, "unknown-key\n", True, True, True),
        ("signature", False, None, True, True, True),
        ("schema", False, None, False, True, True),
        ("expired", False, None, False, False, True),
    ],
)
async def test_checks_are_made_in_order_and_nothing_is_done_before_all_hold(
    reason: str, large: bool, key: str | None, altered: bool, garbage: bool, late: bool
) -> None:
    stage, saboteur = Stage(), Saboteur()
    good = stage.dispatched()
    data = b"no envelope" if garbage else good.data
    attributes = RING.sign(good.topic, data)
    data += b" " * 600_000 if large else b" " if altered else b""
    if key is not None:
        attributes["hmac-key-id"] = key
    if late:
        await stage.clock.advance(90_000)
    before = metrics.value("envelope.rejected", reason=reason)
    handler = pipeline(stage, Author(stage), saboteur=saboteur)
    assert await handler(Delivery(good.subscription, good.topic, data, attributes, "1", 1)) is Outcome.ACK
    assert metrics.value("envelope.rejected", reason=reason) == before + 1
    assert saboteur.journal == []


async def test_a_redelivered_task_calls_the_model_once() -> None:
    stage = Stage()
    author = Author(stage)
    for _ in range(3):
        assert await pipeline(stage, author)(stage.dispatched()) is Outcome.ACK
    assert author.calls == 1
    assert len(stage.bus.published) == 1


async def test_a_message_to_another_topic_is_refused() -> None:
    stage = Stage()
    author = Author(stage)
    good = stage.dispatched()
    moved = Delivery("agent-critic.critic", "agent-critic", good.data, good.attributes, "1", 1)
    assert await pipeline(stage, author)(moved) is Outcome.ACK
    assert author.calls == 0


CRASHES = [
    ("claim", False, 1),
    ("claim", True, 1),
    ("work", False, 1),
    ("work", True, 2),
    ("store", False, 2),
    ("store", True, 1),
    ("publish", False, 1),
    ("publish", True, 1),
    ("mark", False, 1),
    ("mark", True, 1),
]
ERRORS: dict[str, Callable[[], BaseException]] = {
    "exception": lambda: RuntimeError("!"),
    "cancellation": asyncio.CancelledError,
    "kill": Crash,
}


async def attempt(handler: Pipeline, delivery: Delivery) -> Outcome:
    """One delivery by a process that may not survive it."""
    try:
        return await handler(delivery)
    except (Crash, asyncio.CancelledError):
        return Outcome.RETRY


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize(("point", "after", "calls"), CRASHES)
async def test_a_crash_at_any_point_leaves_one_result_after_redelivery(point: str, after: bool, calls: int, kind: str) -> None:
    stage = Stage()
    author = Author(stage)
    saboteur = Saboteur(point, after, ERRORS[kind]())
    outcome = await attempt(pipeline(stage, author, saboteur=saboteur), stage.dispatched())
    assert outcome is Outcome.RETRY
    outcome, waited = await delivered_again(stage, pipeline(stage, author))
    assert outcome is Outcome.ACK
    assert author.calls == calls
    assert_one_result(stage)
    # Only who was killed, or failed between its claim and its work, leaves a lease behind, which the copy sits out.
    held = (point, after) == ("claim", True) or (kind == "kill" and held_at(point, after))
    assert 14 < waited <= 16 if held else waited == 0


def held_at(point: str, after: bool) -> bool:
    """Whether a process killed there leaves a claim behind that only its lease ends."""
    return point in ("claim", "work", "store") and (point, after) not in (("claim", False), ("store", True))


async def delivered_again(stage: Stage, handler: Pipeline) -> tuple[Outcome, float]:
    """One more delivery, while time passes: what became of it, and the seconds that it took."""
    began = stage.clock.monotonic()
    handling = asyncio.create_task(handler(stage.dispatched()))
    await settle()
    while not handling.done():
        await stage.clock.advance(0.5)
    return await handling, stage.clock.monotonic() - began


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def assert_one_result(stage: Stage) -> None:
    assert stage.bus.published
    assert len({message.data for message in stage.bus.published}) == 1


crash = st.tuples(st.sampled_from(["claim", "work", "store", "publish", "mark"]), st.booleans(), st.sampled_from(sorted(ERRORS)))


@settings(deadline=None, max_examples=200)
@given(st.lists(crash, max_size=6))
def test_any_series_of_crashes_leaves_one_result(crashes: list[tuple[str, bool, str]]) -> None:
    asyncio.run(survive(crashes))


async def survive(crashes: list[tuple[str, bool, str]]) -> None:
    stage = Stage()
    author = Author(stage)
    calls_when_stored: int | None = None
    for point, after, kind in crashes:
        saboteur = Saboteur(point, after, ERRORS[kind]())
        with suppress(Crash, asyncio.CancelledError):
            await delivered_again(stage, pipeline(stage, author, saboteur=saboteur))
        if calls_when_stored is None and "store" in saboteur.journal and (point, after) != ("store", False):
            calls_when_stored = author.calls
    assert (await delivered_again(stage, pipeline(stage, author)))[0] is Outcome.ACK
    assert calls_when_stored in (None, author.calls)
    assert_one_result(stage)


@pytest.mark.parametrize(("point", "after", "calls"), [one for one in CRASHES if one[0] != "store"])
async def test_repeatable_work_is_repeated_until_its_messages_are_out(point: str, after: bool, calls: int) -> None:
    stage = Stage()
    author = Author(stage)
    await attempt(pipeline(stage, author, keeps_reply=False, saboteur=Saboteur(point, after, Crash())), stage.dispatched())
    assert (await delivered_again(stage, pipeline(stage, author, keeps_reply=False)))[0] is Outcome.ACK
    assert {stage.opened(message).id for message in stage.bus.published} == {f"{WORKFLOW}/draft/1/completed"}
    assert author.calls in (calls, 2)


async def test_repeatable_work_whose_publishing_failed_is_repeated_at_once() -> None:
    stage = Stage()
    author = Author(stage)
    saboteur = Saboteur("publish", error=BusUnavailable("down"))
    assert await pipeline(stage, author, keeps_reply=False, saboteur=saboteur)(stage.dispatched()) is Outcome.RETRY
    assert await pipeline(stage, author, keeps_reply=False)(stage.dispatched()) is Outcome.ACK
    assert author.calls == 2


async def test_a_copy_of_work_in_flight_is_to_come_again() -> None:
    stage = Stage()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(envelope: Envelope) -> Sequence[Message]:
        begun.set()
        await go_on.wait()
        return ()

    first = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await begun.wait()
    duplicates = metrics.value("delivery.duplicate")
    copy = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await stage.clock.advance(2 * LEASE_SECONDS)
    assert await copy is Outcome.RETRY
    assert metrics.value("delivery.duplicate") == duplicates + 1
    go_on.set()
    assert await first is Outcome.ACK
    assert await pipeline(stage, work)(stage.dispatched()) is Outcome.ACK


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("point", ["work", "publish"])
@pytest.mark.parametrize("keeps_reply", [True, False])
async def test_at_most_once_a_copy_of_work_that_began_is_dropped(point: str, kind: str, keeps_reply: bool) -> None:
    stage = Stage()
    author = Author(stage)
    saboteur = Saboteur(point, error=ERRORS[kind](), after=point == "work")
    await attempt(pipeline(stage, author, keeps_reply=keeps_reply, saboteur=saboteur, at_most_once=True), stage.dispatched())
    for _ in range(2):
        handler = pipeline(stage, author, keeps_reply=keeps_reply, at_most_once=True)
        assert await handler(stage.dispatched()) is Outcome.ACK
        await stage.clock.advance(LEASE_SECONDS + 1)
    assert author.calls == 1


async def test_without_idempotency_every_copy_is_worked_on() -> None:
    stage = Stage()
    author = Author(stage)
    for _ in range(2):
        assert await pipeline(stage, author, idempotency=None)(stage.dispatched()) is Outcome.ACK
    assert author.calls == 2
    assert len(stage.bus.published) == 2


async def test_a_permanent_error_is_acknowledged_and_logged_once_without_payload(caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage()
    work, seen = failing(InputError("the step cannot be used; mend it"))
    with caplog.at_level(logging.INFO):
        assert await pipeline(stage, work)(stage.dispatched()) is Outcome.ACK
    assert len(seen) == 1
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.__dict__["status"] == "refused"
    assert record.__dict__["error"]["type"] == "InputError"
    assert "private" not in str(record.__dict__)


async def test_an_envelope_that_the_work_refuses_counts_as_rejected() -> None:
    stage = Stage()
    work, _ = failing(EnvelopeRejected("type", "not for me"))
    before = metrics.value("envelope.rejected", reason="type")
    assert await pipeline(stage, work)(stage.dispatched()) is Outcome.ACK
    assert metrics.value("envelope.rejected", reason="type") == before + 1


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (StoreUnavailable("the database is away"), logging.WARNING),
        (ZeroDivisionError("a very private brief"), logging.ERROR),
        (ConfigurationError("the database's key has expired; set another"), logging.ERROR),
    ],
)
async def test_other_errors_are_to_come_again_and_give_the_claim_back(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()
    work, seen = failing(error)
    handler = pipeline(stage, work)
    with caplog.at_level(logging.INFO):
        assert await handler(stage.dispatched()) is Outcome.RETRY
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert record.levelno == level
    assert "private" not in str(record.__dict__["error"]) + record.getMessage()
    assert await handler(stage.dispatched()) is Outcome.ACK
    assert len(seen) == 2


async def test_a_cancelled_handler_gives_its_claim_back_and_stays_cancelled() -> None:
    stage = Stage()
    begun = asyncio.Event()

    async def work(envelope: Envelope) -> Sequence[Message]:
        begun.set()
        await asyncio.Event().wait()
        return ()

    task = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    author = Author(stage)
    assert await pipeline(stage, author)(stage.dispatched()) is Outcome.ACK
    assert author.calls == 1


async def test_a_claim_that_cannot_be_given_back_hides_no_cancellation() -> None:
    stage = Stage()

    class Unreachable(SabotagedIdempotency):
        async def release(self, key: str, *, token: str) -> bool:
            raise StoreUnavailable("the guards are away")

    work, _ = failing(asyncio.CancelledError())
    handler = pipeline(stage, work, idempotency=Unreachable(stage.guards.idempotency, Saboteur()))
    with pytest.raises(asyncio.CancelledError):
        await handler(stage.dispatched())


async def test_a_worker_that_lost_its_lease_overwrites_nothing() -> None:
    stage = Stage()
    slow, quick = Author(stage), Author(stage)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(envelope: Envelope) -> Sequence[Message]:
        begun.set()
        await go_on.wait()
        return await slow(envelope)

    first = asyncio.create_task(pipeline(stage, work)(stage.dispatched()))
    await begun.wait()
    await stage.clock.advance(LEASE_SECONDS)
    saboteur = Saboteur("publish", error=BusUnavailable("down"))
    assert await pipeline(stage, quick, saboteur=saboteur)(stage.dispatched()) is Outcome.RETRY
    go_on.set()
    assert await first is Outcome.ACK
    assert await pipeline(stage, quick)(stage.dispatched()) is Outcome.ACK
    assert quick.calls == 1
    # Both replies bear one id: whoever gets them takes the first.
    assert {stage.opened(message).id for message in stage.bus.published} == {f"{WORKFLOW}/draft/1/completed"}


async def test_work_without_a_message_is_marked_as_done() -> None:
    stage = Stage()
    work, seen = failing()
    for _ in range(2):
        assert await pipeline(stage, work)(stage.dispatched()) is Outcome.ACK
    assert len(seen) == 1
    assert stage.bus.published == []


async def test_functions_claim_the_same_message_apart_from_each_other() -> None:
    stage = Stage()
    delivery = stage.dispatched()
    envelope = stage.opened(Message(delivery.topic, delivery.data, delivery.attributes))
    assert claim_key("writer", envelope) == f"writer:/agent-team/state#{WORKFLOW}/draft/1"
    assert claim_key("critic", envelope) != claim_key("writer", envelope)


async def test_a_stored_reply_is_signed_anew_for_its_topic() -> None:
    stage, shared = Stage(), RememberingBus()
    author = Author(stage)
    saboteur = Saboteur("publish", error=BusUnavailable("down"))
    await pipeline(stage, author, saboteur=saboteur)(stage.dispatched())
    await pipeline(stage, author, bus=shared)(stage.dispatched())
    (message,) = shared.published
    assert message.topic == "workflow-events"
    assert stage.opened(message).causationid is None


async def last_failure(stage: Stage) -> dict[str, Any] | None:
    delivery = stage.dispatched()
    envelope = stage.opened(Message(delivery.topic, delivery.data, delivery.attributes))
    return await noted_failure(stage.guards.cache, claim_key("writer", envelope))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (StoreUnavailable("the store is away"), "the store is away"),
        (ConfigurationError("a key is missing"), "a key is missing"),
        (ZeroDivisionError("a secret"), ""),
    ],
)
async def test_a_delivery_that_will_be_tried_again_notes_why(error: Exception, message: str) -> None:
    stage = Stage()
    work, _ = failing(error)
    assert await pipeline(stage, work, cache=stage.guards.cache)(stage.dispatched()) is Outcome.RETRY
    note = await last_failure(stage)
    assert note == {"type": type(error).__name__, "message": message, "at": stage.clock.now().isoformat()}


async def test_only_failures_are_noted_and_a_copy_of_work_in_progress_is_none() -> None:
    class NoCache:
        async def get(self, key: str) -> bytes | None:
            raise AssertionError

        async def put(self, key: str, value: bytes, *, ttl_seconds: float) -> None:
            raise AssertionError("something was noted")

    stage, started, go_on = Stage(), asyncio.Event(), asyncio.Event()

    async def slow(_envelope: Envelope) -> Sequence[Message]:
        started.set()
        await go_on.wait()
        return ()

    handler = pipeline(stage, slow, cache=NoCache())
    first = asyncio.create_task(handler(stage.dispatched()))
    await started.wait()
    assert (await delivered_again(stage, handler))[0] is Outcome.RETRY
    go_on.set()
    assert await first is Outcome.ACK
    refused, _ = failing(InputError("no"))
    assert await pipeline(stage, refused, cache=NoCache())(stage.dispatched(attempt=2)) is Outcome.ACK
    assert await last_failure(stage) is None
