import asyncio
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.telemetry import Span, TraceContext, current_trace, record_spans, span, use_trace

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


def hexadecimal(length: int) -> st.SearchStrategy[str]:
    return st.integers(1, 16**length - 1).map(lambda number: f"{number:0{length}x}")


@pytest.mark.parametrize(("flags", "sampled"), [("01", True), ("00", False), ("03", True), ("fe", False), ("ff", True)])
def test_only_the_last_flag_says_whether_a_trace_is_sampled(flags: str, sampled: bool) -> None:
    assert TraceContext.parse(f"00-{TRACE}-{SPAN}-{flags}") == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-", f"fe-{TRACE}-{SPAN}-01-what-the-future-brings"]
)
def test_a_later_version_is_read_as_far_as_it_is_known(header: str) -> None:
    assert TraceContext.parse(header) == TraceContext(TRACE, SPAN)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-.0",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}_{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"02-{TRACE}-{SPAN}-01x",
        f"00-{TRACE}-{SPAN}-\N{ARABIC-INDIC DIGIT ZERO}\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_a_malformed_traceparent_is_none(header: str | None) -> None:
    assert TraceContext.parse(header) is None


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (f"{TRACE}/1;o=1", TraceContext(TRACE, "0000000000000001")),
        (f"{TRACE.upper()}/17179869185;o=0", TraceContext(TRACE, "0000000400000001", False)),
        (f"{TRACE}/18446744073709551615", TraceContext(TRACE, "f" * 16, False)),
        (f" {TRACE}/7;o=3 ", TraceContext(TRACE, "0000000000000007")),
    ],
)
def test_googles_older_header_names_the_span_as_a_decimal_number(header: str, expected: TraceContext) -> None:
    assert TraceContext.parse_cloud(header) == expected


@pytest.mark.parametrize("header", [TRACE, f"{TRACE}/0;o=1", f"{TRACE};o=1"])
def test_googles_older_header_may_name_no_span(header: str) -> None:
    trace = TraceContext.parse_cloud(header)
    assert trace is not None
    assert trace.trace_id == TRACE
    assert TraceContext.parse(trace.header) == trace


@pytest.mark.parametrize(
    "header", [None, "", "0" * 32 + "/1;o=1", f"{TRACE}/x", f"{TRACE[1:]}/1", f"{TRACE}/1;o=", f"{TRACE}/1;p=1"]
)
def test_a_malformed_older_header_is_none(header: str | None) -> None:
    assert TraceContext.parse_cloud(header) is None


@given(hexadecimal(32), hexadecimal(16), st.booleans())
def test_what_is_sent_is_what_is_read(trace_id: str, span_id: str, sampled: bool) -> None:
    trace = TraceContext(trace_id, span_id, sampled)
    assert TraceContext.parse(trace.header) == trace


@given(st.text() | st.text(alphabet="0123456789abcdef-", min_size=50, max_size=60))
def test_parsing_takes_any_text(header: str) -> None:
    trace = TraceContext.parse(header)
    assert trace is None or header[3:52] == trace.header[3:52]


def test_new_traces_differ_and_are_well_formed() -> None:
    traces = [TraceContext.new() for _ in range(50)]
    assert len({trace.trace_id for trace in traces}) == 50
    assert all(re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", trace.header) for trace in traces)
    assert TraceContext.new(sampled=False).header.endswith("-00")


def test_a_child_is_another_span_of_the_same_trace() -> None:
    parent = TraceContext(TRACE, SPAN, sampled=False)
    child = parent.child()
    assert (child.trace_id, child.sampled) == (TRACE, False)
    assert child.span_id != SPAN


def test_randomness_can_be_given() -> None:
    def trace() -> TraceContext:
        return TraceContext.new(random_bytes=random.Random(1).randbytes)

    assert trace() == trace()
    assert trace().child(random_bytes=random.Random(2).randbytes) == trace().child(random_bytes=random.Random(2).randbytes)


def test_no_identifier_is_all_zeros() -> None:
    trace = TraceContext.new(random_bytes=bytes)
    assert (trace.trace_id, trace.span_id) == ("0" * 31 + "1", "0" * 15 + "1")


async def test_the_current_trace_follows_the_task_and_ends_with_the_block() -> None:
    async def seen() -> TraceContext | None:
        return current_trace()

    one, other = TraceContext.new(), TraceContext.new()
    with use_trace(one):
        inner = asyncio.create_task(seen())
        with use_trace(other):
            assert current_trace() == other
        assert current_trace() == one
    assert current_trace() is None
    assert await inner == one


def test_a_span_is_below_its_parent_and_recorded_when_it_ends() -> None:
    recorded: list[Span] = []
    record_spans(recorded.append)
    try:
        with span("http.server", "GET /", parent=None) as outer:
            assert current_trace() is outer.trace
            with span("queue.process", "writer", parent=current_trace()) as inner:
                inner.status = "unavailable"
            assert recorded == [inner]
        with pytest.raises(ZeroDivisionError), span("queue.process", "judge", parent=TraceContext(TRACE, SPAN)):
            raise ZeroDivisionError
    finally:
        record_spans(None)
    assert (outer.trace.parent_id, inner.trace.parent_id) == (None, outer.trace.span_id)
    assert inner.trace.trace_id == outer.trace.trace_id
    # The beginning is the wall clock's, the length is not: they differ by microseconds.
    assert outer.started <= inner.started <= inner.ended <= outer.ended + 0.001
    *_, broken = recorded
    assert (broken.status, broken.trace.trace_id, broken.trace.parent_id) == ("internal_error", TRACE, SPAN)
    assert [one.status for one in recorded] == ["unavailable", "ok", "internal_error"]
    assert current_trace() is None
