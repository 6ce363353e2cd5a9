"""Five thousand real messages, each altered, over each bus: all are refused, counted and logged, and nothing else happens.

Forged, truncated, replayed, sent to another topic, unsigned, oversized, and signed by somebody with the key who says nonsense.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import orjson
import pytest

from shared.bus import Bus, Delivery, Handler, Message, Outcome, Subscription
from shared.bus.memory import MemoryBus
from shared.clock import SystemClock
from shared.config import load_settings
from shared.guards import open_guards
from shared.messages import KeyRing
from shared.messages.payloads import TYPES
from shared.runtime import Runtime
from shared.runtime.joining import join
from shared.telemetry import metrics
from tests.support.buses import BUSES, serving
from tests.support.doubles import RING, SECRET
from tests.support.live import until
from tests.support.reports import platform, write_reports

COUNT = 5_000
OVERSIZED = 5
MARKER = "Skarholm"
LIMIT = 524_288
_REASONS = ("size", "key", "signature", "schema", "type", "expired", "future")

Mutation = Callable[[Message, Random], Message]


def _with(message: Message, **attributes: str | None) -> Message:
    changed = {**message.attributes, **{name.replace("_", "-"): value for name, value in attributes.items()}}
    return Message(message.topic, message.data, {name: value for name, value in changed.items() if value is not None})


def _signed(message: Message, data: bytes) -> Message:
    return Message(message.topic, data, RING.sign(message.topic, data))


def _document(message: Message, **changes: Any) -> Message:
    return _signed(message, orjson.dumps({**orjson.loads(message.data), **changes}))


def flipped(message: Message, random: Random) -> Message:
    data = bytearray(message.data)
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return Message(message.topic, bytes(data), message.attributes)


def truncated(message: Message, random: Random) -> Message:
    return Message(message.topic, message.data[: random.randrange(len(message.data))], message.attributes)


def garbage(message: Message, random: Random) -> Message:
    return Message(message.topic, random.randbytes(random.randrange(2_000)), message.attributes)


def unsigned(message: Message, random: Random) -> Message:
    return Message(message.topic, message.data, {"content-type": "application/cloudevents+json"} if random.random() < 0.5 else {})


def forged(message: Message, random: Random) -> Message:
    if random.random() < 0.3:
        return _with(message, hmac_signature=random.choice(["", "v1", "v1,", "v2,AAAA", "v1,%%%%", "v1," + "A" * 44, "ü"]))
    ring = KeyRing("prod-v1", {}, default="another secret, just as long as the real one is")
    return Message(message.topic, message.data, ring.sign(message.topic, message.data))


def other_key(message: Message, random: Random) -> Message:
    return _with(message, hmac_key_id=random.choice(["two words", "../../etc/passwd", "x" * 300, None]))


def other_topic(message: Message, random: Random) -> Message:
    topics = {"workflow-events", "workflow-requests", "agent-writer", "agent-critic", "agent-planner"} - {message.topic}
    return Message(random.choice(sorted(topics)), message.data, message.attributes)


def replayed(message: Message, random: Random) -> Message:
    then = SystemClock().now() - timedelta(days=random.uniform(1.01, 30))
    return _document(message, time=_text(then), expirytime=_text(then + timedelta(days=1)))


def from_the_future(message: Message, random: Random) -> Message:
    # 5 minutes are allowed, and some pass before the last one is looked at.
    then = SystemClock().now() + timedelta(minutes=random.uniform(15, 600))
    return _document(message, time=_text(then), expirytime=_text(then + timedelta(days=1)))


def nonsense(message: Message, random: Random) -> Message:
    choices: list[Message] = [
        _document(message, type=random.choice(["agentteam.step.undone.v1", "", "*", "x" * 5_000])),
        _document(message, data=random.choice([None, [], {}, {"workflow": MARKER}, "text", {"deep": [[[[1]]]]}])),
        _document(message, specversion="0.3"),
        _document(message, id=random.choice(["", None, 7, "a\nb", "x" * 2_000])),
        _document(message, source=random.choice(["/elsewhere/gateway", "", None])),
        _document(message, time=random.choice(["yesterday", "", None, "2026-02-30T00:00:00Z"])),
        _signed(message, b"[" * 300 + b"]" * 300),
        _signed(message, random.choice([b"", b"null", b"[]", b"{", b"\xff\xfe", b'{"specversion":"1.0"}'])),
        _signed(message, message.data.replace(b'"data":', b'"data":{"x":"\\u0000"},"other":')),
    ]
    return random.choice(choices)


def oversized(message: Message, random: Random) -> Message:
    return _signed(message, message.data[:-1] + b" " * LIMIT + b"}")


MUTATIONS: Sequence[Mutation] = (
    flipped,
    truncated,
    garbage,
    unsigned,
    forged,
    other_key,
    other_topic,
    replayed,
    from_the_future,
    nonsense,
)


def _text(moment: Any) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%S}Z"


class _Witness:
    """Passes publishing on to a bus and keeps what was published."""

    def __init__(self) -> None:
        self.seen: list[Message] = []

    def watch(self, bus: MemoryBus) -> MemoryBus:
        publish = bus.publish

        async def seeing(messages: Sequence[Message]) -> None:
            self.seen.extend(messages)
            await publish(messages)

        bus.publish = seeing  # type: ignore[method-assign]
        return bus


class _Counting:
    """A bus that counts what its handlers were handed, and what became of it."""

    def __init__(self, bus: Bus) -> None:
        self.outcomes: Counter[Outcome] = Counter()
        self._bus = bus

    async def publish(self, messages: Sequence[Message]) -> None:
        await self._bus.publish(messages)

    async def subscribe(self, subscription: Subscription, handler: Handler) -> None:
        async def counted(delivery: Delivery) -> Outcome:
            outcome = await handler(delivery)
            self.outcomes[outcome] += 1
            return outcome

        await self._bus.subscribe(subscription, counted)

    async def close(self) -> None:
        await self._bus.close()


async def state_of(database: str) -> list[Any]:
    connection = await asyncpg.connect(database)
    try:
        tables = ("workflows", "steps", "edges", "history", "dead_letters")
        return [await connection.fetch(f"select md5(t::text) as row from {table} as t order by 1") for table in tables]
    finally:
        await connection.close()


def rejected() -> Counter[str]:
    return Counter({reason: int(metrics.value("envelope.rejected", reason=reason)) for reason in _REASONS})


@pytest.mark.parametrize("bus", BUSES)
async def test_altered_messages_are_refused_and_change_nothing(
    bus: str, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    witness, random = _Witness(), Random(5)
    brief = f"The ferry missed its slot at {MARKER} on 3 May. The winch jammed. Nobody had told the crew."
    recording = witness.watch(MemoryBus(SystemClock()))
    async with platform(database, tmp_path / "real", bus=recording, COMM_HMAC_DEFAULT_SECRET=SECRET) as real:
        [report] = await write_reports(real, [brief])
        assert report["status"] == "SUCCESS"
    genuine = witness.seen
    assert {orjson.loads(message.data)["type"] for message in genuine} <= TYPES.keys()
    assert any(MARKER.encode() in message.data for message in genuine)

    settings = load_settings({"AGENT_TEAM_HOME": str(tmp_path), "DATABASE_URL": database, "COMM_HMAC_DEFAULT_SECRET": SECRET})
    probe = Runtime(settings)
    subscriptions = [one for spec in probe.functions.values() for one in spec.subscriptions()]
    hostile = [MUTATIONS[n % len(MUTATIONS)](random.choice(genuine), random) for n in range(COUNT - OVERSIZED)]
    hostile += [oversized(random.choice(genuine), random) for _ in range(OVERSIZED)]
    before, counted_before = await state_of(database), rejected()
    async with serving(bus, subscriptions) as open_one:
        ours, theirs = open_one(), open_one(max_bytes=10 * LIMIT)  # theirs keeps to no limit
        counting = _Counting(ours)
        live = Runtime(settings, bus=counting, guards=open_guards("memory", SystemClock()))
        await join(live, live.functions)
        with caplog.at_level(logging.INFO):
            for start in range(0, COUNT, 250):
                await theirs.publish(hostile[start : start + 250])
            await until(lambda: counting.outcomes.total() >= COUNT, within_seconds=120)
            # Whoever comes again comes at once or never: everything was acknowledged.
            await asyncio.sleep(0)
        assert counting.outcomes == {Outcome.ACK: COUNT}
        await live.store.close()

    assert await state_of(database) == before
    counted = rejected() - counted_before
    assert counted.total() == COUNT
    assert counted["size"] == OVERSIZED
    assert min(counted[reason] for reason in _REASONS) > 0, counted
    lines = [record for record in caplog.records if getattr(record, "status", None) == "rejected"]
    assert len(lines) == COUNT
    assert Counter(str(record.__dict__["reason"]) for record in lines) == counted
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert not any(MARKER in record.getMessage() for record in caplog.records)


async def test_every_real_message_is_accepted_as_it_was(database: str, tmp_path: Path) -> None:
    """Or refusing the altered ones would prove nothing."""
    witness = _Witness()
    bus = witness.watch(MemoryBus(SystemClock()))
    async with platform(database, tmp_path, bus=bus, COMM_HMAC_DEFAULT_SECRET=SECRET) as real:
        await write_reports(real, [f"The ferry was late at {MARKER}. Why?"])
        before = rejected()
        await bus.publish(list(witness.seen))
        await bus.idle()
    assert rejected() == before
