"""The platform's own functions over the real state, as their handlers and their HTTP apps."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from shared.bus import Delivery, Message, Outcome
from shared.errors import BusUnavailable, ConfigurationError, StoreUnavailable
from shared.guards import New
from shared.messages import (
    ErrorInfo,
    PromptUsed,
    SpawnedStep,
    StepCompleted,
    StepDeferred,
    StepFailed,
    Usage,
    WorkflowCancelled,
    WorkflowFinished,
    WorkflowPaused,
    WorkflowRequested,
    WorkflowUnpaused,
)
from shared.runtime import load
from shared.runtime.letters import NOTHING_HEARD
from shared.runtime.pipeline import claim_key
from shared.telemetry import metrics
from tests.support.doubles import RING, WORKFLOW, SabotagedBus, Saboteur, Stage, delivery, signed
from tests.support.live import Live, definition, live, start, until

WRITER = "agent-writer.writer"


@pytest.fixture
async def team(database: str, tmp_path: Path) -> AsyncIterator[Live]:
    async with live(database, tmp_path) as opened:
        yield opened


async def handle(team: Live, function: str, arrived: Delivery) -> Outcome:
    return await load(function).handlers(team.runtime)[arrived.topic](arrived)


async def report(team: Live, payload: Any, *, id: str) -> Outcome:
    """Hand the orchestrator what an agent says."""
    return await handle(team, "orchestrator", delivery(signed(payload, "workflow-events", team.clock, id=id), "orchestrator"))


async def begun(team: Live, steps: str = "- {id: draft, agent: writer, input: {}}", **fields: Any) -> None:
    """A workflow whose first dispatches are out."""
    await team.runtime.dispatcher("intake").apply([start(definition(steps, **fields))])


ABOUT: dict[str, Any] = {"workflow": WORKFLOW, "step": "draft", "attempt": 1}


class TestOrchestrator:
    async def test_a_result_moves_the_workflow_on(self, team: Live) -> None:
        await begun(team, "- {id: draft, agent: writer, input: {}}\n- {id: check, agent: critic, needs: [draft], input: {}}")
        assert await report(team, StepCompleted(**ABOUT, output=1), id="reply") is Outcome.ACK
        assert team.dispatched() == [("draft", 1), ("check", 1)]
        assert Stage(clock=team.clock).opened(team.bus.published[-1]).causationid == "reply"

    async def test_a_copy_of_a_result_publishes_nothing(self, team: Live) -> None:
        await begun(team)
        for _ in range(3):
            assert await report(team, StepCompleted(**ABOUT, output=1), id="reply") is Outcome.ACK
        assert len(team.finished()) == 1

    async def test_an_error_is_tried_again_after_a_while(self, team: Live) -> None:
        await begun(team)
        failure = StepFailed(**ABOUT, error=ErrorInfo(type="ModelUnavailable", message="no answer"))
        handling = asyncio.create_task(report(team, failure, id="reply"))
        await until(lambda: team.clock.sleepers == 2)  # the retry's, and the one that keeps the claim
        await team.clock.advance(1)
        assert await handling is Outcome.ACK
        assert team.dispatched() == [("draft", 1), ("draft", 2)]

    async def test_a_permanent_error_ends_the_workflow(self, team: Live) -> None:
        await begun(team)
        failure = StepFailed(**ABOUT, error=ErrorInfo(type="InputError", message="no brief"), permanent=True)
        assert await report(team, failure, id="reply") is Outcome.ACK
        assert [one.status for one in team.finished()] == ["FAILED"]

    async def test_a_deferred_step_starts_again_under_the_same_attempt(self, team: Live) -> None:
        await begun(team)
        later = StepDeferred(**ABOUT, not_before=team.clock.now().replace(minute=5))
        assert await report(team, later, id="reply") is Outcome.ACK
        assert team.dispatched() == [("draft", 1)]
        await team.clock.advance(300)
        await team.runtime.dispatcher("sweeper").apply([{"type": "tick"}])
        assert team.dispatched() == [("draft", 1), ("draft", 1)]
        assert Stage(clock=team.clock).opened(team.bus.published[-1]).id == f"{WORKFLOW}/draft/1.1"

    async def test_what_each_model_used_is_kept_whatever_became_of_the_attempt(self, team: Live) -> None:
        await begun(team)
        used = Usage(model_calls=1, input_tokens=7, output_tokens=3, cost_microdollars=2)
        about: dict[str, Any] = {**ABOUT, "usage": used, "models": {"pro": used}}
        await report(team, StepDeferred(**about, not_before=team.clock.now().replace(minute=5)), id="1")
        await team.clock.advance(300)
        await team.runtime.dispatcher("sweeper").apply([{"type": "tick"}])
        failure = StepFailed(**about, error=ErrorInfo(type="ModelUnavailable", message="no answer"), retry_after_seconds=60)
        await report(team, failure, id="2")
        await report(team, StepCompleted(**about | {"attempt": 2, "models": {"pro": used, "flash": used}}), id="3")
        shown = await team.runtime.store.get(WORKFLOW)
        assert shown["models"] == {"pro": (used + used + used).model_dump(), "flash": used.model_dump()}
        assert shown["usage"] == (used + used + used).model_dump()

    async def test_the_prompts_of_the_last_attempt_are_kept_whatever_became_of_it(self, team: Live) -> None:
        await begun(team, "- {id: draft, agent: writer, input: {}, max_retries: 1}")

        async def kept() -> Any:
            (step,) = (await team.runtime.store.get(WORKFLOW))["steps"]
            return [prompt["version"] for prompt in step["prompts"]]

        used = [PromptUsed(name="writer", version=version, sha256="5f70bf18a086") for version in (1, 2, 3)]
        assert await kept() == []
        error = ErrorInfo(type="ModelUnavailable", message="no answer")
        await report(team, StepFailed(**ABOUT, error=error, retry_after_seconds=60, prompts=(used[0],)), id="1")
        assert await kept() == [1]
        await team.clock.advance(60)
        await team.runtime.dispatcher("sweeper").apply([{"type": "tick"}])
        await report(team, StepCompleted(**ABOUT | {"attempt": 2}, prompts=(used[1], used[2])), id="2")
        assert await kept() == [2, 3]
        await report(team, StepCompleted(**ABOUT, prompts=(used[0],)), id="3")
        assert await kept() == [2, 3]

    async def test_the_prompts_of_a_step_that_failed_or_spawned_are_kept(self, team: Live) -> None:
        await begun(team, "- {id: draft, agent: writer, input: {}}\n- {id: check, agent: critic, input: {}}")
        used = (PromptUsed(name="writer", version=1, sha256="5f70bf18a086"),)
        spawn = (SpawnedStep(id="a", agent="critic"),)
        await report(team, StepCompleted(**ABOUT, spawn=spawn, prompts=used), id="1")
        error = ErrorInfo(type="InputError", message="no brief")
        await report(team, StepFailed(**ABOUT | {"step": "check"}, error=error, permanent=True, prompts=used), id="2")
        steps = (await team.runtime.store.get(WORKFLOW))["steps"]
        assert {step["id"]: len(step["prompts"]) for step in steps} == {"draft": 1, "draft/a": 0, "check": 1}

    async def test_a_cancellation_ends_the_workflow(self, team: Live) -> None:
        await begun(team)
        assert await report(team, WorkflowCancelled(workflow=WORKFLOW, reason="enough"), id="stop") is Outcome.ACK
        assert [one.status for one in team.finished()] == ["CANCELLED"]

    async def test_a_pause_holds_back_what_follows_and_its_copy_nothing(self, team: Live) -> None:
        await begun(team)
        pause = WorkflowPaused(workflow=WORKFLOW, by="ann")
        assert await report(team, pause, id="pause") is Outcome.ACK
        await report(team, StepFailed(**ABOUT, error=ErrorInfo(type="ModelUnavailable", message="no answer")), id="1")
        assert team.dispatched() == [("draft", 1)]
        assert (await team.runtime.store.get(WORKFLOW))["paused_by"] == "ann"
        await team.clock.advance(1)
        await report(team, WorkflowUnpaused(workflow=WORKFLOW), id="resume")
        assert team.dispatched() == [("draft", 1), ("draft", 2)]
        event = {"type": "workflow.paused", "workflow": WORKFLOW, "key": "pause"}
        await team.runtime.dispatcher("orchestrator").apply([event])
        assert (await team.runtime.store.get(WORKFLOW))["paused_at"] is None

    async def test_a_spawn_becomes_steps_and_their_join_the_output(self, team: Live) -> None:
        await begun(team, output="{{ steps.draft.output }}")
        children = (SpawnedStep(id="a", agent="critic"), SpawnedStep(id="b", agent="judge", needs=("a",)))
        await report(team, StepCompleted(**ABOUT, spawn=children, join="b"), id="1")
        await report(team, StepCompleted(workflow=WORKFLOW, step="draft/a", attempt=1, output=1), id="2")
        await report(team, StepCompleted(workflow=WORKFLOW, step="draft/b", attempt=1, output=2), id="3")
        assert team.dispatched() == [("draft", 1), ("draft/a", 1), ("draft/b", 1)]
        assert [one.output for one in team.finished()] == [2]

    async def test_a_spawn_that_is_no_plan_fails_its_step_and_keeps_its_usage(self, team: Live) -> None:
        await begun(team)
        circle = tuple(SpawnedStep(id=f"{'x' * 50}{n}", agent="critic", needs=(f"{'x' * 50}{(n + 1) % 60}",)) for n in range(60))
        used = Usage(model_calls=2, input_tokens=7)
        await report(team, StepCompleted(**ABOUT, spawn=circle, usage=used, models={"pro": used}), id="reply")
        assert (await team.runtime.store.get(WORKFLOW))["models"] == {"pro": used.model_dump()}
        (ended,) = team.finished()
        assert ended.error is not None
        assert (ended.status, ended.error.type, ended.usage.input_tokens) == ("FAILED", "InputError", 7)
        assert len(ended.error.message) <= 2000

    async def test_a_spawn_for_an_agent_that_is_not_there_fails_its_step_and_reaches_no_topic(self, team: Live) -> None:
        await begun(team)
        children = (SpawnedStep(id="a", agent="critic"), SpawnedStep(id="b", agent="critique"))
        used = Usage(model_calls=1, input_tokens=7)
        event = StepCompleted(**ABOUT, spawn=children, usage=used)
        assert await report(team, event, id="reply") is Outcome.ACK
        assert await report(team, event, id="again") is Outcome.ACK
        assert {message.topic for message in team.bus.published} == {"agent-writer", "workflow-results"}
        shown = await team.runtime.store.get(WORKFLOW)
        assert shown["error"] == {
            "type": "InputError",
            "message": "step draft spawns b for 'critique', which is no agent, did you mean 'critic'?",
            "step": "draft",
        }
        assert shown["usage"] == used.model_dump()

    async def test_a_message_that_is_no_event_is_refused(self, team: Live) -> None:
        before = metrics.value("envelope.rejected", reason="type")
        odd = WorkflowFinished(workflow=WORKFLOW, name="report", status="SUCCESS")
        assert await report(team, odd, id="odd") is Outcome.ACK
        assert metrics.value("envelope.rejected", reason="type") == before + 1

    async def test_events_that_were_committed_but_not_published_are_published_on_redelivery(
        self, team: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await begun(team, "- {id: draft, agent: writer, input: {}}\n- {id: check, agent: critic, needs: [draft], input: {}}")
        broken = SabotagedBus(team.bus, Saboteur("publish", error=BusUnavailable("down")))
        working, team.runtime.bus = team.runtime.bus, broken
        assert await report(team, StepCompleted(**ABOUT, output=1), id="reply") is Outcome.RETRY
        assert team.dispatched() == [("draft", 1)]
        team.runtime.bus = working
        del team.runtime.__dict__["link"]
        assert await report(team, StepCompleted(**ABOUT, output=1), id="reply") is Outcome.ACK
        assert team.dispatched() == [("draft", 1), ("check", 1)]


BRIEF = WorkflowRequested(workflow="report", input={"brief": "The ferry was late."})


def plain(wanted: Any, *, message_id: str = "77") -> Delivery:
    """What the scheduler publishes: no envelope, no signature."""
    data = wanted if isinstance(wanted, bytes) else orjson.dumps(wanted)
    return Delivery("workflow-schedules.intake", "workflow-schedules", data, {}, message_id, 1)


class TestIntake:
    async def test_a_signed_request_starts_a_workflow_and_its_copies_none(self, team: Live) -> None:
        message = team.runtime.sender("shop").request(BRIEF, id="order-1")
        for _ in range(2):
            assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
        (workflow,) = await team.store.recent()
        assert (workflow["workflow"], workflow["status"]) == ("report", "RUNNING")
        assert team.dispatched() == [("plan", 1)]

    async def test_a_copy_that_no_claim_remembers_starts_no_other_workflow(self, database: str, tmp_path: Path) -> None:
        async with live(database, tmp_path, ENABLE_IDEMPOTENCY="false") as team:
            message = signed(BRIEF, "workflow-requests", team.clock, id="order-1")
            for _ in range(2):
                assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
            assert len(await team.store.recent()) == 1
            assert team.dispatched() == [("plan", 1), ("plan", 1)]

    async def test_an_id_used_for_another_request_is_refused(
        self, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = WorkflowRequested(workflow="report", input={"brief": "Another ferry."})
        async with live(database, tmp_path, ENABLE_IDEMPOTENCY="false") as team:
            for wanted in (BRIEF, other):
                message = signed(wanted, "workflow-requests", team.clock, id="order-1")
                assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
            assert len(await team.store.recent()) == 1
        assert caplog.records[-1].__dict__["error"]["type"] == "Conflict"

    @pytest.mark.parametrize(
        "wanted", [WorkflowRequested(workflow="nothing"), WorkflowRequested(workflow="report", input={"brif": "x"})]
    )
    async def test_a_request_that_cannot_be_met_is_refused(self, team: Live, wanted: WorkflowRequested) -> None:
        message = signed(wanted, "workflow-requests", team.clock, id="order-1")
        assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
        assert await handle(team, "intake", plain(wanted.model_dump())) is Outcome.ACK
        assert await team.store.recent() == []

    async def test_an_unsigned_request_is_refused(self, team: Live) -> None:
        message = Message("workflow-requests", signed(BRIEF, "workflow-requests", team.clock, id="order-1").data, {})
        before = metrics.value("envelope.rejected", reason="key")
        assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
        assert metrics.value("envelope.rejected", reason="key") == before + 1
        assert await team.store.recent() == []

    async def test_another_message_on_its_topic_is_refused(self, team: Live) -> None:
        message = signed(WorkflowCancelled(workflow=WORKFLOW), "workflow-requests", team.clock, id="order-1")
        before = metrics.value("envelope.rejected", reason="type")
        assert await handle(team, "intake", delivery(message, "intake")) is Outcome.ACK
        assert metrics.value("envelope.rejected", reason="type") == before + 1

    async def test_a_schedule_starts_a_workflow_and_a_later_copy_none(self, team: Live) -> None:
        for _ in range(2):
            assert await handle(team, "intake", plain(BRIEF.model_dump())) is Outcome.ACK
            await team.clock.advance(61)
        assert len(await team.store.recent()) == 1
        assert await handle(team, "intake", plain(BRIEF.model_dump(), message_id="78")) is Outcome.ACK
        assert len(await team.store.recent()) == 2

    async def test_a_plain_message_that_names_a_workflow_and_its_input_is_enough(self, team: Live) -> None:
        data = b'{"workflow": "report", "input": {"brief": "The ferry was late."}}'
        for _ in range(2):
            assert await handle(team, "intake", plain(data)) is Outcome.ACK
        (workflow,) = await team.store.recent()
        assert (await team.store.get(workflow["id"]))["input"] == BRIEF.input

    @pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b'{"workflow": "report", "wrong": 1}'])
    async def test_a_schedule_that_asks_for_nothing_is_refused(
        self, team: Live, data: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        before = metrics.value("envelope.rejected", reason="schema")
        assert await handle(team, "intake", plain(data)) is Outcome.ACK
        assert metrics.value("envelope.rejected", reason="schema") == before + 1
        assert caplog.records[-1].__dict__["status"] == "rejected"

    async def test_switched_off_it_starts_nothing_and_leaves_the_message_on_the_bus(self, database: str, tmp_path: Path) -> None:
        async with live(database, tmp_path, ORCH_ENABLED="false") as team:
            with pytest.raises(ConfigurationError, match="ORCH_ENABLED"):
                await handle(team, "intake", plain(BRIEF.model_dump()))
            assert await team.store.recent() == []

    async def test_a_bus_that_is_away_makes_it_try_again(self, team: Live) -> None:
        team.runtime.bus = SabotagedBus(team.bus, Saboteur("publish", error=BusUnavailable("down")))
        handlers = load("intake").handlers(team.runtime)
        with pytest.raises(BusUnavailable):
            await handlers["workflow-schedules"](plain(BRIEF.model_dump()))
        assert await handlers["workflow-schedules"](plain(BRIEF.model_dump())) is Outcome.ACK
        assert len(await team.store.recent()) == 1
        assert team.dispatched() == [("plan", 1)]


class TestSweeper:
    @staticmethod
    async def tick(team: Live, method: str = "POST", path: str = "/") -> int:
        app = load("sweeper").app
        assert app is not None
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app(team.runtime)), base_url="http://sweeper") as client:
            return (await client.request(method, path)).status_code

    async def test_a_tick_starts_what_is_due(self, team: Live) -> None:
        await begun(team)
        assert await self.tick(team) == 204
        assert team.dispatched() == [("draft", 1)]
        await team.clock.advance(901)  # the step's timeout, and what its message may take to arrive
        expired = asyncio.create_task(self.tick(team))
        assert await expired == 204
        assert team.dispatched() == [("draft", 1), ("draft", 2)]

    async def test_only_a_post_is_a_tick(self, team: Live) -> None:
        assert await self.tick(team, "GET") == 405
        assert await self.tick(team, path="/other") == 404

    async def test_a_database_that_is_away_makes_the_scheduler_try_again(self, team: Live, monkeypatch: pytest.MonkeyPatch) -> None:
        async def away(_events: Any) -> Any:
            raise StoreUnavailable("the database cannot be reached")

        monkeypatch.setattr(team.store, "advance", away)
        assert await self.tick(team) == 503


def dead(message: Message, subscription: str = WRITER, *, message_id: str = "99", count: str = "5") -> Delivery:
    """What a subscription sends to the dead-letter topic."""
    source = {"CloudPubSubDeadLetterSourceSubscription": subscription, "CloudPubSubDeadLetterSourceDeliveryCount": count}
    return Delivery("dead-letters.dead_letter", "dead-letters", message.data, {**message.attributes, **source}, message_id, 1)


class TestDeadLetter:
    @staticmethod
    async def recorded(database: str) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(database)
        try:
            return [dict(row) for row in await connection.fetch("select * from dead_letters order by id")]
        finally:
            await connection.close()

    async def test_a_letter_is_recorded_once_as_it_was(self, team: Live, database: str) -> None:
        await begun(team)
        (message,) = team.bus.published
        for number in range(2):
            assert await handle(team, "dead_letter", dead(message, message_id=str(number))) is Outcome.ACK
        (letter,) = await self.recorded(database)
        assert (letter["message_id"], letter["subscription"], letter["topic"]) == (f"{WORKFLOW}/draft/1", WRITER, "agent-writer")
        assert (letter["attempts"], letter["reason"], letter["data"]) == (5, NOTHING_HEARD, message.data)
        assert (letter["workflow_id"], letter["step_id"]) == (WORKFLOW, "draft")
        assert orjson.loads(letter["attributes"])["hmac-key-id"] == message.attributes["hmac-key-id"]

    async def test_a_step_that_nobody_works_on_fails(self, team: Live) -> None:
        await begun(team)
        assert await handle(team, "dead_letter", dead(team.bus.published[0])) is Outcome.ACK
        (ended,) = team.finished()
        assert ended.error is not None
        assert (ended.status, ended.error.type) == ("FAILED", "DeadLettered")

    @pytest.mark.parametrize("done", [False, True])
    async def test_a_step_that_somebody_works_on_or_has_done_does_not(self, team: Live, done: bool) -> None:
        await begun(team)
        (message,) = team.bus.published
        guard = team.runtime.guards.idempotency
        key = claim_key("writer", Stage(clock=team.clock).opened(message))
        claim = await guard.claim(key, lease_seconds=330, ttl_seconds=86_400)
        assert isinstance(claim, New)
        if done:
            await guard.complete(key, token=claim.token, result=None)
        assert await handle(team, "dead_letter", dead(message)) is Outcome.ACK
        assert team.finished() == []
        assert (await team.store.get(WORKFLOW))["status"] == "RUNNING"

    async def test_a_letter_whose_step_could_not_be_failed_is_tried_again(
        self, team: Live, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await begun(team)
        advance = team.store.advance

        async def away(_events: Any) -> Any:
            raise StoreUnavailable("the database cannot be reached")

        monkeypatch.setattr(team.store, "advance", away)
        with pytest.raises(StoreUnavailable):
            await handle(team, "dead_letter", dead(team.bus.published[0]))
        monkeypatch.setattr(team.store, "advance", advance)
        assert await handle(team, "dead_letter", dead(team.bus.published[0])) is Outcome.ACK
        assert len(team.finished()) == 1

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda message: Message(message.topic, message.data + b" ", message.attributes), "rejected: signature"),
            (lambda message: Message(message.topic, message.data, {}), "rejected: key"),
            (lambda message: Message(message.topic, b"\0", RING.sign(message.topic, b"\0")), "rejected: schema"),
        ],
    )
    async def test_a_letter_that_cannot_be_trusted_is_recorded_and_changes_nothing(
        self, team: Live, database: str, change: Any, reason: str
    ) -> None:
        await begun(team)
        message = change(team.bus.published[0])
        assert await handle(team, "dead_letter", dead(message, count="many")) is Outcome.ACK
        (letter,) = await self.recorded(database)
        assert (letter["message_id"], letter["reason"], letter["data"]) == ("99", reason, message.data)
        assert (letter["workflow_id"], letter["attempts"]) == (None, None)
        assert team.finished() == []

    async def test_a_letter_from_nowhere_is_recorded(self, team: Live, database: str) -> None:
        arrived = Delivery("dead-letters.dead_letter", "dead-letters", b"?", {}, "99", 1)
        assert await handle(team, "dead_letter", arrived) is Outcome.ACK
        assert [letter["subscription"] for letter in await self.recorded(database)] == [""]

    async def test_a_letter_that_is_no_step_fails_nothing(self, team: Live, database: str) -> None:
        await begun(team)
        message = signed(StepCompleted(**ABOUT), "workflow-events", team.clock, id="reply")
        assert await handle(team, "dead_letter", dead(message, "workflow-events.orchestrator")) is Outcome.ACK
        assert [letter["reason"] for letter in await self.recorded(database)] == [NOTHING_HEARD]
        assert team.finished() == []

    async def test_a_letter_that_no_database_takes_is_logged_and_let_go(self, team: Live, caplog: pytest.LogCaptureFixture) -> None:
        odd = Delivery("dead-letters.dead_letter", "dead-letters", b"?", {"nul": "\0"}, "99", 1)
        assert await handle(team, "dead_letter", odd) is Outcome.ACK
        assert "cannot be recorded" in caplog.records[-1].getMessage()
