"""Dead letters sent again: what each needs, to whom, how often and how fast."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from shared.bus import Bus, Delivery, Message, Outcome, Subscription
from shared.bus.memory import MemoryBus
from shared.errors import BusUnavailable, InputError, StoreUnavailable
from shared.messages import StepCompleted, WorkflowRequested
from shared.runtime import load
from shared.runtime.letters import addressed
from shared.runtime.redrive import Redriven, Wanted, redrive_page
from shared.telemetry import metrics
from tests.support.doubles import RING, WORKFLOW, SabotagedBus, Saboteur, Stage, delivery, signed
from tests.support.live import Live, definition, live, start, until

WRITER = "agent-writer.writer"
REPLY = StepCompleted(workflow=WORKFLOW, step="draft", attempt=1, output=1)


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


async def handle(team: Live, function: str, arrived: Delivery) -> Outcome:
    return await load(function).handlers(team.runtime)[arrived.topic](arrived)


async def die(team: Live, message: Message, subscription: str, *, message_id: str = "99") -> None:
    """`message` uses up its attempts at `subscription`."""
    source = {"CloudPubSubDeadLetterSourceSubscription": subscription, "CloudPubSubDeadLetterSourceDeliveryCount": "5"}
    letter = Delivery("dead-letters.dead_letter", "dead-letters", message.data, {**message.attributes, **source}, message_id, 1)
    assert await handle(team, "dead_letter", letter) is Outcome.ACK


async def begun(team: Live, steps: str = "- {id: draft, agent: writer, input: {}}", **fields: Any) -> Message:
    """A workflow whose first dispatches are out, and the first of them."""
    await team.runtime.dispatcher("intake").apply([start(definition(steps, **fields))])
    return team.bus.published[0]


async def redrive(team: Live, *ids: int, dry_run: bool = False, **more: Any) -> Redriven:
    options = {name: more.pop(name) for name in ("rate", "cursor", "limit") if name in more}
    return await redrive_page(team.runtime, Wanted(ids=ids, **more), dry_run=dry_run, **options)


async def letters(team: Live) -> list[dict[str, Any]]:
    return await team.store.letters.listed({})


def reasons(outcome: Redriven) -> dict[int, str]:
    return {refusal.id: refusal.reason for refusal in outcome.refused}


async def lost_replies(team: Live, count: int) -> None:
    for number in range(count):
        await die(team, signed(REPLY, "workflow-events", team.clock, id=f"reply {number}"), "workflow-events.orchestrator")


# The reason


async def test_a_letter_tells_the_last_error_of_its_deliveries(team: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    await begun(team)
    message = signed(REPLY, "workflow-events", team.clock, id="reply")

    async def away(_events: Any) -> Any:
        raise StoreUnavailable("the database cannot be reached")

    with monkeypatch.context() as broken:
        broken.setattr(team.store, "advance", away)
        assert await handle(team, "orchestrator", delivery(message, "orchestrator")) is Outcome.RETRY
    await die(team, message, "workflow-events.orchestrator")
    (letter,) = await letters(team)
    assert (letter["reason"], letter["cause"], letter["function"]) == ("attempts exhausted", "store", "orchestrator")
    assert letter["last_error"] == {
        **{"type": "StoreUnavailable", "message": "the database cannot be reached"},
        "at": team.clock.now().isoformat(),
    }
    assert (letter["workflow"], letter["step"], letter["attempt"]) == (WORKFLOW, "draft", None)


async def test_a_letter_of_which_nobody_said_why_says_so(team: Live) -> None:
    await die(team, await begun(team), WRITER)
    (letter,) = await letters(team)
    assert (letter["cause"], letter["last_error"], letter["attempt"]) == ("timeout", None, 1)


async def test_an_expired_envelope_is_recorded_under_its_own_id(team: Live) -> None:
    message = await begun(team)
    await team.clock.advance(100_000)
    await die(team, message, WRITER)
    (letter,) = await letters(team)
    assert (letter["message_id"], letter["cause"]) == (f"{WORKFLOW}/draft/1", "timeout")
    assert (await team.store.get(WORKFLOW))["status"] == "FAILED"


# Steps


async def test_a_redriven_step_resumes_its_workflow_under_a_new_attempt(team: Live) -> None:
    steps = "- {id: draft, agent: writer, input: {}}\n- {id: check, agent: critic, needs: [draft], input: {}}"
    await die(team, await begun(team, steps), WRITER)
    before = metrics.value("dead_letter.redriven")
    outcome = await redrive(team)
    assert (outcome.matched, outcome.redriven, outcome.refused) == (1, [1], [])
    assert metrics.value("dead_letter.redriven") == before + 1
    assert team.dispatched() == [("draft", 1), ("draft", 2)]
    assert (await team.store.get(WORKFLOW))["status"] == "RUNNING"
    assert (await letters(team))[0]["state"] == "redriven"

    for step, attempt in (("draft", 2), ("check", 1)):
        reply = StepCompleted(workflow=WORKFLOW, step=step, attempt=attempt, output=1)
        message = signed(reply, "workflow-events", team.clock, id=step)
        assert await handle(team, "orchestrator", delivery(message, "orchestrator")) is Outcome.ACK
    assert [one.status for one in team.finished()] == ["FAILED", "SUCCESS"]
    ids = [Stage(clock=team.clock).opened(one).id for one in team.bus.published if one.topic == "workflow-results"]
    assert ids == [f"{WORKFLOW}/finished", f"{WORKFLOW}/finished.1"]


async def test_a_step_that_is_dead_again_is_marked_and_left_alone_until_it_is_asked_for(team: Live) -> None:
    await die(team, await begun(team), WRITER)
    await redrive(team)
    await die(team, team.bus.published[-1], WRITER, message_id="100")
    (letter,) = await letters(team)
    assert (letter["state"], letter["message_id"], letter["redrive_count"]) == ("again", f"{WORKFLOW}/draft/2", 1)

    for _ in range(3):
        assert (await redrive(team)).matched == 0
    assert team.dispatched() == [("draft", 1), ("draft", 2)]
    assert (await redrive(team, again=True)).redriven == [1]
    assert team.dispatched() == [("draft", 1), ("draft", 2), ("draft", 3)]
    await die(team, team.bus.published[-1], WRITER, message_id="101")
    assert (await redrive(team, 1)).redriven == [1]
    assert (await letters(team))[0]["redrive_count"] == 3


async def test_a_step_whose_workflow_was_cancelled_meanwhile_is_left_as_it_is(team: Live) -> None:
    message = await begun(team)
    await team.runtime.dispatcher("gateway").apply([{"type": "workflow.cancelled", "workflow": WORKFLOW, "reason": ""}])
    await die(team, message, WRITER)
    sent = len(team.bus.published)
    for dry_run in (True, False):
        outcome = await redrive(team, dry_run=dry_run)
        assert (outcome.matched, outcome.redriven) == (1, [])
        assert "its workflow is CANCELLED" in reasons(outcome)[1]
    assert (await letters(team))[0]["state"] == "waiting"
    assert {one.topic for one in team.bus.published[sent:]} <= {"workflow-results"}


async def test_a_redrive_that_was_committed_but_not_published_publishes_when_it_is_repeated(team: Live) -> None:
    await die(team, await begun(team), WRITER)
    team.runtime.bus = SabotagedBus(team.bus, Saboteur("publish", error=BusUnavailable("down")))
    with pytest.raises(BusUnavailable):
        await redrive(team)
    assert team.dispatched() == [("draft", 1)]
    assert (await letters(team))[0]["state"] == "waiting"
    assert (await redrive(team)).redriven == [1]
    assert team.dispatched() == [("draft", 1), ("draft", 2)]


# Other messages


async def test_another_message_goes_out_again_as_it_was_to_its_subscription_alone(team: Live) -> None:
    await begun(team)
    message = signed(REPLY, "workflow-events", team.clock, id="reply")
    await die(team, message, "workflow-events.orchestrator")
    assert (await redrive(team)).redriven == [1]
    again = team.bus.published[-1]
    assert (again.topic, again.data) == (message.topic, message.data)
    assert again.attributes == {
        **message.attributes,
        "redrive-subscription": "workflow-events.orchestrator",
        "redrive-message-id": "reply",
        "redrive-number": "1",
    }
    assert await handle(team, "orchestrator", delivery(again, "other")) is Outcome.ACK
    assert team.finished() == []
    assert await handle(team, "orchestrator", delivery(again, "orchestrator")) is Outcome.ACK
    assert [one.status for one in team.finished()] == ["SUCCESS"]


async def test_a_message_that_was_handled_after_all_is_not_handled_twice(team: Live) -> None:
    await begun(team)
    message = signed(REPLY, "workflow-events", team.clock, id="reply")
    assert await handle(team, "orchestrator", delivery(message, "orchestrator")) is Outcome.ACK
    await die(team, message, "workflow-events.orchestrator")
    await redrive(team)
    sent = len(team.bus.published)
    assert await handle(team, "orchestrator", delivery(team.bus.published[-1], "orchestrator")) is Outcome.ACK
    assert len(team.bus.published) == sent


@pytest.mark.parametrize("age", [86_399, 86_400, 500_000])
async def test_an_expired_message_is_sealed_anew_under_its_own_id(team: Live, age: float) -> None:
    await begun(team)
    message = signed(REPLY, "workflow-events", team.clock, id="reply")
    await die(team, message, "workflow-events.orchestrator")
    await team.clock.advance(age)
    assert (await redrive(team)).redriven == [1]
    opened = Stage(clock=team.clock).opened(team.bus.published[-1])
    assert (opened.id, opened.source, opened.subject, opened.data) == ("reply", "/agent-team/tests", "test", REPLY)
    assert await handle(team, "orchestrator", delivery(team.bus.published[-1], "orchestrator")) is Outcome.ACK
    assert [one.status for one in team.finished()] == ["SUCCESS"]


async def test_what_nobody_signed_is_refused(team: Live) -> None:
    message = signed(REPLY, "workflow-events", team.clock, id="reply")
    for number, bad in enumerate(
        [Message(message.topic, message.data + b" ", message.attributes), Message(message.topic, b"x", {})]
    ):
        await die(team, bad, "workflow-events.orchestrator", message_id=str(number))
    await die(team, message, "")
    for dry_run in (True, False):
        outcome = await redrive(team, dry_run=dry_run)
        assert outcome.redriven == []
        assert "cannot be trusted (signature)" in reasons(outcome)[1]
        assert "cannot be trusted (key)" in reasons(outcome)[2]
        assert "does not say which subscription" in reasons(outcome)[3]
    assert team.bus.published == []
    assert {letter["state"] for letter in await letters(team)} == {"waiting"}


async def test_a_scheduled_message_starts_one_workflow_however_often_it_is_redriven(team: Live) -> None:
    wanted = orjson.dumps({"workflow": "report", "input": {"brief": "The ferry was late."}})
    await die(team, Message("workflow-schedules", wanted), "workflow-schedules.intake", message_id="41")
    (letter,) = await letters(team)
    assert (letter["message_id"], letter["cause"], letter["reason"]) == ("41", "unknown", "attempts exhausted")
    await redrive(team)
    first = team.bus.published[-1]
    assert first.data == wanted
    await die(team, first, "workflow-schedules.intake", message_id="57")
    (letter,) = await letters(team)
    assert (letter["message_id"], letter["state"]) == ("41", "again")
    await redrive(team, again=True)
    for number, message in enumerate([first, team.bus.published[-1]]):
        assert await handle(team, "intake", delivery(message, "intake", message_id=f"new {number}")) is Outcome.ACK
    assert len(await team.store.recent()) == 1


async def test_a_lost_request_starts_its_workflow(team: Live) -> None:
    wanted = WorkflowRequested(workflow="report", input={"brief": "The ferry was late."})
    await die(team, signed(wanted, "workflow-requests", team.clock, id="order"), "workflow-requests.intake")
    assert (await letters(team))[0]["workflow"] is None
    await redrive(team)
    assert await handle(team, "intake", delivery(team.bus.published[-1], "intake")) is Outcome.ACK
    assert len(await team.store.recent()) == 1


# Which, how often, how fast


async def test_a_dry_run_changes_nothing_and_tells_what_would_be_done(team: Live) -> None:
    await die(team, await begun(team), WRITER)
    await lost_replies(team, 2)
    before, sent = await letters(team), len(team.bus.published)
    outcome = await redrive(team, dry_run=True)
    assert (outcome.matched, outcome.redriven, outcome.refused) == (3, [3, 2, 1], [])
    assert (await letters(team), len(team.bus.published)) == (before, sent)


async def test_a_letter_is_sent_once_however_many_redrive_at_once(team: Live) -> None:
    await lost_replies(team, 12)
    outcomes = await asyncio.gather(*(redrive(team, rate=100) for _ in range(5)))
    assert sorted(id for outcome in outcomes for id in outcome.redriven) == list(range(1, 13))
    assert sorted(message.attributes["redrive-message-id"] for message in team.bus.published) == sorted(
        f"reply {number}" for number in range(12)
    )


async def test_a_named_letter_that_is_on_its_way_is_sent_once_more_only_when_asked_again(team: Live) -> None:
    await lost_replies(team, 1)
    await redrive(team)
    outcome = await redrive(team, 1, 7)
    assert outcome.redriven == []
    assert "nothing was heard of it since" in reasons(outcome)[1]
    assert reasons(outcome)[7] == "there is no such dead letter"
    assert (await redrive(team, again=True)).matched == 0
    assert (await redrive(team, 1, again=True)).redriven == [1]
    assert team.bus.published[-1].attributes["redrive-number"] == "2"


async def test_a_filter_chooses(team: Live) -> None:
    await lost_replies(team, 1)
    await die(team, Message("agent-writer", b"x", RING.sign("agent-writer", b"x")), WRITER)
    assert (await redrive(team, cause="timeout", dry_run=True)).redriven == [1]
    assert (await redrive(team, function="orchestrator", dry_run=True)).matched == 1
    assert (await redrive(team, cause="rejected", dry_run=True)).matched == 1
    assert (await redrive(team, since=team.clock.now(), until=team.clock.now(), dry_run=True)).matched == 0


async def test_letters_leave_at_the_given_rate(team: Live) -> None:
    await lost_replies(team, 7)
    running = asyncio.create_task(redrive(team, rate=3))
    for sent in (3, 6):
        await until(lambda: team.clock.sleepers == 1)
        assert len(team.bus.published) == sent
        await team.clock.advance(1)
    assert (await running).redriven == [7, 6, 5, 4, 3, 2, 1]
    assert team.bus.batches == [3, 3, 1]


@pytest.mark.parametrize("rate", [0, -1, 101, float("nan")])
async def test_an_impossible_rate_is_refused(team: Live, rate: float) -> None:
    with pytest.raises(InputError, match="letters per second"):
        await redrive(team, rate=rate)


async def test_pages_lead_past_letters_that_are_left_as_they_are(team: Live) -> None:
    await lost_replies(team, 2)
    for number in range(2):
        await die(team, Message("workflow-events", b"x", {}), "workflow-events.orchestrator", message_id=str(number))
    first = await redrive(team, limit=2, rate=100)
    assert (first.matched, first.redriven, len(first.refused), first.next_cursor) == (4, [], 2, 3)
    running = asyncio.create_task(redrive(team, limit=2, rate=100, cursor=3))
    await until(lambda: team.clock.sleepers == 1)
    await team.clock.advance(1)
    second = await running
    assert (second.redriven, second.next_cursor) == ([2, 1], 1)


async def test_a_bus_that_is_away_leaves_the_letters_unmarked(team: Live) -> None:
    await lost_replies(team, 3)
    team.runtime.bus = SabotagedBus(team.bus, Saboteur("publish", error=BusUnavailable("down")))
    with pytest.raises(BusUnavailable):
        await redrive(team)
    assert {letter["state"] for letter in await letters(team)} == {"waiting"}
    assert len((await redrive(team)).redriven) == 3


async def test_a_redriven_message_that_dies_again_over_a_real_bus_is_marked_and_never_sent_by_itself(
    database: str, tmp_path: Path
) -> None:
    """The whole way: five deliveries that fail, recorded, redriven, five more, marked, and then nothing."""
    async with live(database, tmp_path) as team:
        bus = MemoryBus(team.clock)
        team.runtime.bus = bus
        attempts, others = 0, 0

        async def fails(_delivery: Delivery) -> Outcome:
            nonlocal attempts
            attempts += 1
            return Outcome.RETRY

        async def other(_delivery: Delivery) -> Outcome:
            nonlocal others
            others += 1
            return Outcome.ACK

        await _subscribe(bus, "orchestrator", fails)
        await _subscribe(bus, "other", other)
        dead_letters = load("dead_letter").handlers(team.runtime)["dead-letters"]
        await bus.subscribe(Subscription("dead-letters.dead_letter", "dead-letters"), dead_letters)
        await bus.publish([signed(REPLY, "workflow-events", team.clock, id="reply")])
        await _pass_time(team, lambda: attempts == 5)
        await _recorded(team, "waiting")

        assert (await redrive(team)).redriven == [1]
        await _pass_time(team, lambda: attempts == 10)
        await _recorded(team, "again")
        assert (await redrive(team)).matched == 0
        await bus.idle()
        assert (attempts, others) == (10, 1)
        await bus.close()


async def _subscribe(bus: Bus, function: str, handler: Any) -> None:
    name = f"workflow-events.{function}"
    subscription = Subscription(name, "workflow-events", min_backoff_seconds=1, dead_letter_topic="dead-letters")
    await bus.subscribe(subscription, addressed(handler))


async def _pass_time(team: Live, done: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not done():
            await team.clock.advance(1)
            await asyncio.sleep(0)


async def _recorded(team: Live, state: str) -> None:
    async with asyncio.timeout(20):
        while [letter["state"] for letter in await letters(team)] != [state]:  # noqa: ASYNC110 - the database is asked
            await asyncio.sleep(0.002)
