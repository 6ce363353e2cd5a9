"""What trust costs: signing, verifying, and a whole envelope out and in, in microseconds."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from timeit import Timer

from shared.messages import Envelope, KeyRing, StepDispatched, open_envelope, seal

_TOPIC = "agent-researcher"
_WORKFLOW = "wf_01JGXV3Z8KQ4N5T6R7S8W9X0YZ"
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_MAX_BYTES = 524_288
_REPEATS = 9


def _microseconds(call: Callable[[], object], number: int) -> float:
    return median(Timer(call).repeat(_REPEATS, number)) / number * 1e6


def _payload() -> StepDispatched:
    """About as much as makes an envelope of 1 KB."""
    return StepDispatched(
        workflow=_WORKFLOW,
        step="research/0",
        attempt=1,
        agent="researcher",
        input={
            "question": "What changed?",
            "brief": "Sales fell in the north and rose in the south. " * 5,
            "limits": [1, 2.5, None],
        },
        deadline=_NOW + timedelta(minutes=5),
    )


def _envelope(payload: StepDispatched) -> Envelope:
    return Envelope.create(
        payload,
        id=f"{_WORKFLOW}/research/0/1",
        source_function="orchestrator",
        subject=f"{_WORKFLOW}/research/0",
        now=_NOW,
        ttl_seconds=86_400,
        correlation_id=_WORKFLOW,
        causation_id=f"{_WORKFLOW}/plan/1/completed",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )


def run() -> dict[str, float]:
    """Medians in microseconds a call, on one core."""
    ring = KeyRing("prod-v2", {"V1": "1" * 40, "V2": "2" * 40})
    kilobyte, largest = b"x" * 1024, b"x" * _MAX_BYTES
    signed_kilobyte, signed_largest = ring.sign(_TOPIC, kilobyte), ring.sign(_TOPIC, largest)
    payload = _payload()
    envelope = _envelope(payload)
    data, attributes = seal(envelope, _TOPIC, ring, max_bytes=_MAX_BYTES)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "sign 1 KB": (lambda: ring.sign(_TOPIC, kilobyte), 10_000),
        "verify 1 KB": (lambda: ring.verify(_TOPIC, kilobyte, signed_kilobyte), 10_000),
        "sign 512 KB": (lambda: ring.sign(_TOPIC, largest), 100),
        "verify 512 KB": (lambda: ring.verify(_TOPIC, largest, signed_largest), 100),
        "create and encode 1 KB": (lambda: _envelope(payload).encode(), 10_000),
        "create, encode and seal 1 KB": (lambda: seal(_envelope(payload), _TOPIC, ring, max_bytes=_MAX_BYTES), 10_000),
        "open 1 KB": (lambda: open_envelope(_TOPIC, data, attributes, ring=ring, now=_NOW, max_bytes=_MAX_BYTES), 10_000),
    }
    return {name: _microseconds(*call) for name, call in calls.items()}
