import dataclasses
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shared.errors import ConfigurationError, EnvelopeRejected, InputError
from shared.messages import (
    CONTENT_TYPE,
    TYPES,
    Budget,
    Envelope,
    ErrorInfo,
    KeyRing,
    Payload,
    Remaining,
    SpawnedStep,
    StepCompleted,
    StepDeferred,
    StepDispatched,
    StepFailed,
    Usage,
    WorkflowCancelled,
    WorkflowFinished,
    WorkflowRequested,
    decode,
    open_envelope,
    seal,
)

NOW = datetime(2026, 1, 1, 12, 30, 15, 250_000, tzinfo=UTC)
TTL = 3600.0
MAX_BYTES = 524_288
TOPIC = "agent-writer"
RING = KeyRing("v1", {"V1": "1" * 40})
WORKFLOW = "wf_01JGXV3Z8KQ4N5T6R7S8W9X0YZ"
REASONS = {"size", "key", "signature", "schema", "type", "expired", "future"}
CANARY = "canary-4711"

json_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | json_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(json_text, inner, max_size=4),
    max_leaves=12,
)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
usages = st.builds(Usage, model_calls=st.integers(0, 100), input_tokens=st.integers(0, 10**9))
attempts: dict[str, Any] = {"workflow": st.just(WORKFLOW), "step": st.just("research/0"), "attempt": st.integers(1, 9)}
spawned = st.builds(SpawnedStep, id=st.just("a"), agent=st.just("writer"), input=json_values, needs=st.just(("b", "c")))
payloads: st.SearchStrategy[Payload] = st.one_of(
    st.builds(
        WorkflowRequested, workflow=st.just("report"), input=st.dictionaries(json_text, json_values), budget=st.just(Budget())
    ),
    st.builds(WorkflowCancelled, workflow=st.just(WORKFLOW), reason=json_text),
    st.builds(WorkflowFinished, workflow=st.just(WORKFLOW), name=st.just("report"), status=st.just("SUCCESS"), output=json_values),
    st.builds(
        StepDispatched, **attempts, agent=st.just("writer"), input=json_values, deadline=moments, remaining=st.just(Remaining())
    ),
    st.builds(StepCompleted, **attempts, output=json_values, usage=usages, spawn=st.lists(spawned, max_size=2).map(tuple)),
    st.builds(StepFailed, **attempts, error=st.builds(ErrorInfo, type=st.just("E"), message=json_text), permanent=st.booleans()),
    st.builds(StepDeferred, **attempts, not_before=moments),
)


def a_payload(output: Any = None) -> StepCompleted:
    return StepCompleted(workflow=WORKFLOW, step="draft", attempt=1, output=output)


def an_envelope(payload: Payload | None = None, **changes: Any) -> Envelope:
    arguments: dict[str, Any] = {
        "id": f"{WORKFLOW}/draft/1/completed",
        "source_function": "writer",
        "subject": f"{WORKFLOW}/draft",
        "now": NOW,
        "ttl_seconds": TTL,
        "correlation_id": WORKFLOW,
        "causation_id": f"{WORKFLOW}/draft/1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }
    return Envelope.create(a_payload() if payload is None else payload, **(arguments | changes))


def a_document(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads(an_envelope(a_payload({"text": CANARY})).encode())
    return document | changes


def read(data: bytes, now: datetime = NOW) -> Envelope:
    return decode(data, now=now, max_bytes=MAX_BYTES)


def rejection(data: bytes, now: datetime = NOW) -> EnvelopeRejected:
    with pytest.raises(EnvelopeRejected) as caught:
        read(data, now)
    assert caught.value.reason in REASONS
    assert "\n" not in str(caught.value)
    return caught.value


def outcome(data: bytes) -> Envelope | str:
    """The envelope, or the reason why there is none; any other exception goes through."""
    try:
        return read(data)
    except EnvelopeRejected as rejected:
        return rejected.reason


def opened(
    data: bytes, attributes: dict[str, str], *, topic: str = TOPIC, now: datetime = NOW, max_bytes: int = MAX_BYTES
) -> Envelope:
    return open_envelope(topic, data, attributes, ring=RING, now=now, max_bytes=max_bytes)


def refusal(data: bytes, attributes: dict[str, str], **changes: Any) -> str:
    with pytest.raises(EnvelopeRejected) as caught:
        opened(data, attributes, **changes)
    return caught.value.reason


def test_an_envelope_is_a_cloudevent() -> None:
    assert orjson.loads(an_envelope(a_payload("done")).encode()) == {
        "specversion": "1.0",
        "id": f"{WORKFLOW}/draft/1/completed",
        "source": "/agent-team/writer",
        "type": "agentteam.step.completed.v1",
        "subject": f"{WORKFLOW}/draft",
        "time": "2026-01-01T12:30:15.250000Z",
        "expirytime": "2026-01-01T13:30:15.250000Z",
        "correlationid": WORKFLOW,
        "causationid": f"{WORKFLOW}/draft/1",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "datacontenttype": "application/json",
        "data": {
            "workflow": WORKFLOW,
            "step": "draft",
            "attempt": 1,
            "output": "done",
            "usage": {"model_calls": 0, "input_tokens": 0, "output_tokens": 0, "cost_microdollars": 0},
            "models": {},
            "prompts": [],
            "spawn": [],
            "join": None,
        },
    }


def test_what_an_envelope_does_not_have_is_not_sent() -> None:
    data = an_envelope(causation_id=None, traceparent=None).encode()
    assert b"causationid" not in data
    assert b"traceparent" not in data
    assert read(data).causationid is None


@given(payload=payloads, now=moments, ttl=st.floats(1, 10**6))
def test_what_is_sealed_opens_as_the_same_envelope(payload: Payload, now: datetime, ttl: float) -> None:
    envelope = an_envelope(payload, now=now, ttl_seconds=ttl)
    data, attributes = seal(envelope, TOPIC, RING, max_bytes=MAX_BYTES)
    assert attributes["content-type"] == CONTENT_TYPE
    again = opened(data, attributes, now=now)
    assert again == envelope
    assert again.encode() == data


@pytest.mark.parametrize("hours", [-11, 0, 5.5])
def test_times_are_sent_in_utc(hours: float) -> None:
    zone = timezone(timedelta(hours=hours))
    envelope = an_envelope(now=NOW.astimezone(zone))
    assert orjson.loads(envelope.encode())["time"] == "2026-01-01T12:30:15.250000Z"
    assert envelope == an_envelope()


def test_a_repr_shows_no_payload() -> None:
    assert CANARY not in repr(an_envelope(a_payload(CANARY)))


def test_an_envelope_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        an_envelope().id = "another"  # type: ignore[misc]


@pytest.mark.parametrize("position", range(0, 700, 7))
def test_changing_any_byte_of_a_sealed_envelope_has_it_refused(position: int) -> None:
    data, attributes = seal(an_envelope(), TOPIC, RING, max_bytes=MAX_BYTES)
    changed = bytearray(data)
    changed[position % len(changed)] ^= 1
    assert refusal(bytes(changed), attributes) == "signature"


def test_an_envelope_for_another_topic_is_refused() -> None:
    data, attributes = seal(an_envelope(), TOPIC, RING, max_bytes=MAX_BYTES)
    assert refusal(data, attributes, topic="agent-judge") == "signature"


def test_the_checks_come_in_the_order_of_the_contract() -> None:
    expired_and_unknown = orjson.dumps(a_document(type="agentteam.step.lost.v1", time="2020-01-01T00:00:00Z"))
    good_key, no_key = RING.sign(TOPIC, expired_and_unknown), {"hmac-key-id": "v9", "hmac-signature": "v1,"}
    bad_signature = good_key | {"hmac-signature": "v1,"}
    small = len(expired_and_unknown) - 1
    assert refusal(expired_and_unknown, no_key, max_bytes=small) == "size"
    assert refusal(expired_and_unknown, no_key) == "key"
    assert refusal(expired_and_unknown, bad_signature, max_bytes=small) == "size"
    assert refusal(expired_and_unknown, bad_signature) == "signature"
    assert refusal(b"no JSON", bad_signature) == "signature"
    assert refusal(expired_and_unknown, good_key) == "type"
    wrong_and_expired = orjson.dumps(a_document(data={}, time="2020-01-01T00:00:00Z", expirytime="2020-01-02T00:00:00Z"))
    assert refusal(wrong_and_expired, RING.sign(TOPIC, wrong_and_expired)) == "schema"


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(-300.000001, "future"), (-300, None), (0, None), (TTL - 0.000001, None), (TTL, "expired"), (TTL + 1, "expired")],
)
def test_an_envelope_is_good_from_five_minutes_before_its_time_until_it_expires(seconds: float, reason: str | None) -> None:
    data, now = an_envelope().encode(), NOW + timedelta(seconds=seconds)
    if reason is None:
        assert read(data, now) == an_envelope()
    else:
        assert rejection(data, now).reason == reason


def test_the_largest_message_goes_through_and_one_byte_more_does_not() -> None:
    envelope = an_envelope(a_payload(CANARY * 100))
    size = len(envelope.encode())
    data, attributes = seal(envelope, TOPIC, RING, max_bytes=size)
    assert opened(data, attributes, max_bytes=size) == envelope
    assert refusal(data, attributes, max_bytes=size - 1) == "size"
    with pytest.raises(InputError, match=f"has {size} bytes, over the {size - 1} of MAX_PAYLOAD_BYTES") as caught:
        seal(envelope, TOPIC, RING, max_bytes=size - 1)
    assert CANARY not in str(caught.value)
    with pytest.raises(EnvelopeRejected, match="MAX_PAYLOAD_BYTES"):
        decode(data, now=NOW, max_bytes=size - 1)


def test_a_topic_that_cannot_be_signed_for_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError):
        seal(an_envelope(), "no topic", RING, max_bytes=MAX_BYTES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"{}",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b"[" * 1000 + b"]" * 1000,
        b'{"a":' * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        orjson.dumps(a_document(data=0)).replace(b'"data":0', b'"data":NaN'),
        orjson.dumps(a_document(data=0)).replace(b'"data":0', b'"data":{"output":1e999}'),
        orjson.dumps(a_document(extra=0)).replace(b'"extra":0', b'"extra":"\\ud800"'),
        orjson.dumps(a_document(extra=0)).replace(b'"extra":0', b'"extra":"\xed\xa0\x80"'),
        orjson.dumps(a_document(extra=0)).replace(b'"extra":0', b'"extra":"\x00"'),
        orjson.dumps(a_document(extra=0)).replace(b'"extra":0', b'"attempt":' + b"[" * 300 + b"]" * 300),
    ],
    ids=lambda data: repr(data[:20]),
)
def test_what_is_no_json_object_of_ours_breaks_the_schema(data: bytes) -> None:
    assert rejection(data).reason == "schema"


REQUIRED = ("specversion", "id", "source", "type", "subject", "time", "expirytime", "correlationid", "datacontenttype", "data")


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, 1, True, [], {}, "", " \n", 1.5, "\u2028"])
def test_an_attribute_of_the_wrong_kind_breaks_the_schema(name: str, value: object) -> None:
    reason = rejection(orjson.dumps(a_document(**{name: value}))).reason
    assert reason == ("type" if name == "type" and isinstance(value, str) else "schema")


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_attribute_breaks_the_schema(name: str) -> None:
    document = a_document()
    del document[name]
    assert rejection(orjson.dumps(document)).reason == "schema"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("datacontenttype", "text/plain"),
        ("source", "/other-team/writer"),
        ("source", "/agent-team/"),
        ("id", "a" * 1025),
        ("subject", "a\tb"),
        ("causationid", ""),
        ("causationid", 7),
        ("traceparent", ["00"]),
        ("time", "2026-01-01T12:30:15"),
        ("time", "2026-01-01T12:30:15+00:00"),
        ("time", "2026-01-01 12:30:15Z"),
        ("time", "2026-01-01T12:30Z"),
        ("time", "20260101T123015Z"),
        ("time", "2026-01-01T12:30:15.1234567Z"),
        ("time", "2026-01-01T12:30:15Z\n"),
        ("time", "٢٠٢٦-01-01T12:30:15Z"),
        ("time", "2026-02-30T12:30:15Z"),
        ("time", "0000-01-01T12:30:15Z"),
        ("time", "2026-01-01T24:30:15Z"),
        ("time", "2026-01-01T12:30:60Z"),
        ("time", 1767270615),
        ("expirytime", "2026-01-01T12:30:15.250000Z"),
        ("expirytime", "2026-01-01T12:30:15Z"),
    ],
)
def test_an_attribute_with_a_wrong_value_breaks_the_schema(name: str, value: object) -> None:
    assert name in str(rejection(orjson.dumps(a_document(**{name: value}))))


@pytest.mark.parametrize("fraction", ["", ".2", ".25", ".250", ".250000"])
def test_a_time_may_have_up_to_six_decimals(fraction: str) -> None:
    envelope = read(orjson.dumps(a_document(time=f"2026-01-01T12:30:15{fraction}Z")))
    assert envelope.time == datetime(2026, 1, 1, 12, 30, 15, int(float(f"0{fraction}" if fraction else 0) * 10**6), UTC)


def test_what_a_later_build_says_beyond_what_we_know_is_ignored() -> None:
    assert read(orjson.dumps(a_document(partitionkey="7"))) == read(orjson.dumps(a_document()))
    data = a_document()["data"]
    later = data | {"later": CANARY, "usage": {"model_calls": 1, "later": [CANARY]}}
    assert read(orjson.dumps(a_document(data=later))) == read(orjson.dumps(a_document(data=data | {"usage": {"model_calls": 1}})))


def test_the_last_of_two_equal_keys_counts() -> None:
    data = an_envelope(a_payload("first")).encode().replace(b'"output":"first"', b'"output":"first","output":"last"')
    assert read(data).data == a_payload("last")


@pytest.mark.parametrize("text", ["\x00", "a\x00b", "\\\x00", "\\\\\x00", "\n\x00", '"\x00'])
def test_a_nul_character_is_refused_on_both_ways(text: str) -> None:
    for output in (text, {text: 1}, [[text]]):
        with pytest.raises(InputError, match="NUL"):
            an_envelope(a_payload(output)).encode()
        mistake = rejection(orjson.dumps(a_document(data=a_document()["data"] | {"output": output})))
        assert (mistake.reason, "NUL" in str(mistake)) == ("schema", True)


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "\\", "u0000", "\n\\u0000", "\x01\\u0000\\"])
def test_a_text_about_nul_goes_through(text: str) -> None:
    envelope = an_envelope(a_payload({text: text}))
    assert read(envelope.encode()) == envelope


@given(st.text(st.sampled_from('\\u0"\x00\n'), max_size=30))
def test_an_envelope_is_refused_exactly_if_a_text_holds_nul(text: str) -> None:
    data = orjson.dumps(a_document(data=a_document()["data"] | {"output": text}))
    if "\x00" in text:
        assert rejection(data).reason == "schema"
    else:
        assert read(data).data == a_payload(text)


@pytest.mark.parametrize(
    "output",
    [{1: 2}, b"bytes", {1, 2}, object(), 2**64, -(2**63) - 1, "\ud800", {"\udfff": 1}],
    ids=lambda value: type(value).__name__,
)
def test_what_json_does_not_hold_cannot_be_sent(output: object) -> None:
    with pytest.raises(InputError, match=r"agentteam\.step\.completed\.v1 .* cannot be sent as JSON"):
        seal(an_envelope(a_payload(output)), TOPIC, RING, max_bytes=MAX_BYTES)


def test_an_integer_beyond_64_bits_is_read_as_a_float() -> None:
    data = an_envelope(a_payload(7)).encode().replace(b'"output":7', b'"output":' + b"9" * 5000)
    assert rejection(data).reason == "schema"
    data = an_envelope(a_payload(7)).encode().replace(b'"output":7', b'"output":18446744073709551616')
    assert read(data).data == a_payload(2.0**64)


@pytest.mark.parametrize("depth", [1, 100, 250, 251, 252, 253, 254, 255, 500])
def test_what_can_be_read_can_be_sent_on(depth: int) -> None:
    nested: Any = 0
    for _ in range(depth):
        nested = [nested]
    data = an_envelope(a_payload(0)).encode().replace(b'"output":0', b'"output":' + b"[" * depth + b"0" + b"]" * depth)
    if depth <= 252:
        assert read(data).encode() == data
        assert an_envelope(a_payload(nested)).encode() == data
    else:
        assert rejection(data).reason == "schema"
        with pytest.raises(InputError, match="cannot be sent as JSON"):
            an_envelope(a_payload(nested)).encode()


def test_a_type_that_we_do_not_know_is_named_if_it_looks_like_one() -> None:
    known = rejection(orjson.dumps(a_document(type="agentteam.step.lost.v1")))
    assert (known.reason, "agentteam.step.lost.v1" in str(known)) == ("type", True)
    other = rejection(orjson.dumps(a_document(type=f"{CANARY}\n")))
    assert (other.reason, CANARY in str(other)) == ("type", False)


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize(
    "data", [None, [], CANARY, {}, {CANARY * 20: 1}, {"workflow": f"{CANARY}!", "step": CANARY, "attempt": CANARY}]
)
def test_a_mistake_names_the_place_and_shows_no_value(type_name: str, data: object) -> None:
    mistake = rejection(orjson.dumps(a_document(type=type_name, data=data)))
    assert mistake.reason == "schema"
    assert "data" in str(mistake)
    assert CANARY not in "".join(traceback.format_exception(mistake))


@pytest.mark.parametrize("name", [f"{CANARY}\n", CANARY * 20, f"{CANARY}: text"])
def test_the_name_of_a_place_is_shown_only_if_it_looks_like_one(name: str) -> None:
    mistake = rejection(orjson.dumps(a_document(data=a_document()["data"] | {"models": {name: 1}})))
    assert "data.models.…" in str(mistake)
    assert CANARY not in str(mistake)


def test_text_that_is_no_json_is_not_shown() -> None:
    assert CANARY not in "".join(traceback.format_exception(rejection(f"{{{CANARY}}}".encode())))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"id": ""}, "id is not"),
        ({"id": "a\nb"}, "id is not"),
        ({"subject": "a" * 1025}, "subject is not"),
        ({"correlation_id": "\ud800"}, "correlationid is not"),
        ({"causation_id": ""}, "causationid is not"),
        ({"traceparent": "\x00"}, "traceparent is not"),
        ({"source_function": ""}, "source is not"),
        ({"ttl_seconds": 0}, "cannot live"),
        ({"ttl_seconds": -1}, "cannot live"),
        ({"ttl_seconds": 1e-9}, "cannot live"),
        ({"ttl_seconds": 1e12}, "cannot live"),
        ({"ttl_seconds": float("nan")}, "cannot live"),
    ],
)
def test_an_envelope_that_would_be_refused_is_not_made(change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        an_envelope(**change)


def test_only_messages_can_be_sent() -> None:
    with pytest.raises(InputError, match="Usage is not a message; send one of WorkflowRequested"):
        an_envelope(Usage())


@given(st.binary(max_size=200))
@example(b"\x00")
@example(b'{"specversion":"1.0"')
def test_arbitrary_bytes_are_refused_and_raise_nothing_else(data: bytes) -> None:
    assert rejection(data).reason == "schema"
    assert refusal(data, RING.sign(TOPIC, data)) == "schema"


@given(json_values)
def test_arbitrary_json_is_refused_and_raises_nothing_else(value: object) -> None:
    assert rejection(orjson.dumps(value)).reason == "schema"


def _paths(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    inner = [found for key, child in value.items() for found in _paths(child, (*path, key))] if isinstance(value, dict) else []
    return [path, *inner] if path else inner


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(payload=payloads, junk=json_values | st.integers() | st.sampled_from(["9" * 400, "inf", "nan", -1, 2**63]), chance=st.data())
def test_an_envelope_with_junk_in_it_opens_or_is_refused_and_raises_nothing_else(
    payload: Payload, junk: object, chance: st.DataObject
) -> None:
    document = orjson.loads(an_envelope(payload).encode())
    *outer, last = chance.draw(st.sampled_from(_paths(document)))
    place = document
    for name in outer:
        place = place[name]
    place[last] = "JUNK"
    junk_json = str(junk).encode() if isinstance(junk, int) and not isinstance(junk, bool) else orjson.dumps(junk)
    result = outcome(orjson.dumps(document).replace(b'"JUNK"', junk_json, 1))
    assert isinstance(result, Envelope) or result in REASONS


@given(payload=payloads, cut=st.integers(0, 10**6), change=st.binary(max_size=4), length=st.integers(0, 4))
def test_a_damaged_document_opens_or_is_refused_and_raises_nothing_else(
    payload: Payload, cut: int, change: bytes, length: int
) -> None:
    data = an_envelope(payload).encode()
    place = cut % len(data)
    result = outcome(data[:place] + change + data[place + length :])
    if isinstance(result, Envelope):
        assert read(result.encode()) == result
    else:
        assert result in REASONS


@pytest.mark.parametrize(
    "change", [bytes.upper, bytes.swapcase, lambda data: data[::-1], lambda data: data * 2, lambda data: data[1:]]
)
def test_a_document_turned_around_is_refused(change: Callable[[bytes], bytes]) -> None:
    assert rejection(change(an_envelope().encode())).reason == "schema"


def test_blanks_around_a_document_do_not_matter() -> None:
    assert read(b" \n" + an_envelope().encode() + b"\t") == an_envelope()
