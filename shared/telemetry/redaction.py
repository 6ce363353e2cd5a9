"""Keeps secrets out of logs.

Three nets: what stands under a key that names a secret (`password`, `api_key`, `authorization`, …) is never shown; a value that was
registered with `redact_values` is cut out of every text; bearer tokens, passwords in URLs and links to approvals are known by their
shape. Numbers,
booleans and None are shown under any key: `max_token: 4096` is no secret. This is a net and no licence: what is logged on purpose
holds no secret to begin with.
"""

import logging
import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any

REDACTED = "[redacted]"

_MINIMUM_LENGTH = 8
_DEEPEST = 16
_SECRET_WORDS = frozenset(
    {
        "apikey", "authorization", "cookie", "credential", "credentials", "dsn", "passphrase", "passwd", "password", "pwd",
        "secret", "secrets", "token",
    }
)  # fmt: skip
_SECRET_PAIRS = frozenset({("api", "key"), ("private", "key"), ("secret", "key"), ("access", "key"), ("role", "key")})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_BEARER = re.compile(r"(\b[Bb]earer\s+)[\w.~+/=-]+")
_URL_USER = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^\s/@]*@")
_APPROVAL = re.compile(r"(/approve/)[\w.~%+/=-]+")

_known: tuple[str, ...] = ()

# What logging itself puts on a record; everything else came in through `extra`.
RECORD_ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def redact_values(*values: str) -> None:
    """From now on cut these texts out of every log line. Texts under 8 characters are left: they would match by chance."""
    global _known
    # The longest first, so that a secret that contains another is cut out whole.
    _known = tuple(sorted({*_known, *(value for value in values if len(value) >= _MINIMUM_LENGTH)}, key=len, reverse=True))


def redact_text(text: str) -> str:
    """The text without registered values, bearer tokens, passwords in URLs and what opens an approval."""
    for value in _known:
        if value in text:
            text = text.replace(value, REDACTED)
    if "earer " in text:
        text = _BEARER.sub(rf"\1{REDACTED}", text)
    if "://" in text:
        text = _URL_USER.sub(rf"\1{REDACTED}@", text)
    if "/approve/" in text:
        text = _APPROVAL.sub(rf"\1{REDACTED}", text)
    return text


def redact_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields without secrets, at every depth of mappings, lists and tuples."""
    return {key: _redact(key, value) for key, value in fields.items()}


@lru_cache(maxsize=1024)
def names_a_secret(key: str) -> bool:
    """Whether a key such as `X-Api-Key`, `dbPassword` or `client_secret` says that its value is a secret. `tokens` is a count."""
    words = [word.lower() for word in _WORD.findall(key)]
    return not _SECRET_WORDS.isdisjoint(words) or not _SECRET_PAIRS.isdisjoint(pairwise(words))


class RedactingFilter(logging.Filter):
    """Takes secrets out of a record's message and `extra` fields before a handler sees them. Never drops a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record only where it holds a secret."""
        message = message_of(record)
        redacted = redact_text(message)
        if redacted != message:
            record.msg, record.args = redacted, None
        attributes = record.__dict__
        for key in attributes.keys() - RECORD_ATTRIBUTES:
            attributes[key] = _redact(key, attributes[key])
        return True


def message_of(record: logging.LogRecord) -> str:
    """The record's text; where the arguments don't fit it, the text without them instead of an exception."""
    try:
        text = record.getMessage()
    except Exception:
        return f"{record.msg} (logged with arguments that don't fit)"
    # What asyncio adds on further lines are tasks and exceptions, with whatever an exception's text may hold.
    return text.partition("\n")[0] if record.name == "asyncio" else text


def _redact(key: Any, value: Any, depth: int = 0) -> Any:
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(key, str) and names_a_secret(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping | list | tuple) and depth == _DEEPEST:
        # A value that contains itself must not take the caller down.
        return f"<{type(value).__name__}>"
    if isinstance(value, Mapping):
        return {inner: _redact(inner, item, depth + 1) for inner, item in value.items()}
    if isinstance(value, list | tuple):
        return [_redact(None, item, depth + 1) for item in value]
    return value
