"""References to values that are stored apart: `{"$output": {"sha256": "<64 hex digits>", "bytes": 52428800}}`.

A large output is kept once, under the hash of its JSON, and the state and the messages hold a reference in its place. A reference
may stand anywhere inside a value. It is passed on as it is; only who looks inside needs what it stands for, and says so with
`Unopened`. Agents and callers cannot make one: the key is refused in whatever they give.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from shared.errors import InputError

KEY: Final = "$output"
_MARK: Final = b'"$output"'
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A stored value: the SHA-256 of its JSON, and how many bytes of JSON it has."""

    sha256: str
    size_bytes: int

    def as_json(self) -> dict[str, Any]:
        """What stands in the value's place."""
        return {KEY: {"sha256": self.sha256, "bytes": self.size_bytes}}


class Unopened(Exception):
    """What is to be looked into is stored apart: the same again with these values in place succeeds, or asks for more."""

    def __init__(self, *references: Reference) -> None:
        super().__init__(f"{len(references)} stored outputs are needed")
        self.references = references


def reference(value: Any) -> Reference | None:
    """The reference that `value` is; None when it is a value."""
    if not isinstance(value, Mapping) or len(value) != 1 or KEY not in value:
        return None
    about = value[KEY]
    if not isinstance(about, Mapping):
        return None
    sha256, size = about.get("sha256"), about.get("bytes")
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256) and isinstance(size, int):
        return Reference(sha256, size)
    return None


def references(value: Any) -> tuple[Reference, ...]:
    """Every reference in `value`, each once."""
    if _MARK not in orjson.dumps(value):  # the common case, at the speed of C
        return ()
    return tuple(dict.fromkeys(_found(value)))


def may_refer(encoded: bytes) -> bool:
    """Whether there may be references in this JSON; if not, nobody need look for them."""
    return _MARK in encoded


def opened(value: Any) -> Any:
    """`value`, which is going to be looked into everywhere. Raises Unopened when something in it is stored apart."""
    missing = references(value)
    if missing:
        raise Unopened(*missing)
    return value


def replaced(value: Any, values: Mapping[Reference, Any]) -> Any:
    """`value` with what is stored in the places of its references, as far as `values` has it."""
    found = reference(value)
    if found is not None:
        return values.get(found, value)
    if isinstance(value, Mapping):
        return {key: replaced(one, values) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [replaced(one, values) for one in value]
    return value


def linked(value: Any, href: str) -> Any:
    """`value` with its references leading to `href`, where it is whole."""
    links = {one: {KEY: {"sha256": one.sha256, "bytes": one.size_bytes, "href": href}} for one in references(value)}
    return replaced(value, links) if links else value


def refuse_reserved(encoded: bytes, what: str) -> None:
    """Raises InputError where JSON that is not our own has the key that makes a reference; `what` is whose JSON it is."""
    if _MARK in encoded and _has_key(orjson.loads(encoded)):
        raise InputError(f"{what} has a key {KEY!r}, which stands for stored outputs; give it another name")


def _found(value: Any) -> Iterator[Reference]:
    found = reference(value)
    if found is not None:
        yield found
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _found(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _found(one)


def _has_key(value: Any) -> bool:
    if isinstance(value, dict):
        return KEY in value or any(map(_has_key, value.values()))
    return isinstance(value, list) and any(map(_has_key, value))
