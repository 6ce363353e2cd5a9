"""The part of JSON Schema (draft 2020-12) that prompts may use, and a check of values against it.

The providers accept only a subset of JSON Schema, so a prompt may use only what both they and this check understand:
`type`, `description`, `enum`, `properties`, `required`, `additionalProperties: false`, `items` and the bounds. Any other keyword is
refused when the prompt is loaded: a keyword that nobody checks would be a promise that nobody keeps.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from shared.errors import ConfigurationError, OutputInvalid

TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
"""JSON Schema's types and how Python holds them. A boolean is never a number here."""

_BOUNDS: Mapping[str, tuple[str, Callable[[Any], float], Callable[[float, float], bool], str]] = {
    "minimum": ("number", lambda value: value, lambda value, bound: value >= bound, "is less than {}"),
    "maximum": ("number", lambda value: value, lambda value, bound: value <= bound, "is more than {}"),
    "minLength": ("string", len, lambda value, bound: value >= bound, "is shorter than {} characters"),
    "maxLength": ("string", len, lambda value, bound: value <= bound, "is longer than {} characters"),
    "minItems": ("array", len, lambda value, bound: value >= bound, "has fewer than {} items"),
    "maxItems": ("array", len, lambda value, bound: value <= bound, "has more than {} items"),
}
"""Keyword → the type that it bounds, what is measured, the comparison, and what to say when it fails."""

_FENCED = re.compile(r"```(?:json)?\s(.*)```", re.DOTALL | re.IGNORECASE)
_KEYWORDS = {"type", "description", "enum", "properties", "required", "additionalProperties", "items", *_BOUNDS}


def check(value: Any, schema: Mapping[str, Any]) -> None:
    """Return when `value` fits `schema`.

    Raises OutputInvalid naming the first place that does not fit (`$.findings[2].claim`) and the rule it breaks, never the value.
    """
    for path, reason in problems(value, schema):
        raise OutputInvalid(f"the answer does not fit its schema: {path} {reason}")


def read_answer(answer: Any, schema: Mapping[str, Any]) -> Any:
    """The JSON that a model's `answer` is or, as text, holds: bare or between ``` fences. What is no text is taken as JSON.

    Raises OutputInvalid when there is none, or when it does not fit `schema`.
    """
    if isinstance(answer, str):
        fenced = _FENCED.fullmatch(answer.strip())
        try:
            answer = orjson.loads(answer if fenced is None else fenced[1])
        except orjson.JSONDecodeError as exc:
            raise OutputInvalid("the answer is not JSON") from exc
    check(answer, schema)
    return answer


def problems(value: Any, schema: Mapping[str, Any], path: str = "$") -> Iterator[tuple[str, str]]:
    """Every place of `value` that does not fit `schema`, as (JSON path, reason). `schema` must have passed `check_schema`."""
    declared = _declared_types(schema)
    if declared and not any(_is(value, name) for name in declared):
        yield path, f"is not of type {' or '.join(declared)}"
        return
    if "enum" in schema and not any(type(value) is type(one) and value == one for one in schema["enum"]):
        yield path, f"is none of the {len(schema['enum'])} allowed values"
    for keyword, (kind, measure, holds, message) in _BOUNDS.items():
        if keyword in schema and _is(value, kind) and not holds(measure(value), schema[keyword]):
            yield path, message.format(schema[keyword])
    if isinstance(value, dict):
        yield from _problems_of_object(value, schema, path)
    elif isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            yield from problems(item, schema["items"], f"{path}[{index}]")


def check_schema(schema: Any, path: str = "$") -> None:
    """Return when `schema` uses only what `check` understands. Raises ConfigurationError naming the place in the schema."""
    if not isinstance(schema, Mapping):
        raise ConfigurationError(f"{path} is not a schema; write an object such as {{type: string}}")
    unknown = sorted(str(keyword) for keyword in schema if keyword not in _KEYWORDS)
    if unknown:
        raise ConfigurationError(f"{path} uses {', '.join(unknown)}; the schemas here know only {', '.join(sorted(_KEYWORDS))}")
    for name in _declared_types(schema):
        if name not in TYPES:
            raise ConfigurationError(f"{path}.type is {name!r}; the types are {', '.join(TYPES)}")
    for keyword in _BOUNDS:
        if keyword in schema and not _is(schema[keyword], "number"):
            raise ConfigurationError(f"{path}.{keyword} is not a number")
    if "enum" in schema and not (_is_list(schema["enum"]) and schema["enum"]):
        raise ConfigurationError(f"{path}.enum is not a list of values")
    if schema.get("additionalProperties", False) is not False:
        raise ConfigurationError(f"{path}.additionalProperties can only be false")
    _check_children(schema, path)


def _check_children(schema: Mapping[str, Any], path: str) -> None:
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping):
        raise ConfigurationError(f"{path}.properties is not an object")
    required = schema.get("required", [])
    if not _is_list(required) or not all(name in properties for name in required):
        raise ConfigurationError(f"{path}.required is not a list of names from properties")
    for name, child in properties.items():
        check_schema(child, f"{path}.properties.{name}")
    if "items" in schema:
        check_schema(schema["items"], f"{path}.items")


def _problems_of_object(value: dict[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}", "is missing"
    for name, child in properties.items():
        if name in value:
            yield from problems(value[name], child, f"{path}.{name}")
    surplus = len(value.keys() - properties.keys())
    if surplus and schema.get("additionalProperties") is False:
        # The surplus names are not shown: they come from outside, as values do.
        yield path, f"has {surplus} field{'' if surplus == 1 else 's'} that the schema does not name"


def _declared_types(schema: Mapping[str, Any]) -> Sequence[str]:
    declared = schema.get("type", ())
    return declared if _is_list(declared) else (str(declared),)


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[kind])


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
