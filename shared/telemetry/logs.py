"""Logs: one JSON object a line, written with one call, so that lines of several writers never mix.

Every line has `level` (debug, info, warn, error), `time` (milliseconds since 1970), `msg` (always a string) and `logger`. Fields
bound by `bind_task` and those given as `extra={...}` stand beside them: `workflowId`, `step`, `attempt`, `agent`, `status`,
`duration` (milliseconds, always a number), … In the cloud there are also the fields that Cloud Logging reads: severity, message
and trace (https://cloud.google.com/logging/docs/structured-logging).

An exception becomes `error: {type, message, stack}`. The stack names frames and no values. Only errors of this platform show their
message: what a foreign exception says may be payload.
"""

import logging
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import PurePath
from traceback import walk_tb
from types import MappingProxyType
from typing import Any, TextIO

import orjson

from shared.errors import AgentTeamError, ConfigurationError
from shared.telemetry.redaction import RECORD_ATTRIBUTES, RedactingFilter, message_of, redact_fields, redact_text
from shared.telemetry.traces import current_trace

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_SHOWN_LEVELS = {number: name for name, number in _LEVELS.items()} | {logging.CRITICAL: "error"}
_SEVERITIES = {"debug": "DEBUG", "info": "INFO", "warn": "WARNING", "error": "ERROR"}
_MOST_FRAMES = 30
_MOST_CAUSES = 5
# Dataclasses are passed over because they may hold payload; whoever wants a field on the line names it.
_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_UTC_Z | orjson.OPT_PASSTHROUGH_DATACLASS

# On "debug" these write whole requests, headers and answers included.
_TALKATIVE = ("asyncio", "google_genai", "hpack", "httpcore", "httpx", "httpx2", "urllib3")

_NO_FIELDS: Mapping[str, Any] = MappingProxyType({})
_bound: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default=_NO_FIELDS)


def bind_task(**fields: Any) -> None:
    """Put these fields on every line from here to the end of the running task, and in tasks started there."""
    _bound.set({**_bound.get(), **redact_fields(fields)})


def bound_fields() -> Mapping[str, Any]:
    """What stands on every line that the running task logs."""
    return _bound.get()


def configure_logging(
    settings_level: str, *, stream: TextIO | None = None, cloud: bool = False, project: str | None = None
) -> logging.Handler:
    """Send all logs of this process from `settings_level` (debug, info, warn, error) on to `stream`, standard error when None.

    `cloud` adds Cloud Logging's fields; `project` is the Google Cloud project that traces belong to. Calling it again replaces what
    the last call set up; handlers of others stay. Returns the handler. Raises ConfigurationError for an unknown level.
    """
    if settings_level not in _LEVELS:
        raise ConfigurationError(f"log level {settings_level!r} is unknown; use one of {', '.join(_LEVELS)}")
    handler = _JsonHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(cloud=cloud, project=project))
    handler.addFilter(RedactingFilter())
    root = logging.getLogger()
    for previous in [other for other in root.handlers if isinstance(other, _JsonHandler)]:
        root.removeHandler(previous)
    root.addHandler(handler)
    root.setLevel(_LEVELS[settings_level])
    # No line shows them, and working them out costs as much as writing it: https://docs.python.org/3/howto/logging.html#optimization
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(max(_LEVELS[settings_level], logging.WARNING))
    return handler


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON, without the line's end. Never raises: what JSON cannot hold is replaced by its type's name."""

    def __init__(self, *, cloud: bool = False, project: str | None = None) -> None:
        super().__init__()
        self._cloud = cloud
        self._traces = f"projects/{project}/traces/" if project is not None else ""

    def format(self, record: logging.LogRecord) -> str:
        message = message_of(record)
        core = {
            "level": _SHOWN_LEVELS.get(record.levelno) or _level_below(record.levelno),
            "time": int(record.created * 1000),
            "msg": message,
            "logger": record.name,
        }
        attributes = record.__dict__
        extra = {key: attributes[key] for key in attributes if key not in RECORD_ATTRIBUTES}
        entry = {**core, **_bound.get(), **extra, **core}
        if "duration" in entry and not isinstance(entry["duration"], int | float):
            # jq holds every string to be greater than every number: it would match each threshold.
            del entry["duration"]
        if record.exc_info is not None and record.exc_info[1] is not None:
            entry["error"] = describe_error(record.exc_info[1])
        if self._cloud:
            self._add_cloud_fields(entry, record)
        return _dump(entry)

    def _add_cloud_fields(self, entry: dict[str, Any], record: logging.LogRecord) -> None:
        entry["severity"] = "CRITICAL" if record.levelno >= logging.CRITICAL else _SEVERITIES[entry["level"]]
        entry["message"] = entry["msg"]
        trace = current_trace()
        if trace is not None:
            entry["logging.googleapis.com/trace"] = f"{self._traces}{trace.trace_id}"
            entry["logging.googleapis.com/spanId"] = trace.span_id
            entry["logging.googleapis.com/trace_sampled"] = trace.sampled


def describe_error(error: BaseException) -> dict[str, Any]:
    """An exception as `{type, message, stack}` and, where there are any, the types of its `causes` and the `errors` of a group.

    The stack lists frames as `file:line function`, outermost first, and at most the innermost 30. `message` is there only for the
    platform's own errors.
    """
    described: dict[str, Any] = {"type": _type_name(error)}
    if isinstance(error, AgentTeamError):
        described["message"] = redact_text(str(error))
    frames = list(walk_tb(error.__traceback__))[-_MOST_FRAMES:]
    described["stack"] = [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}" for frame, line in frames]
    causes = [_type_name(cause) for cause in _causes(error)]
    if causes:
        described["causes"] = causes
    if isinstance(error, BaseExceptionGroup):
        described["errors"] = [describe_error(inner) for inner in error.exceptions[:_MOST_CAUSES]]
    return described


class _JsonHandler(logging.StreamHandler[TextIO]):
    """Known by its type, so that configuring again replaces it."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    for _ in range(_MOST_CAUSES):
        cause = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__
        if cause is None:
            return
        yield cause
        error = cause


def _type_name(error: BaseException) -> str:
    kind = type(error)
    own = isinstance(error, AgentTeamError) or kind.__module__ == "builtins"
    return kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"


def _level_below(number: int) -> str:
    return next((name for name, least in reversed(_LEVELS.items()) if number >= least), "debug")


def _dump(entry: dict[str, Any]) -> str:
    try:
        return orjson.dumps(entry, default=_plain, option=_OPTIONS).decode()
    except TypeError:
        # Lone surrogates, integers beyond 64 bits, structures without end: a line that says less is better than none.
        return orjson.dumps({_without_surrogates(str(key)): _survivor(value) for key, value in entry.items()}).decode()


def _plain(value: Any) -> str:
    return str(value) if isinstance(value, PurePath) else f"<{type(value).__name__}>"


def _survivor(value: Any) -> Any:
    if isinstance(value, str):
        return _without_surrogates(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**63 else str(value)
    return f"<{type(value).__name__}>"


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
