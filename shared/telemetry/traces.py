"""W3C Trace Context (https://www.w3.org/TR/trace-context/, level 1): which request a piece of work belongs to.

A trace travels in the envelope's `traceparent` and, inside a process, in a context variable that the logs read. Google's older
header, `X-Cloud-Trace-Context: TRACE/SPAN;o=SAMPLED` with the span as a decimal number, is understood where there is no other
(https://cloud.google.com/trace/docs/trace-context).
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

RandomBytes = Callable[[int], bytes]
"""`n` → n random bytes, such as `os.urandom` or `random.Random(seed).randbytes`."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_CLOUD_TRACE = re.compile(r"([0-9a-fA-F]{32})(?:/([0-9]{1,20}))?(?:;o=([0-9]{1,3}))?")
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
    parent_id: str | None = field(default=None, compare=False)
    """The span that led to this one, where this process knows it: no header tells."""

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

    @classmethod
    def parse_cloud(cls, header: str | None) -> "TraceContext | None":
        """Read an `X-Cloud-Trace-Context`; None where there is none, or none that names a trace."""
        match = None if header is None else _CLOUD_TRACE.fullmatch(header.strip())
        if match is None or not match[1].strip("0"):
            return None
        number = int(match[2] or 0) % 2**64
        # Without a span it still says which trace; the span above the first one is then an unknown one.
        return cls(match[1].lower(), f"{number:016x}" if number else _identifier(8, os.urandom), (int(match[3] or 0) & 1) == 1)

    def child(self, *, random_bytes: RandomBytes = os.urandom) -> "TraceContext":
        """A new span of the same trace."""
        return TraceContext(self.trace_id, _identifier(8, random_bytes), self.sampled, self.span_id)

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


@dataclass(slots=True)
class Span:
    """A piece of work, as it is recorded once it is over."""

    trace: TraceContext
    operation: str
    """What kind of work: `http.server` or `queue.process`."""
    name: str
    """Which work, of few different ones: no id belongs here."""
    status: str = "ok"
    """`ok`, or one of Sentry's: https://develop.sentry.dev/sdk/data-model/event-payloads/span/."""
    started: float = 0.0
    """Seconds since 1970, as `ended`."""
    ended: float = 0.0


Recorder = Callable[[Span], None]
"""Takes a span that has ended. It may neither wait nor raise."""
_recorder: Recorder | None = None


def record_spans(recorder: Recorder | None) -> None:
    """From now on hand every span that ends to `recorder`; None ends that."""
    global _recorder
    _recorder = recorder


@contextmanager
def span(operation: str, name: str, *, parent: TraceContext | None) -> Iterator[Span]:
    """Work within the block as a new span below `parent`, or as the first one of a new trace."""
    trace = TraceContext.new() if parent is None else parent.child()
    running = Span(trace, operation, name, started=time.time())
    begun = time.perf_counter()
    try:
        with use_trace(trace):
            yield running
    except BaseException:
        running.status = "internal_error"
        raise
    finally:
        if _recorder is not None:
            running.ended = running.started + time.perf_counter() - begun
            _recorder(running)


def _identifier(length: int, random_bytes: RandomBytes) -> str:
    # All zeros is the one identifier that the specification forbids.
    number = int.from_bytes(random_bytes(length), "big") or 1
    return f"{number:0{2 * length}x}"
