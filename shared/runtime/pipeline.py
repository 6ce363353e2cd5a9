"""What happens to every delivery: verify → claim → work → publish → mark → acknowledge.

Nothing is done before the envelope is verified, nothing is done twice while its claim is known, and a delivery is acknowledged only
after what it led to was published.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from shared.bus import Bus, Delivery, Message, Outcome
from shared.clock import Clock
from shared.errors import ConfigurationError, EnvelopeRejected, Permanent, Transient
from shared.guards import Cache, Claim, Done, Idempotency, InFlight, New
from shared.messages import Envelope, Ring, open_envelope
from shared.runtime.leases import Leases
from shared.runtime.letters import note_failure
from shared.telemetry import TraceContext, bind_task, describe_error, metrics, span

_log = logging.getLogger(__name__)
_FIRST_LOOK_SECONDS = 0.05
_LONGEST_LOOK_SECONDS = 2.0

Work = Callable[[Envelope], Awaitable[Sequence[Message]]]
"""Does what an envelope asks for and returns what shall be published."""


@dataclass(frozen=True, slots=True)
class Link:
    """What a pipeline stands on."""

    bus: Bus
    ring: Ring
    clock: Clock
    idempotency: Idempotency | None
    """None switches claims off (`ENABLE_IDEMPOTENCY`)."""
    max_bytes: int
    ttl_seconds: float
    at_most_once: bool = False
    cache: Cache | None = None
    """Where a delivery that fails notes why, for whoever records the dead letter; None notes nothing."""


class Pipeline:
    """Handles the deliveries of one function.

    `keeps_reply`: the work is dear, so its one message is stored beside the claim before it is published, and a copy that arrives
    later publishes it again instead of working again. Otherwise the work can be repeated, and only a mark is kept.
    `longest_seconds`: how long one delivery may take; a claim is renewed for no longer.
    """

    def __init__(self, link: Link, function: str, work: Work, *, longest_seconds: float, keeps_reply: bool) -> None:
        self._link = link
        self._function = function
        self._work = work
        self._leases = None if link.idempotency is None else Leases(link.idempotency, link.clock, longest_seconds=longest_seconds)
        self._keeps_reply = keeps_reply

    async def __call__(self, delivery: Delivery) -> Outcome:
        """What becomes of the delivery. Raises nothing but cancellation."""
        try:
            envelope = await self._opened(delivery)
        except EnvelopeRejected as error:
            self._reject(delivery, error)
            return Outcome.ACK
        # A delivery has a task of its own, so nothing needs to be put back.
        bind_task(workflowId=envelope.correlationid)
        with span("queue.process", self._function, parent=TraceContext.parse(envelope.traceparent)) as running:
            outcome = await self._handled(delivery, envelope)
            if outcome is Outcome.RETRY:
                running.status = "unavailable"
            return outcome

    async def _opened(self, delivery: Delivery) -> Envelope:
        """The envelope; one whose key is not known yet is tried again with what the ring has learnt. Raises EnvelopeRejected."""
        try:
            return self._verified(delivery)
        except EnvelopeRejected as error:
            # An unknown id may fall to the default secret, whose signature it does not bear.
            if error.reason not in ("key", "signature") or not await self._link.ring.renewed():
                raise
        return self._verified(delivery)

    def _verified(self, delivery: Delivery) -> Envelope:
        link = self._link
        return open_envelope(
            delivery.topic, delivery.data, delivery.attributes, ring=link.ring, now=link.clock.now(), max_bytes=link.max_bytes
        )

    async def _handled(self, delivery: Delivery, envelope: Envelope) -> Outcome:
        try:
            return await self._claimed(envelope)
        except EnvelopeRejected as error:
            self._reject(delivery, error)
            return Outcome.ACK
        except ConfigurationError as error:
            # Somebody will put it right: until then the message waits on the bus.
            _log.error("message %s will be tried again", envelope.id, extra={"error": describe_error(error), "status": "retry"})
            return await self._retry(envelope, error)
        except Permanent as error:
            _log.error("message %s refused", envelope.id, extra={"error": describe_error(error), "status": "refused"})
            return Outcome.ACK
        except Exception as error:
            level = logging.WARNING if isinstance(error, Transient) else logging.ERROR
            fields = {"error": describe_error(error), "status": "retry"}
            _log.log(level, "message %s will be tried again", envelope.id, extra=fields)
            return await self._retry(envelope, error)

    async def _claimed(self, envelope: Envelope) -> Outcome:
        link, leases = self._link, self._leases
        if leases is None:
            await self._publish(await self._work(envelope))
            return Outcome.ACK
        guard, key = leases.guard, claim_key(self._function, envelope)
        match await self._claim(leases, key):
            case Done(result):
                metrics.count("delivery.duplicate")
                if result is not None:  # stored, but perhaps never published
                    await self._publish([self._reply(result)])
                return Outcome.ACK
            case InFlight():
                metrics.count("delivery.duplicate")
                return Outcome.ACK if link.at_most_once else Outcome.RETRY
            case New(token):
                if not link.at_most_once:
                    leases.hold(key, token)
                try:
                    await self._work_on(envelope, guard, key, token)
                finally:
                    leases.drop(key, token)
                return Outcome.ACK

    async def _claim(self, leases: Leases, key: str) -> Claim:
        """Claim, and sit out a claim of somebody who may be dead: coming again would use up the message's attempts meanwhile."""
        link = self._link
        if link.at_most_once:
            # Never given up: whether the work was done or lost, it must not be done again.
            return await leases.guard.claim(key, lease_seconds=link.ttl_seconds, ttl_seconds=link.ttl_seconds)
        pause, until = _FIRST_LOOK_SECONDS, 0.0
        while True:
            claim = await leases.guard.claim(key, lease_seconds=leases.seconds, ttl_seconds=link.ttl_seconds)
            now = link.clock.monotonic()
            if not isinstance(claim, InFlight) or (until and now >= until):
                return claim  # or it was renewed: its holder is alive
            until = until if until else now + claim.seconds
            await link.clock.sleep(min(pause, max(until - now, _FIRST_LOOK_SECONDS)))
            pause = min(2 * pause, _LONGEST_LOOK_SECONDS)

    async def _work_on(self, envelope: Envelope, guard: Idempotency, key: str, token: str) -> None:
        try:
            messages = await self._work(envelope)
            if self._keeps_reply and messages:
                await guard.complete(key, token=token, result=_stored(messages[0]))
        except BaseException:
            await self._give_back(guard, key, token)
            raise
        # From here on the work is done: a copy repeats the publishing at most.
        try:
            await self._publish(messages)
        except BaseException:
            if not self._keeps_reply:
                await self._give_back(guard, key, token)
            raise
        await guard.complete(key, token=token, result=None)

    async def _give_back(self, guard: Idempotency, key: str, token: str) -> None:
        """Let the next delivery work at once. At most once there is no next time: then the claim stays."""
        if self._link.at_most_once:
            return
        try:
            await guard.release(key, token=token)
        except Exception as error:
            # The lease ends by itself; what went wrong before, a cancellation perhaps, must not be hidden by this.
            _log.warning("claim of %s is not released", key, extra={"error": describe_error(error)})

    async def _publish(self, messages: Sequence[Message]) -> None:
        if messages:
            await self._link.bus.publish(messages)

    def _reply(self, result: bytes) -> Message:
        topic, _, data = result.partition(b"\n")
        name = topic.decode()
        return Message(name, data, self._link.ring.sign(name, data))

    async def _retry(self, envelope: Envelope, error: Exception) -> Outcome:
        link = self._link
        if link.cache is not None:
            key = claim_key(self._function, envelope)
            await note_failure(link.cache, key, error, now=link.clock.now(), ttl_seconds=link.ttl_seconds)
        return Outcome.RETRY

    def _reject(self, delivery: Delivery, error: EnvelopeRejected) -> None:
        metrics.count("envelope.rejected", reason=error.reason)
        _log.warning(
            "%s",
            error,
            extra={
                "status": "rejected",
                "reason": error.reason,
                "subscription": delivery.subscription,
                "messageId": delivery.message_id,
            },
        )


def claim_key(function: str, envelope: Envelope) -> str:
    """What `function` claims before it works on `envelope`."""
    return f"{function}:{envelope.source}#{envelope.id}"


def _stored(message: Message) -> bytes:
    return message.topic.encode() + b"\n" + message.data
