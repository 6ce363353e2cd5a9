"""W3C Trace Context (https://www.w3.org/TR/trace-context/, level 1): which request a piece of work belongs to.

A trace travels in the envelope's `traceparent` and, inside a process, in a context variable that the logs read.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

RandomBytes = Callable[[int], bytes]
"""`n` → n random bytes, such as `os.urandom` or `random.Random(seed).randbytes`."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_SAMPLED = 0x01

_current: ContextVar["TraceContext | None"] = ContextVar("trace", default=None)


@dataclass(frozen=True, slots=True)
class TraceContext:
    """One span of a trace."""

    trace_id: str
    """32 lower-case hexadecimal digits, not all 0."""
    span_id: str
    """16 lower-case hexadecimal digits, not all 0."""
    sampled: bool = True
    """Whether the caller may have recorded it."""

    @classmethod
    def new(cls, *, sampled: bool = True, random_bytes: RandomBytes = os.urandom) -> "TraceContext":
        """The first span of a new trace."""
        return cls(_identifier(16, random_bytes), _identifier(8, random_bytes), sampled)

    @classmethod
    def parse(cls, traceparent: str | None) -> "TraceContext | None":
        """Read a `traceparent`; None where there is none or it is malformed, as the specification asks: then start a new trace.

        Versions after 00 are read as 00 as far as it goes, and may have more at the end.
        """
        match = None if traceparent is None else _TRACEPARENT.fullmatch(traceparent)
        if match is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if version == "ff" or (version == "00" and more is not None) or not (trace_id.strip("0") and span_id.strip("0")):
            return None
        return cls(trace_id, span_id, bool(int(flags, 16) & _SAMPLED))

    def child(self, *, random_bytes: RandomBytes = os.urandom) -> "TraceContext":
        """A new span of the same trace."""
        return TraceContext(self.trace_id, _identifier(8, random_bytes), self.sampled)

    @property
    def header(self) -> str:
        """The `traceparent` to send on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def current_trace() -> TraceContext | None:
    """The trace that the running task works for."""
    return _current.get()


@contextmanager
def use_trace(trace: TraceContext | None) -> Iterator[None]:
    """Make `trace` the current one within the block, and in tasks started there."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def follow_trace(trace: TraceContext | None) -> None:
    """Make `trace` the current one for the rest of the running task."""
    _current.set(trace)


def _identifier(length: int, random_bytes: RandomBytes) -> str:
    # All zeros is the one identifier that the specification forbids.
    number = int.from_bytes(random_bytes(length), "big") or 1
    return f"{number:0{2 * length}x}"
