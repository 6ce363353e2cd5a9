"""Sentry: lines of level error as errors, and a share of the spans as transactions. Only where `SENTRY_DSN` is set.

Sentry gets what the log gets and less: the type, place and, for the platform's own errors, message of an exception; never a local
variable, a header, a body, a breadcrumb or source code. Events are written here rather than by Sentry's client, whose integrations
collect all of these, and every text in them passes the same redaction as the log.

Sending is the business of a thread of the client's: what Sentry is too slow for, or not there for, is dropped.
"""

import atexit
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

from shared.telemetry.logs import bound_fields, describe_error
from shared.telemetry.redaction import message_of, redact_fields
from shared.telemetry.traces import Span, current_trace, record_spans

if TYPE_CHECKING:
    from sentry_sdk import Client
    from sentry_sdk.types import Event, Hint

_log = logging.getLogger(__name__)
_SHUTDOWN_SECONDS: Final = 2.0
_TAGS: Final = (
    "workflowId", "workflow", "step", "attempt", "agent", "status", "reason", "subscription", "messageId", "check", "model", "path"
)  # fmt: skip
"""The fields of a line that go along. None of them holds what a caller wrote."""
_LONGEST_TAG: Final = 200
_OURS: Final = ("shared", "functions")
_FRAME: Final = re.compile(r"(.*):(\d+) (.*)")
_SENDS: Final = ("sentry_sdk", "urllib3")
"""Who sends: their own errors would be sent by them again."""


def open_sentry(dsn: str, *, environment: str, release: str, server_name: str, traces_sample_rate: float) -> Callable[[], None]:
    """From now on tell Sentry. What is returned ends that, after up to 2 s for what is not sent yet; so does the process's end.

    `traces_sample_rate` is the share of traces, 0 to 1; of a trace either all spans are sent or none, by whichever processes.
    Never raises: a DSN that is none is an error in the log.
    """
    # Imported here: 0.15 s that only a process which tells Sentry shall pay.
    from sentry_sdk import Client
    from sentry_sdk.utils import BadDsn

    try:
        client = Client(dsn=dsn, environment=environment, release=release, server_name=server_name, **_NOTHING_OF_ITS_OWN)
    except BadDsn:
        _log.error("SENTRY_DSN is no Sentry DSN, so nothing is sent; copy it again from the project's settings")
        return lambda: None
    handler = _ErrorHandler(client)
    logging.getLogger().addHandler(handler)
    record_spans(lambda span: _send_span(client, span, traces_sample_rate))

    def close() -> None:
        atexit.unregister(close)
        logging.getLogger().removeHandler(handler)
        record_spans(None)
        client.close(timeout=_SHUTDOWN_SECONDS)

    atexit.register(close)
    return close


def _scrubbed(event: "Event", _hint: "Hint") -> "Event":
    return cast("Event", redact_fields(cast("dict[str, Any]", event)))


_NOTHING_OF_ITS_OWN: Final[Mapping[str, Any]] = {
    "before_send": _scrubbed,
    "before_send_transaction": _scrubbed,
    "default_integrations": False,
    "auto_enabling_integrations": False,
    "auto_session_tracking": False,
    "include_local_variables": False,
    "include_source_context": False,
    "max_breadcrumbs": 0,
    "max_request_body_size": "never",
    "propagate_traces": False,
    "send_client_reports": False,
    "shutdown_timeout": _SHUTDOWN_SECONDS,
}
"""Of the client we want its sending alone."""


class _ErrorHandler(logging.Handler):
    """Sends lines of level error and above."""

    def __init__(self, client: "Client") -> None:
        super().__init__(logging.ERROR)
        self._client = client

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises."""
        if record.name.partition(".")[0] not in _SENDS:
            _send(self._client, lambda: _error(record))


def _send(client: "Client", event: Callable[[], dict[str, Any]]) -> None:
    # Whoever logs must not fail because of what is told elsewhere, and telling of that would come here again.
    with suppress(Exception):
        client.capture_event(cast("Event", event()))


def _send_span(client: "Client", span: Span, rate: float) -> None:
    # These digits are random in every trace id (W3C Trace Context level 2), and the same wherever the trace is worked on.
    if int(span.trace.trace_id[-14:], 16) < rate * 16**14:
        _send(client, lambda: _transaction(span))


def _error(record: logging.LogRecord) -> dict[str, Any]:
    fields = {**bound_fields(), **record.__dict__}
    ours = record.name.partition(".")[0] in _OURS
    # Others may write values into their texts, asyncio a whole exception: theirs go up to the first of them.
    text = message_of(record) if ours else str(record.msg).partition("\n")[0]
    event: dict[str, Any] = {
        "level": "fatal" if record.levelno >= logging.CRITICAL else "error",
        "logger": record.name,
        "timestamp": datetime.fromtimestamp(record.created, UTC),
        "logentry": {"message": str(record.msg) if ours else text, "formatted": text},
        "tags": {name: str(fields[name])[:_LONGEST_TAG] for name in _TAGS if fields.get(name) is not None},
    }
    described = fields.get("error")
    if record.exc_info is not None and record.exc_info[1] is not None:
        described = describe_error(record.exc_info[1])
    if isinstance(described, Mapping):
        event["exception"] = {"values": list(_exceptions(described))}
    trace = current_trace()
    if trace is not None:
        event["contexts"] = {"trace": {"trace_id": trace.trace_id, "span_id": trace.span_id}}
    return event


def _exceptions(described: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The exception and its causes, the first cause first, as Sentry wants them."""
    for cause in reversed(described.get("causes", ())):
        yield {"type": cause}
    for inner in described.get("errors", ()):
        yield from _exceptions(inner)
    frames = [match for line in described.get("stack", ()) if (match := _FRAME.fullmatch(line))]
    yield {
        "type": described.get("type"),
        "value": described.get("message", ""),
        "stacktrace": {
            "frames": [
                {"filename": frame[1], "lineno": int(frame[2]), "function": frame[3], "in_app": "site-packages" not in frame[1]}
                for frame in frames
            ]
        },
    }


def _transaction(span: Span) -> dict[str, Any]:
    trace = {"trace_id": span.trace.trace_id, "span_id": span.trace.span_id, "op": span.operation, "status": span.status}
    if span.trace.parent_id is not None:
        trace["parent_span_id"] = span.trace.parent_id
    return {
        "type": "transaction",
        "transaction": span.name,
        "transaction_info": {"source": "route" if span.operation == "http.server" else "task"},
        "contexts": {"trace": trace},
        "start_timestamp": datetime.fromtimestamp(span.started, UTC),
        "timestamp": datetime.fromtimestamp(span.ended, UTC),
        "spans": [],
    }
