"""Sends dead letters again: to the subscription that gave them up and to no other, at a rate, each once however many do it at once.

What a letter needs depends on its message:

- One that was to start an attempt failed its step, and with it the workflow. The attempt is used up, so the state resumes the
  workflow and gives the step another one (`step.redriven`).
- Every other message goes out again as it was, under its own id, so that whatever it did already is not done twice. Where it has
  expired, or would soon, it is sealed anew with a new lifetime, which only a message that a key of ours had signed can be.

A letter is marked before it is sent and never sent by itself: one that is dead again after a redrive is left out until somebody
asks for it.
"""

import base64
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from shared.bus import Message
from shared.errors import EnvelopeRejected, InputError
from shared.messages import StepDispatched, renewed, reopen_envelope, seal
from shared.runtime.letters import redrive_attributes
from shared.runtime.sender import UNSIGNED_TOPICS
from shared.runtime.wiring import Runtime
from shared.state import Event, Letter, LetterFilter, LetterState
from shared.telemetry import metrics

DEFAULT_RATE: Final = 10.0
"""Letters per second."""
MAX_RATE: Final = 100.0
PAGE: Final = 100
"""How many letters one page holds, and one call of `redrive_page` looks at, where nobody says otherwise."""

_SOURCE = "redrive"
"""Whoever redrives, an attempt that is dispatched is the same message, which an agent claims once."""
_LARGEST_BATCH = 20
_MARGIN = timedelta(minutes=10)
"""An envelope that expires sooner would not live through a few deliveries."""
_RESERVED = "CloudPubSubDeadLetterSource"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which letters to redrive: those of `ids`, or those that fit the filter."""

    ids: tuple[int, ...] = ()
    cause: str | None = None
    function: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    again: bool = False
    """Also those that are dead again after a redrive and, of `ids`, those of which nothing was heard since."""

    def filter(self) -> LetterFilter:
        """For the state. Letters that are named are all looked at, so that each can be told about."""
        if self.ids:
            return {"ids": list(self.ids)}
        given = {"cause": self.cause, "function": self.function, "since": self.since, "until": self.until}
        return {**{name: value for name, value in given.items() if value is not None}, "states": self.states()}

    def states(self) -> list[LetterState]:
        """Naming a letter is asking for it, so its being dead again does not protect it from that."""
        states: list[LetterState] = ["waiting"]
        if self.again or self.ids:
            states.append("again")
        if self.again and self.ids:
            states.append("redriven")
        return states


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that is left as it is, and why."""

    id: int
    reason: str


@dataclass(slots=True)
class Redriven:
    """What became of a page of letters, or would become of it."""

    matched: int
    """How many letters are wanted, on all pages."""
    redriven: list[int] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    next_cursor: int | None = None
    """Where the next page begins; None after the last."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "matched": self.matched,
            "redriven": len(self.redriven),
            "ids": self.redriven,
            "refused": [asdict(refusal) for refusal in self.refused],
            "next_cursor": self.next_cursor,
        }


async def redrive_page(
    live: Runtime,
    wanted: Wanted,
    *,
    dry_run: bool,
    rate: float = DEFAULT_RATE,
    cursor: int | None = None,
    limit: int = PAGE,
) -> Redriven:
    """Redrive the wanted letters of one page, the newest first, at most `rate` per second.

    A dry run changes and sends nothing. Raises InputError for an impossible rate, BusUnavailable and StoreUnavailable; the letters
    of the batch in progress are unmarked then, unless the store is away: those stay marked, and are redriven by id with `again`.
    """
    if not 0 < rate <= MAX_RATE:
        raise InputError(f"a rate of {rate:g} letters per second is not possible; give one above 0 and up to {MAX_RATE:g}")
    letters = live.store.letters
    page = await letters.listed(wanted.filter(), before=cursor, limit=limit)
    outcome = Redriven(await letters.count(wanted.filter()), next_cursor=page[-1]["id"] if len(page) == limit else None)
    if wanted.ids and cursor is None:
        _refuse_unknown(outcome, wanted, [one["id"] for one in await letters.listed(wanted.filter(), limit=len(wanted.ids))])
    ids = [one["id"] for one in page if _is_free(outcome, one, wanted.states())]
    size = min(_LARGEST_BATCH, max(1, math.floor(rate)))
    batches = [ids[start : start + size] for start in range(0, len(ids), size)]
    for number, batch in enumerate(batches):
        if dry_run:
            _look_at(live, await letters.read(batch), outcome)
            continue
        if number or cursor is not None:
            await live.clock.sleep(len(batch) / rate)
        await _redrive_batch(live, batch, wanted.states(), outcome)
    return outcome


async def _redrive_batch(live: Runtime, ids: Sequence[int], states: Sequence[LetterState], outcome: Redriven) -> None:
    letters = live.store.letters
    taken = await letters.take(ids, states=states)
    passed_over = set(ids) - {letter["id"] for letter in taken}
    outcome.refused += [Refusal(id, "somebody else redrives it") for id in sorted(passed_over, reverse=True)]
    refusals: list[Refusal] = []
    unsent = {letter["id"] for letter in taken}
    try:
        await _send(live, taken, refusals, unsent)
    finally:
        if unsent:
            await letters.put_back(sorted(unsent))
    outcome.refused += refusals
    for letter in taken:
        if letter["id"] not in unsent:
            outcome.redriven.append(letter["id"])
            metrics.count("dead_letter.redriven")
            fields = {"messageId": letter["message_id"], "subscription": letter["subscription"], "status": "redriven"}
            _log.info("dead letter %s redriven", letter["id"], extra=fields)


async def _send(live: Runtime, taken: Sequence[Letter], refusals: list[Refusal], unsent: set[int]) -> None:
    """Send what can be sent and take it out of `unsent`; for the rest, add to `refusals` why not."""
    messages: dict[int, Message] = {}
    steps: dict[int, Event] = {}
    for letter in taken:
        match _prepared(live, letter):
            case Message() as message:
                messages[letter["id"]] = message
            case Refusal() as refusal:
                refusals.append(refusal)
            case event:
                steps[letter["id"]] = event
    if messages:
        await live.bus.publish(list(messages.values()))
        unsent.difference_update(messages)
    if steps:
        answers = await live.dispatcher(_SOURCE).apply(list(steps.values()))
        reasons = {_about(answer): answer["reason"] for answer in answers if answer["type"] == "refused"}
        for id, event in steps.items():
            reason = reasons.get(_about(event))
            if reason is None:
                unsent.discard(id)
            else:
                refusals.append(Refusal(id, reason))


def _about(event: Event) -> tuple[str, str, int]:
    return event["workflow"], event["step"], event["attempt"]


def _prepared(live: Runtime, letter: Letter) -> Message | Event | Refusal:
    """What to send, what to tell the state, or why there is nothing to be done."""
    topic, data = letter["topic"], base64.b64decode(letter["data"])
    attributes = {name: value for name, value in letter["attributes"].items() if not name.startswith(_RESERVED)}
    more = redrive_attributes(letter["subscription"], letter["message_id"], letter["redrive_count"])
    if not topic:
        return Refusal(letter["id"], "it does not say which subscription it comes from")
    if topic in UNSIGNED_TOPICS:
        return Message(topic, data, attributes | more)
    max_bytes, ttl_seconds = live.settings.max_payload_bytes, live.settings.comm_idempotency_ttl_sec
    try:
        envelope = reopen_envelope(topic, data, attributes, ring=live.ring, max_bytes=max_bytes)
    except EnvelopeRejected as error:
        return Refusal(letter["id"], f"it cannot be trusted ({error.reason}), so its receiver would reject it again")
    if isinstance(envelope.data, StepDispatched):
        order = envelope.data
        return {"type": "step.redriven", "workflow": order.workflow, "step": order.step, "attempt": order.attempt}
    now = live.clock.now()
    if envelope.expirytime - now < _MARGIN:
        fresh = renewed(envelope, now=now, ttl_seconds=ttl_seconds)
        try:
            data, signature = seal(fresh, topic, live.ring, max_bytes=max_bytes)
        except InputError as error:
            return Refusal(letter["id"], f"it cannot be sealed anew: {error}")
        attributes |= signature
    return Message(topic, data, attributes | more)


def _look_at(live: Runtime, letters: Sequence[Letter], outcome: Redriven) -> None:
    """What a redrive of these letters would find."""
    for letter in letters:
        prepared = _prepared(live, letter)
        if isinstance(prepared, Refusal):
            outcome.refused.append(prepared)
        elif letter["blocked"] is not None:
            outcome.refused.append(Refusal(letter["id"], letter["blocked"]))
        else:
            outcome.redriven.append(letter["id"])


def _is_free(outcome: Redriven, head: dict[str, Any], states: Sequence[LetterState]) -> bool:
    if head["state"] in states:
        return True
    since = f"was redriven at {head['redriven_at']}, and nothing was heard of it since"
    outcome.refused.append(Refusal(head["id"], f"it {since}; ask for it again to send it once more"))
    return False


def _refuse_unknown(outcome: Redriven, wanted: Wanted, known: Sequence[int]) -> None:
    for id in wanted.ids:
        if id not in known:
            outcome.refused.append(Refusal(id, "there is no such dead letter"))
