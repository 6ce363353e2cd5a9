"""Carries out what `advance` commands: the door for whoever calls `advance` (orchestrator, gateway, intake, sweeper)."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

from shared.bus import Bus, Message
from shared.clock import Clock
from shared.errors import AgentTeamError
from shared.messages import ErrorInfo, StepDispatched, Usage, WorkflowFinished
from shared.runtime.cancellation import Cancellations
from shared.runtime.sender import Sender
from shared.state import Command, Event, WorkflowStore
from shared.telemetry import TraceContext, current_trace, metrics, use_trace
from shared.workflows import decide, render_output

_log = logging.getLogger(__name__)

_NOTHING: Mapping[str, str] = MappingProxyType({})
_COUNTERS = {"SUCCESS": "workflow.succeeded", "FAILED": "workflow.failed", "CANCELLED": "workflow.cancelled"}


class Dispatcher:
    """Events in, messages out: advances the state until nothing is left to decide, and publishes what came of it.

    `switched_off` are the patterns whose steps are skipped, and why.
    """

    def __init__(
        self,
        store: WorkflowStore,
        bus: Bus,
        sender: Sender,
        clock: Clock,
        cancellations: Cancellations,
        *,
        switched_off: Mapping[str, str] = _NOTHING,
    ) -> None:
        self._store = store
        self._bus = bus
        self._sender = sender
        self._clock = clock
        self._cancellations = cancellations
        self._switched_off = switched_off

    async def apply(self, events: Sequence[Event], *, cause: str | None = None, traceparent: str | None = None) -> list[Command]:
        """Apply `events`, publish what they lead to, and return the answers that are for the caller.

        Answers are accepted, conflict, ignored, redriven, rerun and refused. `cause` is the id of the message that the events came
        in, `traceparent` its trace.
        """
        return await self.carry_out(await self._store.advance(events), cause=cause, traceparent=traceparent)

    async def carry_out(
        self, commands: Sequence[Command], *, cause: str | None = None, traceparent: str | None = None
    ) -> list[Command]:
        """The same for the commands of one of the state's other doors."""
        answers, messages = await self._decide(commands, cause, traceparent)
        if messages:
            await self._bus.publish(messages)
        return answers

    async def decide(
        self, events: Sequence[Event], *, cause: str | None = None, traceparent: str | None = None
    ) -> tuple[list[Command], list[Message]]:
        """The same as `apply`, but leave the publishing to the caller. Retries due soon are waited for and published here."""
        return await self._decide(await self._store.advance(events), cause, traceparent)

    async def _decide(
        self, commands: Sequence[Command], cause: str | None, traceparent: str | None
    ) -> tuple[list[Command], list[Message]]:
        answers: list[Command] = []
        messages: list[Message] = []
        later: list[tuple[datetime, Message]] = []
        while commands:
            decided: list[Event] = []
            for command in commands:
                match command["type"]:
                    case "dispatch":
                        self._dispatch(command, decided, messages, later, cause, traceparent)
                    case "render":
                        decided.append(render_output(command))
                    case "finished":
                        if command["status"] != "SUCCESS":  # else nobody is at work for it any more
                            await self._cancellations.mark(command["workflow"], resumed=command["resumed"])
                        messages.append(self._finished(command, cause, traceparent))
                    case "expired":
                        metrics.count("step.lease_expired", command["attempts"])
                    case _:
                        answers.append(_answered(command))
            commands = await self._store.advance(decided) if decided else []
        if later:
            # What is ready now must not wait for what is not.
            if messages:
                await self._bus.publish(messages)
            messages = await self._wait(later)
        return answers, messages

    def _dispatch(
        self,
        command: Command,
        decided: list[Event],
        messages: list[Message],
        later: list[tuple[datetime, Message]],
        cause: str | None,
        traceparent: str | None,
    ) -> None:
        decision = decide(command, switched_off=self._switched_off)
        if not isinstance(decision, StepDispatched):
            decided.append(decision)
            return
        try:
            message = self._sender.dispatch(decision, cause=cause, traceparent=_header(_trace_of(command, traceparent)))
        except AgentTeamError as error:  # too large to send: no attempt can change that
            decided.append(_failed(command, error))
            return
        if decision.attempt > 1:
            metrics.count("step.retried")
        if command["not_before"] is None:
            messages.append(message)
        else:
            later.append((datetime.fromisoformat(command["not_before"]), message))

    async def _wait(self, later: list[tuple[datetime, Message]]) -> list[Message]:
        later.sort(key=lambda one: one[0])
        for due, message in later[:-1]:
            await self._clock.sleep((due - self._clock.now()).total_seconds())
            await self._bus.publish([message])
        due, last = later[-1]
        await self._clock.sleep((due - self._clock.now()).total_seconds())
        return [last]

    def _finished(self, command: Command, cause: str | None, traceparent: str | None) -> Message:
        workflow, status = command["workflow"], command["status"]
        metrics.count(_COUNTERS[status], workflow=command["name"])
        metrics.gauge("workflow.execution_ms", command["milliseconds"], workflow=command["name"])
        trace = _trace_of(command, traceparent)
        with use_trace(trace):
            fields = {"workflowId": workflow, "status": status, "duration": command["milliseconds"]}
            _log.info("workflow %s", status.lower(), extra=fields)
        error = command["error"]
        payload: dict[str, Any] = {
            "workflow": workflow,
            "name": command["name"],
            "status": status,
            "error": None if error is None else ErrorInfo(type=error["type"], message=error["message"][:2000]),
            "usage": Usage(**command["usage"]),
            "callback_url": command["callback_url"],
        }
        about: dict[str, Any] = {
            "resumed": command["resumed"],
            "cause": cause,
            "traceparent": _header(trace),
        }
        complete = WorkflowFinished(**payload, output=command["output"])
        try:
            return self._sender.finished(complete, **about)
        except AgentTeamError:  # the output is over the limit of a message; the state has it
            return self._sender.finished(WorkflowFinished(**payload, output_omitted=True), **about)


def _answered(command: Command) -> Command:
    if command["type"] == "accepted" and command["created"]:
        metrics.count("workflow.started", workflow=command["name"])
    return command


def _trace_of(command: Command, traceparent: str | None) -> TraceContext | None:
    """The span that the workflow goes on from: the running one if it works for the workflow, else the one that started that."""
    first, running = TraceContext.parse(command["traceparent"] or traceparent), current_trace()
    return running if first is None or (running is not None and running.trace_id == first.trace_id) else first


def _header(trace: TraceContext | None) -> str | None:
    return None if trace is None else trace.header


def _failed(command: Command, error: AgentTeamError) -> Event:
    return {
        "type": "step.failed",
        "workflow": command["workflow"],
        "step": command["step"],
        "attempt": command["attempt"],
        "permanent": True,
        "error": {"type": error.code, "message": str(error)[:2000]},
    }
