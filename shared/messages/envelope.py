"""Envelopes: CloudEvents 1.0 in structured JSON (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md).

    {"specversion": "1.0", "id": "wf_…/draft/1", "source": "/agent-team/state", "type": "agentteam.step.dispatched.v1",
     "subject": "wf_…/draft", "time": "2026-01-01T00:00:00Z", "expirytime": "2026-01-02T00:00:00Z", "correlationid": "wf_…",
     "causationid": "…", "traceparent": "00-…", "datacontenttype": "application/json", "data": {…}}

`causationid` and `traceparent` may be missing. Attributes are 1 to 1,024 printable characters; times are RFC 3339 in UTC with `Z`,
to the microsecond. Attributes that are not listed are ignored, as CloudEvents asks, and so are fields of `data` that are not: while
a release is rolled out, the builds before and after it read each other's messages. What must not be ignored needs a type of its
own, a new `.v2`.

What `seal` lets out, `open_envelope` lets in, and gives back the same envelope. Both refuse what the next hop could not carry:
nesting beyond 254 levels, and NUL characters, which PostgreSQL's jsonb does not hold. Integers beyond 64 bits are refused on the
way out and are floats on the way in; NaN and infinities are sent as null; of a key that is there twice the last one counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from shared.errors import EnvelopeRejected, InputError
from shared.messages.payloads import TYPE_OF, TYPES, Payload
from shared.messages.signing import Ring

MAX_CLOCK_SKEW = timedelta(minutes=5)
"""How far ahead of the receiver's clock a sender's may be."""

_SOURCE = "/agent-team/"
_MAX_TEXT = 1024
_REQUIRED = ("id", "source", "subject", "correlationid")
_OPTIONAL = ("causationid", "traceparent")
_is_timestamp = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?Z").fullmatch
_is_shown = re.compile(r"[A-Za-z0-9_.-]{1,100}").fullmatch


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of the team, named as in CloudEvents. Its `repr` shows no data.

    Make one with `create`; one that arrived comes from `open_envelope`.
    """

    id: str
    """Derived from what the message means; with `source` the idempotency key."""
    source: str
    """`/agent-team/<function>`."""
    type: str
    """A key of `TYPES`; says what `data` is."""
    subject: str
    """`wf_…/step`, or the workflow alone."""
    time: datetime
    expirytime: datetime
    """The first moment at which no receiver acts on it any more."""
    correlationid: str
    """The workflow."""
    data: Payload = field(repr=False)
    causationid: str | None = None
    """The id of the message that caused this one."""
    traceparent: str | None = None
    """W3C trace context, as it came: a malformed one is for the tracing to ignore."""

    @classmethod
    def create(
        cls,
        payload: Payload,
        *,
        id: str,
        source_function: str,
        subject: str,
        now: datetime,
        ttl_seconds: float,
        correlation_id: str,
        causation_id: str | None = None,
        traceparent: str | None = None,
    ) -> "Envelope":
        """An envelope for `payload`, sent at `now` (aware) by `source_function` and good for `ttl_seconds`.

        Raises InputError for a payload that is no message and for attributes that a receiver would refuse.
        """
        type_name = TYPE_OF.get(type(payload))
        if type_name is None:
            names = ", ".join(model.__name__ for model in TYPE_OF)
            raise InputError(f"{type(payload).__name__} is not a message; send one of {names}")
        attributes: dict[str, Any] = {
            "id": id,
            "source": f"{_SOURCE}{source_function}",
            "subject": subject,
            "correlationid": correlation_id,
            "causationid": causation_id,
            "traceparent": traceparent,
        }
        flaw = _flaw(attributes)
        if flaw is not None:
            raise InputError(f"{type_name} cannot be sent: {flaw}")
        time = now.astimezone(UTC)
        return cls(type=type_name, time=time, expirytime=_expiry(time, ttl_seconds), data=payload, **attributes)

    def encode(self) -> bytes:
        """The CloudEvents document. Raises InputError when the payload holds what JSON, or the next hop, can't."""
        document: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "subject": self.subject,
            "time": self.time,
            "expirytime": self.expirytime,
            "correlationid": self.correlationid,
            "datacontenttype": "application/json",
            "data": self.data,
        }
        if self.causationid is not None:
            document["causationid"] = self.causationid
        if self.traceparent is not None:
            document["traceparent"] = self.traceparent
        try:
            data = orjson.dumps(document, default=_fields, option=orjson.OPT_UTC_Z)
        except TypeError as error:
            raise InputError(f"{self.type} {self.id} cannot be sent as JSON: {error}; change what the payload holds") from None
        if _holds_nul(data):
            raise InputError(f"{self.type} {self.id} cannot be sent: it holds a NUL character; remove it from the payload")
        return data


def decode(data: bytes, *, now: datetime, max_bytes: int) -> Envelope:
    """Read a document whose signature was verified. `now` is the receiver's time, aware.

    Raises EnvelopeRejected with reason size, schema, type, expired or future, whatever the bytes are.
    """
    _check_size(data, max_bytes)
    envelope = _parse(data)
    if now >= envelope.expirytime:
        raise EnvelopeRejected("expired", f"{envelope.type} {envelope.id} expired; redrive it, or raise COMM_IDEMPOTENCY_TTL_SEC")
    if envelope.time - now > MAX_CLOCK_SKEW:
        raise EnvelopeRejected(
            "future", f"{envelope.type} {envelope.id} is more than 5 minutes ahead; set the clocks of sender and receiver"
        )
    return envelope


def open_envelope(topic: str, data: bytes, attributes: Mapping[str, str], *, ring: Ring, now: datetime, max_bytes: int) -> Envelope:
    """Everything that a receiver must check before it acts, in this order: size, key, signature, JSON and schema, age.

    Raises EnvelopeRejected with the `reason` of the first check that fails, and nothing else.
    """
    _check_size(data, max_bytes)
    ring.verify(topic, data, attributes)
    return decode(data, now=now, max_bytes=max_bytes)


def reopen_envelope(topic: str, data: bytes, attributes: Mapping[str, str], *, ring: Ring, max_bytes: int) -> Envelope:
    """An envelope of any age, for whoever keeps or redrives it: nothing may be done on its word before its age is checked.

    Raises EnvelopeRejected as `open_envelope` does, but never because of the time.
    """
    _check_size(data, max_bytes)
    ring.verify(topic, data, attributes)
    return _parse(data)


def renewed(envelope: Envelope, *, now: datetime, ttl_seconds: float) -> Envelope:
    """The same message with a new lifetime, from `now` on; to be sealed anew. Raises InputError for a lifetime that is none."""
    time = now.astimezone(UTC)
    return replace(envelope, time=time, expirytime=_expiry(time, ttl_seconds))


def seal(envelope: Envelope, topic: str, ring: Ring, *, max_bytes: int) -> tuple[bytes, dict[str, str]]:
    """The data and attributes with which an envelope goes to `topic`.

    Raises InputError when it would be larger than `max_bytes` or can't be encoded, and ConfigurationError for an unusable topic.
    """
    data = envelope.encode()
    if len(data) > max_bytes:
        raise InputError(
            f"{envelope.type} {envelope.id} has {len(data)} bytes, over the {max_bytes} of MAX_PAYLOAD_BYTES; shorten its data"
        )
    return data, ring.sign(topic, data)


def _check_size(data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise EnvelopeRejected("size", f"the message has {len(data)} bytes, over the {max_bytes} of MAX_PAYLOAD_BYTES; send less")


def _parse(data: bytes) -> Envelope:
    document = _load(data)
    if document.get("specversion") != "1.0" or document.get("datacontenttype") != "application/json":
        raise _malformed("specversion is not 1.0 or datacontenttype is not application/json")
    type_name = document.get("type")
    if not isinstance(type_name, str):
        raise _malformed("type is missing or not a text")
    model = TYPES.get(type_name)
    if model is None:
        shown = type_name if _is_shown(type_name) else "of the message"
        raise EnvelopeRejected("type", f"type {shown} is unknown; deploy sender and receiver from the same version")
    flaw = _flaw(document)
    if flaw is not None:
        raise _malformed(flaw)
    time, expirytime = _moment(document, "time"), _moment(document, "expirytime")
    if expirytime <= time:
        raise _malformed("expirytime is not after time")
    try:
        payload = model.model_validate(document.get("data"), extra="ignore")
    except ValidationError as error:
        # Its own text quotes the payload.
        raise _malformed(_mistake(error)) from None
    return Envelope(
        id=document["id"],
        source=document["source"],
        type=type_name,
        subject=document["subject"],
        time=time,
        expirytime=expirytime,
        correlationid=document["correlationid"],
        data=payload,
        causationid=document.get("causationid"),
        traceparent=document.get("traceparent"),
    )


def _load(data: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(data)
        # The decoder takes 1,024 levels of nesting, the encoder 254: only trying tells whether the next hop could send it on.
        orjson.dumps(document)
    except (orjson.JSONDecodeError, TypeError):
        raise _malformed("it is not JSON, or nested too deep") from None
    if not isinstance(document, dict):
        raise _malformed("it is not a JSON object")
    if _holds_nul(data):
        raise _malformed("it holds a NUL character")
    return document


def _flaw(attributes: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with the text attributes; None when nothing is."""
    for name in _REQUIRED:
        if not _is_text(attributes.get(name)):
            return f"{name} is not 1 to {_MAX_TEXT} printable characters"
    for name in _OPTIONAL:
        value = attributes.get(name)
        if value is not None and not _is_text(value):
            return f"{name} is not 1 to {_MAX_TEXT} printable characters"
    source: str = attributes["source"]
    return None if source.startswith(_SOURCE) and len(source) > len(_SOURCE) else f"source is not {_SOURCE}<function>"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _moment(document: Mapping[str, Any], name: str) -> datetime:
    text = document.get(name)
    if isinstance(text, str) and _is_timestamp(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    raise _malformed(f"{name} is not a time like 2026-01-01T00:00:00Z")


def _expiry(time: datetime, ttl_seconds: float) -> datetime:
    try:
        expirytime = time + timedelta(seconds=ttl_seconds)
    except (OverflowError, ValueError):
        expirytime = time
    if expirytime <= time:
        raise InputError(f"an envelope cannot live for {ttl_seconds} seconds; set COMM_IDEMPOTENCY_TTL_SEC to a day or so")
    return expirytime


def _fields(value: object) -> dict[str, Any]:
    # A model's own serialiser walks the whole payload once more; its fields are JSON already.
    if isinstance(value, Payload):
        return value.__dict__
    raise TypeError


def _holds_nul(data: bytes) -> bool:
    # Escaped backslashes go first, because a text about NUL looks like one behind them.
    return b"\\u0000" in data and b"\\u0000" in data.replace(b"\\\\", b"  ")


def _mistake(error: ValidationError) -> str:
    """Where the first mistake is and of what kind, without the value."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) if _is_shown(str(part)) else "…" for part in ("data", *first["loc"]))
    return f"{place} is wrong ({first['type']})"


def _malformed(what: str) -> EnvelopeRejected:
    return EnvelopeRejected("schema", f"the message is not an envelope: {what}; send it with this version of the platform")
