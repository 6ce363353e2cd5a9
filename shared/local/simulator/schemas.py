"""Schemas as callers send them → schemas as the extractive filler takes them."""

from collections.abc import Mapping
from typing import Any, Final

_DEEPEST: Final = 8
"""A schema may refer to itself, even more than once."""
_HEADINGS: Final = frozenset({"title", "headline", "sections", "headings", "topics", "tags", "keywords"})
_LONG: Final = frozenset({"text", "report", "markdown"})
_HEADING_CHARACTERS: Final = 100
_ITEM_CHARACTERS: Final = 250
_TEXT_CHARACTERS: Final = 1000


def plain(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` without references and alternatives, types in small letters, and every text bounded.

    Gemini takes no `maxLength`, so callers cannot send theirs; a model goes by what a text is for, and keeps headings short.
    """
    definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
    return _plain(schema, definitions, name="", longest=_TEXT_CHARACTERS, depth=0)


def _plain(schema: Mapping[str, Any], definitions: Mapping[str, Any], *, name: str, longest: int, depth: int) -> dict[str, Any]:
    schema = _chosen(schema, definitions)
    kind = schema.get("type", "")
    made: dict[str, Any] = {}
    if kind:
        made["type"] = [one.lower() for one in kind] if isinstance(kind, list) else str(kind).lower()
    for keyword in ("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"):
        value = schema.get(keyword)
        if value is not None:
            made[keyword] = float(value) if keyword in ("minimum", "maximum") else int(value)  # int64 travels as text
    if "const" in schema:
        made["enum"] = [schema["const"]]
    elif schema.get("enum"):
        made["enum"] = list(schema["enum"])
    if depth < _DEEPEST and isinstance(schema.get("properties"), Mapping):
        made["properties"] = {
            child: _plain(value, definitions, name=child, longest=_TEXT_CHARACTERS, depth=depth + 1)
            for child, value in schema["properties"].items()
        }
    if depth < _DEEPEST and isinstance(schema.get("items"), Mapping):
        made["items"] = _plain(schema["items"], definitions, name=name, longest=_ITEM_CHARACTERS, depth=depth + 1)
    if made.get("type") == "string" and name not in _LONG:
        made.setdefault("maxLength", _HEADING_CHARACTERS if name in _HEADINGS else longest)
    return made


def _chosen(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to, and the first alternative that is not null."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref")
        options = schema.get("anyOf") or schema.get("oneOf")
        if isinstance(reference, str):
            schema = definitions.get(reference.rpartition("/")[2], {})
        elif isinstance(options, list) and options:
            schema = next((one for one in options if str(one.get("type")).lower() != "null"), options[0])
        else:
            break
    return schema
