"""Runs an agent: a dispatched step in, its result on `workflow-events` out."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import inf
from types import MappingProxyType
from typing import Any

from shared.ai import CallKeys, Model, Prompt, Request, Tool, ToolLoop, declare
from shared.ai.budget import WorkflowAccount
from shared.bus import Message
from shared.clock import Clock
from shared.errors import Cancelled, ConfigurationError, EnvelopeRejected, InputError, Transient
from shared.guards import RateLimiter
from shared.ids import dispatch_id, reply_id
from shared.messages import Envelope, Payload, PromptUsed, StepDispatched, Usage
from shared.outputs import Outputs
from shared.runtime.answers import completed, unfinished
from shared.runtime.cancellation import Cancellations, cancelled
from shared.runtime.contract import Result, Run, Task, Team
from shared.runtime.progress import Progress
from shared.runtime.sender import WORKFLOW_EVENTS, Sender, too_large
from shared.telemetry import current_trace, describe_error, metrics

_log = logging.getLogger(__name__)
_MOST_PROMPTS = 20
"""Of one attempt that are told of."""
_NO_TOOLS: Mapping[str, Tool] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """What a call gets when the prompt does not say."""

    temperature: float
    max_tokens: int
    tool_seconds: float = 60.0
    """The longest that a call of a tool may take."""


class _Adapter(logging.LoggerAdapter[logging.Logger]):
    """Adds the attempt's fields to the caller's own; the standard adapter would replace them."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class LiveTeam:
    """The team as one attempt sees it."""

    def __init__(
        self,
        task: Task,
        *,
        model: Model,
        prompt: Prompt | None,
        settings: ModelSettings,
        clock: Clock,
        timeout_at: float,
        account: WorkflowAccount,
        before_call: Callable[[], Awaitable[None]],
        progress: Progress,
        tools: Mapping[str, Tool] = _NO_TOOLS,
    ) -> None:
        self._task = task
        self._model = model
        self._prompt = prompt
        self._settings = settings
        self._clock = clock
        self._timeout_at = timeout_at
        self._account = account
        self._before_call = before_call
        self._progress = progress
        self._writer = progress.writer(task.workflow, task.step, task.attempt)
        self._tools = tools
        self._call_keys = CallKeys(f"{task.workflow}/{task.step}")
        self._log: logging.LoggerAdapter[logging.Logger] | None = None
        self._prompts: dict[str, PromptUsed] = {}

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        if self._log is None:
            fields: dict[str, Any] = {"workflowId": self._task.workflow, "step": self._task.step, "attempt": self._task.attempt}
            self._log = _Adapter(logging.getLogger("agent"), fields)
        return self._log

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def prompt(self) -> Prompt | None:
        return self._prompt

    @property
    def usage(self) -> Usage:
        return self._account.usage

    async def generate(
        self,
        prompt: Prompt | None = None,
        *,
        values: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> Any:
        used = self._prompt if prompt is None else prompt
        if used is None:
            raise ConfigurationError("this agent has no prompt.md beside its main.py; add one, or pass a prompt to team.generate")
        given = self._task.input if values is None else values
        rendered = used.render(given)
        self._remember(used)
        await self._before_call()
        watched = await self._progress.watched(self._task.workflow)
        reply = await self._model_with(used, tools).generate(
            Request(
                prompt=rendered,
                schema=used.schema if schema is None else schema,
                material=given if isinstance(given, Mapping) else {"input": given},
                tier=used.tier,
                temperature=self._settings.temperature if used.temperature is None else used.temperature,
                max_tokens=self._settings.max_tokens,
                timeout_seconds=max(0.001, self._timeout_at - self._clock.monotonic()),
                prompt_version=used.fingerprint,
                account=self._account,
                on_text=self._writer.say if watched else None,
            )
        )
        return reply.output

    @property
    def prompts(self) -> tuple[PromptUsed, ...]:
        """Those that a model was, or was to be, asked with."""
        return tuple(self._prompts.values())

    def _remember(self, prompt: Prompt) -> None:
        # One that was made in code has no file whose hash there would be.
        sha256 = prompt.fingerprint or hashlib.sha256(prompt.text.encode()).hexdigest()
        if sha256 not in self._prompts and len(self._prompts) < _MOST_PROMPTS:
            self._prompts[sha256] = PromptUsed(name=prompt.name[:200], version=prompt.version, sha256=sha256[:12])

    def _model_with(self, prompt: Prompt, own: Sequence[Callable[..., Any]]) -> Model:
        """The model, with the tools that `prompt` names, as far as they are offered here, and the agent's own."""
        tools = [self._tools[name] for name in prompt.tools if name in self._tools] + [declare(function) for function in own]
        if not tools:
            return self._model
        return ToolLoop(
            self._model,
            tools,
            keys=self._call_keys,
            call_seconds=self._settings.tool_seconds,
            clock=self._clock,
            before_call=self._before_call,
        )

    def end(self) -> None:
        """The attempt is over: there is nothing more to show."""
        self._writer.end()


class AgentWork:
    """The work of an agent's pipeline.

    `longest_seconds` is what the function may take for one delivery: beyond it the message would come again while the agent still
    works, or the work would be cut off without an answer.
    """

    def __init__(
        self,
        name: str,
        run: Run,
        *,
        prompt: Prompt | None,
        model: Model,
        settings: ModelSettings,
        sender: Sender,
        clock: Clock,
        limiter: RateLimiter,
        cancellations: Cancellations,
        progress: Progress,
        outputs: Outputs | None = None,
        longest_seconds: float = inf,
        tools: Mapping[str, Tool] = _NO_TOOLS,
    ) -> None:
        self._name = name
        self._run = run
        self._prompt = prompt
        self._model = model
        self._settings = settings
        self._sender = sender
        self._clock = clock
        self._limiter = limiter
        self._cancellations = cancellations
        self._progress = progress
        self._outputs = Outputs(None, clock) if outputs is None else outputs
        self._longest_seconds = longest_seconds
        self._tools = tools

    async def __call__(self, envelope: Envelope) -> Sequence[Message]:
        order = envelope.data
        if not isinstance(order, StepDispatched):
            raise EnvelopeRejected("type", f"{envelope.type} is no work for an agent; check what publishes to agent-{self._name}")
        if order.agent != self._name:
            raise EnvelopeRejected("schema", f"the step is for agent {order.agent}, not for {self._name}")
        now = self._clock.now()
        if now >= order.deadline:
            # Nobody waits for it any more: the step has ended, or runs under a later attempt.
            _log.warning("step came too late", extra={"step": order.step, "attempt": order.attempt, "status": "expired"})
            return ()
        seconds = min(order.timeout_seconds, self._longest_seconds, (order.deadline - now).total_seconds())
        return (await self._attempt(order, envelope, seconds),)

    async def _attempt(self, order: StepDispatched, envelope: Envelope, seconds: float) -> Message:
        started = self._clock.monotonic()
        account = WorkflowAccount(self._limiter, self._clock, workflow=order.workflow, remaining=order.remaining)
        team: LiveTeam | None = None
        reply: Payload
        try:
            task = await self._task(order, seconds)
            team = self._team(order, task, account, timeout_at=started + seconds)
            result = await self._in_time(order, task, team, seconds)
            reply = await completed(order, result, account, self._outputs, team.prompts)
            message = self._message(order, reply, envelope)
        except Exception as error:
            outcome, reply = unfinished(order, error, account, self._clock, () if team is None else team.prompts)
            self._note(order, started, error, outcome)
            return self._sealed(order, reply, outcome, envelope)
        finally:
            if team is not None:
                team.end()
        self._note(order, started, None, "completed")
        return message

    async def _task(self, order: StepDispatched, seconds: float) -> Task:
        """The task, whole: what is stored apart is read. Errors as `Outputs.read`."""
        return Task(
            workflow=order.workflow,
            step=order.step,
            attempt=order.attempt,
            input=await self._outputs.whole(order.input),
            upstream=await self._outputs.whole(order.upstream),
            deadline=self._clock.now() + timedelta(seconds=seconds),
            remaining=order.remaining,
        )

    def _team(self, order: StepDispatched, task: Task, account: WorkflowAccount, *, timeout_at: float) -> LiveTeam:
        return LiveTeam(
            task,
            model=self._model,
            prompt=self._prompt,
            settings=self._settings,
            clock=self._clock,
            timeout_at=timeout_at,
            account=account,
            before_call=partial(self._cancellations.check, order.workflow, resumed=order.resumed),
            progress=self._progress,
            tools=self._tools,
        )

    async def _in_time(self, order: StepDispatched, task: Task, team: Team, seconds: float) -> Result:
        """What the agent gives. Raises Cancelled when the workflow ended meanwhile, and Transient when it took too long."""
        try:
            async with asyncio.timeout(seconds) as limit:
                with self._cancellations.watching(order.workflow, resumed=order.resumed, limit=limit) as attempt:
                    return await self._run(task, team)
        except Exception as error:
            if attempt.stopped:
                raise cancelled() from error
            if not isinstance(error, TimeoutError) or not limit.expired():  # something inside the agent gave up, with time left
                raise
            raise Transient(
                f"the agent took longer than its {seconds:g} s; raise timeout_seconds of the step, or of the function"
            ) from error

    def _message(self, order: StepDispatched, reply: Payload, envelope: Envelope) -> Message:
        try:
            return self._sealed(order, reply, "completed", envelope)
        except InputError as error:
            if self._outputs.opened:
                raise
            raise too_large(error) from error

    def _sealed(self, order: StepDispatched, reply: Payload, outcome: str, envelope: Envelope) -> Message:
        return self._sender.message(
            WORKFLOW_EVENTS,
            reply,
            id=reply_id(dispatch_id(order.workflow, order.step, order.attempt, order.deferrals), outcome),
            subject=envelope.subject,
            workflow=order.workflow,
            cause=envelope.id,
            traceparent=envelope.traceparent if (running := current_trace()) is None else running.header,
        )

    def _note(self, order: StepDispatched, started: float, error: Exception | None, outcome: str) -> None:
        duration = (self._clock.monotonic() - started) * 1000
        metrics.observe("task.duration_ms", duration, task=self._name)
        fields: dict[str, Any] = {
            "step": order.step,
            "attempt": order.attempt,
            "agent": self._name,
            "duration": round(duration, 3),
            "status": outcome,
        }
        if error is None:
            metrics.count("task.success", task=self._name)
            _log.info("step completed", extra=fields)
        elif outcome == "deferred":
            metrics.count("step.deferred")
            _log.warning("step deferred: %s", error, extra=fields)
        elif isinstance(error, Cancelled):
            _log.info("step cancelled", extra={**fields, "status": "cancelled"})
        else:
            metrics.count("task.failure", task=self._name, error=type(error).__name__)
            _log.error("step failed", extra={**fields, "error": describe_error(error)})


async def answer_prompt(task: Task, team: Team) -> Result:
    """The agent that needs no code: render the prompt with the input, return the model's answer."""
    return Result(output=await team.generate())
