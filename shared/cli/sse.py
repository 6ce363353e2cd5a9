"""Reads server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as far as a gateway sends them.

Bytes in, events out, however they are cut. Lines end where the standard says and nowhere else: text that a model wrote may hold
characters that other readers take for the end of a line. Comments and unknown fields are passed over.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

MAX_LINE_BYTES = 16 * 1024 * 1024
"""An entry holds a payload of some 512 KB, and JSON at most six bytes for one."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `id` is its place in the workflow's history; `progress` and `end` have none."""

    name: str
    id: int | None
    data: dict[str, Any]


class EventReader:
    """Puts events together."""

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[bytes, bytes] = {}

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that end in `data`. Raises ValueError for what is none, and for a line that does not end."""
        data = self._rest + data
        # The line feed that belongs to a carriage return may still be to come.
        whole = data[:-1] if data.endswith(b"\r") else data
        *lines, rest = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise ValueError("a line without end")
        self._rest = rest + data[len(whole) :]
        for line in lines:
            if line:
                name, _, value = line.partition(b":")
                self._take(name, value.removeprefix(b" "))
                continue
            fields, self._fields = self._fields, {}
            if b"data" in fields:
                yield _event(fields)

    def _take(self, name: bytes, value: bytes) -> None:
        if name == b"data" and name in self._fields:
            value = self._fields[name] + b"\n" + value
            if len(value) > MAX_LINE_BYTES:
                raise ValueError("an event without end")
        if name in (b"event", b"id", b"data"):
            self._fields[name] = value


def _event(fields: dict[bytes, bytes]) -> Event:
    data = orjson.loads(fields[b"data"])
    if not isinstance(data, dict):
        raise ValueError("not an object")
    number = fields.get(b"id")
    if number is not None and not (number.isdigit() and len(number) <= 18):
        raise ValueError("not the number of an entry")
    return Event(fields.get(b"event", b"message").decode(), None if number is None else int(number), data)
