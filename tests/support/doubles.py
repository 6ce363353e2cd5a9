"""What stands in for the world around the runtime: a bus that remembers, a model that says what it is told, guards that crash."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from shared.ai import Hold, Model, Reply, Request
from shared.bus import Delivery, Handler, Message, Subscription
from shared.clock import Clock, ManualClock
from shared.errors import BudgetExceeded
from shared.guards import Claim, Guards, Idempotency, open_guards
from shared.messages import Envelope, KeyRing, Payload, StepDispatched, Usage, open_envelope, seal
from shared.runtime.cancellation import Cancellations
from shared.runtime.pipeline import Link
from shared.runtime.progress import Progress
from shared.runtime.sender import Sender

SECRET = "the secret of the tests, long enough for anybody"
RING = KeyRing("prod-v1", {}, default=SECRET)
MAX_BYTES = 524_288
TTL_SECONDS = 86_400.0
WORKFLOW = "wf_01K00000000000000000000000"


class RememberingBus:
    """Keeps what is published; delivers nothing."""

    def __init__(self) -> None:
        self.published: list[Message] = []
        self.batches: list[int] = []

    async def publish(self, messages: Sequence[Message]) -> None:
        self.published.extend(messages)
        self.batches.append(len(messages))

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class ScriptedModel:
    """Gives its answers one after the other and keeps the requests; the last answer is repeated.

    An exception is raised, a reply is given as it is, anything else is the output of one.
    """

    def __init__(self, *answers: Any, usage: Usage | None = None) -> None:
        self.requests: list[Request] = []
        self._answers = answers
        self._usage = Usage(model_calls=1, input_tokens=10, output_tokens=5, cost_microdollars=7) if usage is None else usage

    async def generate(self, request: Request) -> Reply:
        answer = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        if isinstance(answer, BaseException):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(output=answer, model="scripted", usage=self._usage)


class SkippingClock(ManualClock):
    """A clock on which a sleep is over at once; it remembers them all."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
        await self.advance(seconds)


class Purse:
    """An account of so many tokens and microdollars, which remembers what it is told."""

    def __init__(self, *, tokens: int = 10**9, cost_microdollars: int = 10**9) -> None:
        self.tokens_left = tokens
        self.cost_left = cost_microdollars
        self.held: list[Hold] = []
        self.settled: list[tuple[str, Usage]] = []

    async def hold(self, *, tokens: int, cost_microdollars: int) -> Hold:
        if tokens > self.tokens_left or cost_microdollars > self.cost_left:
            raise BudgetExceeded("the purse does not hold that much")
        self._take(tokens, cost_microdollars)
        self.held.append(Hold(tokens, cost_microdollars, 0.0))
        return self.held[-1]

    async def settle(self, hold: Hold, *, model: str, usage: Usage) -> None:
        self._take(usage.tokens - hold.tokens, usage.cost_microdollars - hold.cost_microdollars)
        self.settled.append((model, usage))

    def _take(self, tokens: int, cost_microdollars: int) -> None:
        self.tokens_left -= tokens
        self.cost_left -= cost_microdollars


class PaidModel:
    """`model`, whose calls are paid for: `hold` tokens and as many microdollars are set aside, and what was used is settled."""

    def __init__(self, model: Model, *, hold: int = 15, name: str = "scripted") -> None:
        self._model = model
        self._hold = hold
        self._name = name

    async def generate(self, request: Request) -> Reply:
        account = request.account
        assert account is not None
        hold = await account.hold(tokens=self._hold, cost_microdollars=self._hold)
        reply = await self._model.generate(request)
        await account.settle(hold, model=self._name, usage=reply.usage)
        if reply.problem is not None:
            raise reply.problem
        return reply


class CountingModel:
    """Passes requests on to `model`, after `delay_seconds` of waiting, and keeps their prompts."""

    def __init__(self, model: Model, *, delay_seconds: Callable[[], float] | None = None) -> None:
        self.prompts: list[str] = []
        self._model = model
        self._delay_seconds = delay_seconds

    async def generate(self, request: Request) -> Reply:
        self.prompts.append(request.prompt)
        await asyncio.sleep(0 if self._delay_seconds is None else self._delay_seconds())
        return await self._model.generate(request)


class Crash(BaseException):
    """The process is gone: nothing that it meant to do afterwards happens."""


@dataclass
class Saboteur:
    """Crashes its process at one point (claim, renew, work, store, publish, mark, release), before or after what happens there."""

    point: str = ""
    after: bool = False
    error: BaseException = field(default_factory=Crash)
    journal: list[str] = field(default_factory=list)
    dead: bool = False

    def before(self, point: str) -> None:
        if self.dead:
            raise Crash
        if point == self.point and not self.after:
            self._crash()
        self.journal.append(point)

    def done(self, point: str) -> None:
        if point == self.point and self.after:
            self._crash()

    def _crash(self) -> None:
        self.point = ""  # once
        self.dead = isinstance(self.error, Crash)
        raise self.error


class SabotagedIdempotency:
    """Claims kept by `inner`, as one process sees them until it crashes."""

    def __init__(self, inner: Idempotency, saboteur: Saboteur) -> None:
        self._inner = inner
        self._saboteur = saboteur

    async def claim(self, key: str, *, lease_seconds: float, ttl_seconds: float) -> Claim:
        self._saboteur.before("claim")
        claim = await self._inner.claim(key, lease_seconds=lease_seconds, ttl_seconds=ttl_seconds)
        self._saboteur.done("claim")
        return claim

    async def renew(self, key: str, *, token: str, lease_seconds: float) -> bool:
        self._saboteur.before("renew")
        return await self._inner.renew(key, token=token, lease_seconds=lease_seconds)

    async def complete(self, key: str, *, token: str, result: bytes | None) -> bool:
        point = "mark" if result is None else "store"
        self._saboteur.before(point)
        held = await self._inner.complete(key, token=token, result=result)
        self._saboteur.done(point)
        return held

    async def release(self, key: str, *, token: str) -> bool:
        self._saboteur.before("release")
        return await self._inner.release(key, token=token)


class SabotagedBus(RememberingBus):
    """Publishes to `shared`, as one process does until it crashes."""

    def __init__(self, shared: RememberingBus, saboteur: Saboteur) -> None:
        super().__init__()
        self._shared = shared
        self._saboteur = saboteur

    async def publish(self, messages: Sequence[Message]) -> None:
        self._saboteur.before("publish")
        await self._shared.publish(messages)
        self._saboteur.done("publish")


@dataclass
class Stage:
    """A clock, guards, a bus and a sender that belong together."""

    clock: ManualClock = field(default_factory=ManualClock)
    bus: RememberingBus = field(default_factory=RememberingBus)
    guards: Guards = field(init=False)

    def __post_init__(self) -> None:
        self.guards = open_guards("memory", self.clock)

    def link(self, **changes: Any) -> Link:
        values: dict[str, Any] = {
            "bus": self.bus,
            "ring": RING,
            "clock": self.clock,
            "idempotency": self.guards.idempotency,
            "max_bytes": MAX_BYTES,
            "ttl_seconds": TTL_SECONDS,
        }
        return Link(**(values | changes))

    def for_agents(self) -> dict[str, Any]:
        """What the work of an agent takes of the guards."""
        cache = self.guards.cache
        return {
            "limiter": self.guards.limiter,
            "cancellations": Cancellations(cache, self.clock, ttl_seconds=TTL_SECONDS),
            "progress": Progress(cache, self.clock),
        }

    def sender(self, function: str, *, max_bytes: int = MAX_BYTES) -> Sender:
        return sender(function, self.clock, max_bytes=max_bytes)

    def order(self, *, timeout_seconds: float = 300.0, **changes: Any) -> StepDispatched:
        values: dict[str, Any] = {
            "workflow": WORKFLOW,
            "step": "draft",
            "attempt": 1,
            "agent": "writer",
            "input": {"brief": "a very private brief"},
            "timeout_seconds": timeout_seconds,
            "deadline": self.clock.now() + timedelta(seconds=900),
        }
        return StepDispatched(**(values | changes))

    def dispatched(self, **changes: Any) -> Delivery:
        """One delivery of a step's dispatch to the writer."""
        message = self.sender("orchestrator").dispatch(self.order(**changes), cause="cause-1", traceparent=None)
        return delivery(message, "writer")

    def opened(self, message: Message) -> Envelope:
        return open_envelope(
            message.topic, message.data, message.attributes, ring=RING, now=self.clock.now(), max_bytes=10 * MAX_BYTES
        )


def sender(function: str, clock: Clock, *, max_bytes: int = MAX_BYTES) -> Sender:
    """What writes the envelopes of `function` with the tests' key."""
    return Sender(function=function, ring=RING, clock=clock, ttl_seconds=TTL_SECONDS, max_bytes=max_bytes)


def delivery(message: Message, function: str, *, message_id: str = "1", attempt: int | None = 1) -> Delivery:
    """One arrival of `message` at the subscription of `function`."""
    return Delivery(f"{message.topic}.{function}", message.topic, message.data, message.attributes, message_id, attempt)


def signed(
    payload: Payload, topic: str, clock: Clock, *, id: str, source: str = "tests", ttl_seconds: float = TTL_SECONDS
) -> Message:
    """`payload` sealed for `topic`."""
    envelope = Envelope.create(
        payload, id=id, source_function=source, subject="test", now=clock.now(), ttl_seconds=ttl_seconds, correlation_id=WORKFLOW
    )
    data, attributes = seal(envelope, topic, RING, max_bytes=MAX_BYTES)
    return Message(topic, data, attributes)
