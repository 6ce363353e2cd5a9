"""The work of an agent: what its result, its errors and its limits become on the bus and in the log."""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.ai import Prompt, Reply, Request, ToolCall, builtin
from shared.bus import Outcome
from shared.errors import (
    BudgetExceeded,
    ConfigurationError,
    EnvelopeRejected,
    InputError,
    ModelRefused,
    ModelUnavailable,
    OutputEmpty,
    RateLimited,
)
from shared.messages import Remaining, SpawnedStep, StepCompleted, StepDeferred, StepFailed, Usage, WorkflowCancelled
from shared.runtime import Result, Run, Task, Team, ToolContext
from shared.runtime.pipeline import Pipeline
from shared.runtime.team import answer_prompt
from shared.telemetry import metrics
from tests.support.desk import PROMPT, Desk, raising, returning
from tests.support.doubles import WORKFLOW, ScriptedModel, delivery, signed


async def test_an_agent_without_code_renders_its_prompt_and_returns_the_answer() -> None:
    desk = Desk()
    reply = await desk.reply(StepCompleted)
    assert (reply.workflow, reply.step, reply.attempt) == (WORKFLOW, "draft", 1)
    assert reply.output == {"text": "the draft"}
    assert reply.usage.model_dump() == {"model_calls": 1, "input_tokens": 10, "output_tokens": 5, "cost_microdollars": 7}
    assert reply.models == {"scripted": reply.usage}
    assert isinstance(desk.model, ScriptedModel)
    (request,) = desk.model.requests
    assert request.prompt == "Brief: a very private brief"
    assert request.material == {"brief": "a very private brief"}
    assert (request.schema, request.tier, request.temperature, request.max_tokens) == ({"type": "object"}, "fast", 0.7, 4096)
    assert request.timeout_seconds == 300
    assert (request.prompt_version, request.on_text) == (PROMPT.fingerprint, None)


@pytest.mark.parametrize(
    ("run", "changes", "suffix"),
    [
        (answer_prompt, {}, "1/completed"),
        (answer_prompt, {"attempt": 3}, "3/completed"),
        (answer_prompt, {"attempt": 2, "deferrals": 4}, "2.4/completed"),
        (raising(InputError("no")), {}, "1/failed"),
        (raising(RateLimited("full", retry_after_seconds=90)), {"deferrals": 1}, "1.1/deferred"),
    ],
)
async def test_a_reply_bears_the_id_of_what_it_answers(run: Run, changes: dict[str, Any], suffix: str) -> None:
    assert await Desk(run).reply_id(**changes) == f"{WORKFLOW}/draft/{suffix}"


async def test_the_task_tells_all_that_the_dispatch_said() -> None:
    tasks: list[Task] = []

    async def run(task: Task, team: Team) -> Result:
        tasks.append(task)
        return Result(None)

    desk = Desk(run)
    await desk.reply(StepCompleted, attempt=2, upstream={"plan": [1]}, remaining=Remaining(tokens=5), timeout_seconds=60.0)
    (task,) = tasks
    assert (task.workflow, task.step, task.attempt, task.input) == (WORKFLOW, "draft", 2, {"brief": "a very private brief"})
    assert task.upstream == {"plan": [1]}
    assert task.remaining == Remaining(tokens=5)
    assert task.deadline == desk.stage.clock.now() + timedelta(seconds=60)


@pytest.mark.parametrize(("timeout_seconds", "deadline_seconds", "seconds"), [(60, 900, 60), (60, 20, 20), (900, 1500, 300)])
async def test_a_step_has_as_long_as_itself_its_deadline_and_its_function_allow(
    timeout_seconds: float, deadline_seconds: float, seconds: float
) -> None:
    deadlines = []

    async def run(task: Task, team: Team) -> Result:
        deadlines.append((task.deadline - team.clock.now()).total_seconds())
        return Result(await team.generate())

    desk = Desk(run)
    deadline = desk.stage.clock.now() + timedelta(seconds=deadline_seconds)
    await desk.reply(StepCompleted, timeout_seconds=timeout_seconds, deadline=deadline)
    assert deadlines == [seconds]
    assert isinstance(desk.model, ScriptedModel)
    assert desk.model.requests[0].timeout_seconds == seconds


async def test_a_spawn_and_its_join_are_carried() -> None:
    steps = (SpawnedStep(id="a", agent="critic", input={"x": 1}), SpawnedStep(id="b", agent="judge", needs=("a",)))
    reply = await Desk(returning(Result({"n": 1}, spawn=steps, join="b"))).reply(StepCompleted)
    assert (reply.output, reply.spawn, reply.join) == ({"n": 1}, steps, "b")


@pytest.mark.parametrize(
    ("error", "permanent", "retry_after"),
    [
        (InputError("the brief is empty; write one"), True, None),
        (ModelRefused("the key is wrong"), True, None),
        (ModelUnavailable("no answer"), False, None),
        (ModelUnavailable("busy", retry_after_seconds=2.5), False, 2.5),
        (ModelUnavailable("busy", retry_after_seconds=-3), False, 0),
        (ModelUnavailable("busy", retry_after_seconds=1e12), False, 7 * 86_400),
        (RateLimited("full, nobody knows how long"), False, None),
    ],
)
async def test_an_error_of_the_platform_is_told_as_it_is(error: Exception, permanent: bool, retry_after: float | None) -> None:
    reply = await Desk(raising(error)).reply(StepFailed)
    assert (reply.workflow, reply.step, reply.attempt) == (WORKFLOW, "draft", 1)
    assert (reply.error.type, reply.error.message) == (type(error).__name__, str(error))
    assert (reply.permanent, reply.retry_after_seconds) == (permanent, retry_after)


async def test_what_an_unknown_exception_says_is_in_no_message_and_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        reply = await Desk(raising(KeyError("a very private key"))).reply(StepFailed)
    assert (reply.error.type, reply.error.message) == ("KeyError", "unexpected error; see the log")
    assert not reply.permanent
    assert caplog.records
    assert "private" not in "".join(str(record.__dict__["error"]) + record.getMessage() for record in caplog.records)


async def test_an_overlong_error_is_cut() -> None:
    reply = await Desk(raising(InputError("x" * 5000))).reply(StepFailed)
    assert len(reply.error.message) == 2000


async def test_a_failed_attempt_tells_what_it_has_used() -> None:
    async def run(task: Task, team: Team) -> Result:
        await team.generate()
        raise InputError("no")

    assert (await Desk(run).reply(StepFailed)).usage.tokens == 15


@pytest.mark.parametrize("seconds", [0.0, 90.0, 1e12])
async def test_a_full_quota_defers_the_step(seconds: float) -> None:
    desk = Desk(raising(RateLimited("full", retry_after_seconds=seconds)))
    before = metrics.value("step.deferred")
    reply = await desk.reply(StepDeferred, deferrals=2)
    assert reply.deferrals == 2
    assert reply.not_before == desk.stage.clock.now() + timedelta(seconds=min(seconds, 7 * 86_400))
    assert metrics.value("step.deferred") == before + 1


async def test_the_timeout_of_the_step_ends_the_run() -> None:
    ended = asyncio.Event()

    async def run(task: Task, team: Team) -> Result:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    reply = await Desk(run).reply(StepFailed, timeout_seconds=0.01)
    assert ended.is_set()
    assert (reply.error.type, reply.permanent) == ("Transient", False)
    assert "longer than its 0.01 s" in reply.error.message


async def test_a_timeout_inside_the_agent_is_not_taken_for_the_steps() -> None:
    reply = await Desk(raising(TimeoutError("connect"))).reply(StepFailed)
    assert reply.error.type == "TimeoutError"


async def test_cancellation_is_no_failure_of_the_step() -> None:
    with pytest.raises(asyncio.CancelledError):
        await Desk(raising(asyncio.CancelledError())).messages()


async def test_a_dispatch_after_its_deadline_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()
    assert await desk.messages(deadline=desk.stage.clock.now()) == []
    assert isinstance(desk.model, ScriptedModel)
    assert desk.model.requests == []
    assert caplog.records[0].__dict__["status"] == "expired"


async def test_a_step_for_another_agent_is_refused() -> None:
    desk = Desk()
    order = desk.stage.order(agent="critic")
    message = signed(order, "agent-writer", desk.stage.clock, id="misdirected")
    with pytest.raises(EnvelopeRejected) as refused:
        await desk.work(desk.stage.opened(message))
    assert refused.value.reason == "schema"


async def test_a_message_that_is_no_step_is_refused() -> None:
    desk = Desk()
    message = signed(WorkflowCancelled(workflow=WORKFLOW), "agent-writer", desk.stage.clock, id="odd")
    with pytest.raises(EnvelopeRejected) as refused:
        await desk.work(desk.stage.opened(message))
    assert refused.value.reason == "type"


@pytest.mark.parametrize(
    ("result", "hint"),
    [
        (Result({1, 2}), "not JSON"),
        (Result({"n": 2**70}), "not JSON"),
        (Result(b"bytes"), "not JSON"),
        ({"text": "no Result"}, "returned dict"),
        (None, "returned NoneType"),
        (Result(1, spawn=({"id": "a b", "agent": "critic"},)), "spawn.0.id is wrong"),  # type: ignore[arg-type]
        (Result(1, join=["a"]), "join is wrong"),  # type: ignore[arg-type]
    ],
)
async def test_a_result_that_is_none_fails_the_step_for_good(result: Any, hint: str) -> None:
    reply = await Desk(returning(result)).reply(StepFailed)
    assert (reply.error.type, reply.permanent) == ("OutputInvalid", True)
    assert hint in reply.error.message
    assert "a b" not in reply.error.message


@pytest.mark.parametrize("output", ["x" * 3000, {"nul": "\0"}])
async def test_an_output_that_no_message_can_carry_fails_the_step_for_good(output: Any) -> None:
    reply = await Desk(returning(Result(output)), max_bytes=2000).reply(StepFailed)
    assert (reply.error.type, reply.permanent) == ("InputError", True)
    assert "xxx" not in reply.error.message


async def test_usage_adds_up_over_calls() -> None:
    seen: list[int] = []

    async def run(task: Task, team: Team) -> Result:
        for _ in range(3):
            await team.generate()
            seen.append(team.usage.tokens)
        return Result(None)

    reply = await Desk(run).reply(StepCompleted)
    assert seen == [15, 30, 45]
    assert reply.usage.model_dump() == {"model_calls": 3, "input_tokens": 30, "output_tokens": 15, "cost_microdollars": 21}


@pytest.mark.parametrize(
    ("remaining", "calls"),
    [
        (Remaining(), 3),
        (Remaining(tokens=1000, cost_microdollars=1000), 3),
        (Remaining(tokens=14), 0),
        (Remaining(tokens=29), 1),
        (Remaining(tokens=30), 2),
        (Remaining(cost_microdollars=14), 0),
        (Remaining(cost_microdollars=21), 1),
        (Remaining(cost_microdollars=22), 2),
        (Remaining(max_tokens=30), 2),
        (Remaining(max_cost_microdollars=22), 2),
    ],
)
async def test_generate_refuses_a_call_that_the_budget_may_not_cover(remaining: Remaining, calls: int) -> None:
    async def run(task: Task, team: Team) -> Result:
        for _ in range(3):
            await team.generate()
        return Result(None)

    desk = Desk(run)
    if calls == 3:
        await desk.reply(StepCompleted, remaining=remaining)
    else:
        reply = await desk.reply(StepFailed, remaining=remaining)
        assert (reply.error.type, reply.permanent) == (BudgetExceeded.__name__, True)
    assert isinstance(desk.model, ScriptedModel)
    assert len(desk.model.requests) == calls


async def test_attempts_of_one_workflow_share_its_budget() -> None:
    desk = Desk()
    limits = Remaining(tokens=30, max_tokens=30)
    await desk.reply(StepCompleted, remaining=limits)
    await desk.reply(StepCompleted, attempt=2, remaining=limits)
    assert (await desk.reply(StepFailed, attempt=3, remaining=limits)).error.type == "BudgetExceeded"


async def test_a_failed_call_that_was_paid_for_is_in_the_failure_by_model() -> None:
    class Useless:
        async def generate(self, request: Request) -> Reply:
            return Reply(
                "", "scripted", Usage(model_calls=1, input_tokens=9, cost_microdollars=3), problem=OutputEmpty("no answer")
            )

    reply = await Desk(model=Useless()).reply(StepFailed)
    assert reply.error.type == "OutputEmpty"
    assert reply.usage == Usage(model_calls=1, input_tokens=9, cost_microdollars=3)
    assert reply.models == {"scripted": reply.usage}


async def test_generate_takes_another_prompt_values_and_schema() -> None:
    async def run(task: Task, team: Team) -> Result:
        return Result(
            await team.generate(Prompt(1, "default", None, None, "Say {{ input.word }}"), values={"word": "yes"}, schema={})
        )

    desk = Desk(run)
    await desk.reply(StepCompleted)
    assert isinstance(desk.model, ScriptedModel)
    (request,) = desk.model.requests
    assert (request.prompt, request.schema, request.temperature, request.material) == ("Say yes", {}, 0.2, {"word": "yes"})


async def test_a_model_may_call_the_tools_that_the_prompt_names_and_the_agents_own() -> None:
    asked: list[tuple[str, int]] = []
    given: list[ToolContext] = []

    async def found(query: str, limit: int) -> list[dict[str, Any]]:
        asked.append((query, limit))
        return [{"document": "log", "position": 1, "text": "The ferry was late."}]

    async def look_out(context: ToolContext) -> str:
        """Look out of the window."""
        given.append(context)
        return "fog"

    async def run(task: Task, team: Team) -> Result:
        return Result(await team.generate(tools=[look_out]))

    class Curious(ScriptedModel):
        async def generate(self, request: Request) -> Reply:
            reply = await super().generate(request)
            calls = (ToolCall("search_documents", {"query": "ferry"}), ToolCall("look_out", {}), ToolCall("http_get", {}))
            return reply if request.turns else replace(reply, calls=calls)

    model = Curious({"text": "late"})
    prompt = replace(PROMPT, tools=("search_documents",), fingerprint="abc" * 21 + "d")
    desk = Desk(run, model=model, prompt=prompt, tools=builtin(search=found))
    reply = await desk.reply(StepCompleted)
    assert reply.output == {"text": "late"}
    assert reply.usage.model_calls == 2
    assert asked == [("ferry", 5)]
    assert given[0].idempotency_key.startswith(f"{WORKFLOW}/draft/")
    assert given[0].deadline == desk.stage.clock.now() + timedelta(seconds=60)
    first, second = model.requests
    assert [tool.name for tool in first.tools] == ["search_documents", "look_out"]
    assert first.prompt_version == second.prompt_version == prompt.fingerprint
    assert second.turns[0].results == (
        {"untrusted": [{"document": "log", "position": 1, "text": "The ferry was late."}]},
        {"untrusted": "fog"},
        {"error": "there is no such tool; the tools are search_documents, look_out"},
    )


async def test_a_tool_that_is_not_offered_here_is_left_out() -> None:
    desk = Desk(prompt=replace(PROMPT, tools=("search_documents",)), tools=builtin(search=None))
    await desk.reply(StepCompleted)
    assert isinstance(desk.model, ScriptedModel)
    (request,) = desk.model.requests
    assert (request.tools, request.prompt) == ((), "Brief: a very private brief")


async def test_what_is_no_tool_fails_the_step_for_good() -> None:
    async def run(task: Task, team: Team) -> Result:
        return Result(await team.generate(tools=[lambda: 1]))

    reply = await Desk(run).reply(StepFailed)
    assert (reply.error.type, reply.permanent) == (ConfigurationError.__name__, True)


async def test_an_input_that_is_no_object_is_material_too() -> None:
    desk = Desk(prompt=Prompt(1, "default", None, None, "Say {{ input }}"))
    await desk.reply(StepCompleted, input="hello")
    assert isinstance(desk.model, ScriptedModel)
    assert desk.model.requests[0].material == {"input": "hello"}


async def test_an_agent_without_prompt_cannot_ask_for_its_own() -> None:
    reply = await Desk(prompt=None).reply(StepFailed)
    assert (reply.error.type, reply.permanent) == (ConfigurationError.__name__, True)


async def test_what_an_agent_logs_bears_its_step(caplog: pytest.LogCaptureFixture) -> None:
    async def run(task: Task, team: Team) -> Result:
        team.log.info("halfway", extra={"status": "busy"})
        team.log.info("at %s", team.clock.now().year)
        return Result(None)

    with caplog.at_level(logging.INFO):
        await Desk(run).reply(StepCompleted)
    first, second = (record for record in caplog.records if record.name == "agent")
    fields = first.__dict__
    assert (fields["workflowId"], fields["step"], fields["attempt"], fields["status"]) == (WORKFLOW, "draft", 1, "busy")
    assert second.getMessage() == "at 2026"


@pytest.mark.parametrize(
    ("run", "name", "labels"),
    [
        (answer_prompt, "task.success", {"task": "writer"}),
        (raising(InputError("no")), "task.failure", {"task": "writer", "error": "InputError"}),
    ],
)
async def test_every_attempt_is_counted_and_timed(run: Run, name: str, labels: dict[str, str]) -> None:
    before, timed = metrics.value(name, **labels), metrics.value("task.duration_ms", task="writer")
    await Desk(run).messages()
    assert metrics.value(name, **labels) == before + 1
    assert metrics.value("task.duration_ms", task="writer") == timed + 1


@pytest.mark.parametrize(("run", "calls"), [(answer_prompt, 1), (raising(ModelUnavailable("no answer")), 0)])
async def test_a_redelivered_step_gets_the_same_answer_without_another_call(run: Run, calls: int) -> None:
    desk = Desk(run)
    pipeline = Pipeline(desk.stage.link(), "writer", desk.work, longest_seconds=330, keeps_reply=True)
    deliveries: list[Callable[[], Any]] = [desk.stage.dispatched] * 3
    for dispatched in deliveries:
        assert await pipeline(dispatched()) is Outcome.ACK
    assert isinstance(desk.model, ScriptedModel)
    assert len(desk.model.requests) == calls
    assert len(desk.stage.bus.published) == 1


async def test_a_misdirected_step_is_acknowledged_and_dropped() -> None:
    desk = Desk()
    pipeline = Pipeline(desk.stage.link(), "writer", desk.work, longest_seconds=330, keeps_reply=True)
    message = signed(desk.stage.order(agent="critic"), "agent-writer", desk.stage.clock, id="misdirected")
    assert await pipeline(delivery(message, "writer")) is Outcome.ACK
    assert desk.stage.bus.published == []


async def test_a_tool_at_work_is_stopped_with_its_workflow() -> None:
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def wait() -> str:
        """Wait for what never comes."""
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    async def run(task: Task, team: Team) -> Result:
        return Result(output=await team.generate(tools=[wait]))

    calls = (ToolCall("wait", {}),)
    model = ScriptedModel(Reply("", "scripted", Usage(model_calls=1, input_tokens=3), calls=calls))
    desk = Desk(run, model=model)
    answering = asyncio.create_task(desk.reply(StepFailed))
    async with asyncio.timeout(10):
        await begun.wait()
        await desk.cancellations.mark(WORKFLOW, resumed=0)
        await desk.stage.clock.advance(1)
        reply = await answering
    assert stopped.is_set()
    assert (reply.error.type, reply.permanent, reply.usage.input_tokens) == ("Cancelled", True, 3)
    assert len(model.requests) == 1


async def test_each_prompt_that_was_asked_with_is_told_of_once_whatever_becomes_of_the_attempt() -> None:
    own = Prompt(1, "default", None, None, "Say {{ input.word }}")

    async def run(task: Task, team: Team) -> Result:
        for _ in range(2):
            await team.generate()
            await team.generate(own, values={"word": "yes"}, schema={})
        if task.attempt == 2:
            raise InputError("no more")
        return Result(None)

    expected = [("writer", 3, PROMPT.fingerprint[:12]), ("", 1, hashlib.sha256(own.text.encode()).hexdigest()[:12])]
    desk = Desk(run, prompt=replace(PROMPT, name="writer"))
    reply = await desk.reply(StepCompleted)
    assert [(one.name, one.version, one.sha256) for one in reply.prompts] == expected
    failed = await desk.reply(StepFailed, attempt=2)
    assert [(one.name, one.version, one.sha256) for one in failed.prompts] == expected


async def test_more_prompts_than_can_be_told_of_do_not_fail_the_attempt() -> None:
    async def run(_task: Task, team: Team) -> Result:
        for number in range(30):
            await team.generate(Prompt(1, "default", None, None, f"Say {number}"), values={}, schema={})
        return Result(None)

    assert len((await Desk(run).reply(StepCompleted)).prompts) == 20
