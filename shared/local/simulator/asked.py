"""Reads a request as the service reads it, and refuses what it would refuse, in its words.

The shapes are those of https://ai.google.dev/api/generate-content, and names are taken in camelCase and in snake_case, as protocol
buffers in JSON are. Which keywords a schema may hold is not checked.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

BYTES_PER_TOKEN: Final = 4
"""Google's rule of thumb (https://ai.google.dev/gemini-api/docs/tokens). Input is counted over all that is sent but names."""
_REQUEST: Final = frozenset({"contents", "systemInstruction", "generationConfig", "tools", "toolConfig", "safetySettings"})
_REQUEST_ALSO: Final = frozenset({"model", "cachedContent", "generateContentRequest", "labels", "serviceTier", "store"})
_MIME_TYPES: Final = frozenset({"text/plain", "application/json", "text/x.enum"})
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "topP": (0, 1),
    "topK": (1, math.inf),
    "presencePenalty": (-2, 2),
    "frequencyPenalty": (-2, 2),
}
_INTEGERS: Final[Mapping[str, tuple[int, float]]] = {
    "maxOutputTokens": (1, math.inf),
    "candidateCount": (1, 8),
    "seed": (-(2**31), 2**31),
}


class Refused(Exception):
    """The request is answered with an error status."""

    def __init__(self, code: int, status: str, message: str, *details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.body: dict[str, Any] = {"error": {"code": code, "message": message, "status": status}}
        if details:
            self.body["error"]["details"] = list(details)


def invalid(message: str, *, field: str | None = None) -> Refused:
    """400, and which field is meant."""
    if field is None:
        return Refused(400, "INVALID_ARGUMENT", message)
    violation = {"field": field, "description": message}
    return Refused(
        400, "INVALID_ARGUMENT", message, {"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [violation]}
    )


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    contents: Sequence[Mapping[str, Any]]
    prompt: str
    """All that the user wrote."""
    input_tokens: int
    as_json: bool
    """Whether the answer must be JSON."""
    schema: Mapping[str, Any] | None
    """As it was sent: JSON Schema, or the older kind with types in capitals."""
    declarations: Sequence[Mapping[str, Any]]
    calling: str
    """The mode of function calling: AUTO, ANY, NONE."""
    max_output_tokens: float


def get(holder: Mapping[str, Any], name: str) -> Any:
    """The value of a field, under either of its names."""
    value = holder.get(name)
    return holder.get(_snake(name)) if value is None else value


def parts(content: Mapping[str, Any], name: str) -> list[Any]:
    """The values of `name` in the parts of a content that have one."""
    return [value for part in content["parts"] if (value := get(part, name)) is not None]


def read(body: bytes, model: str) -> Asked:
    """Raises Refused."""
    try:
        sent = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid("Invalid JSON payload received. Unexpected token.") from None
    if not isinstance(sent, dict):
        raise invalid("Invalid JSON payload received. The root element is not an object.", field="")
    _known(sent, _REQUEST | _REQUEST_ALSO, at="")
    inner = get(sent, "generateContentRequest")  # how countTokens takes all that a call for content would hold
    sent = sent if inner is None else _object(inner, "generate_content_request")
    contents = _contents(sent)
    config = _object(get(sent, "generationConfig"), "generation_config")
    _check_numbers(config)
    schema = _schema(config)
    mime_type = get(config, "responseMimeType")
    declarations = list(_declarations(sent))
    if mime_type == "application/json" and declarations and not model.startswith("gemini-3"):
        raise invalid("Function calling with a response mime type: 'application/json' is unsupported")
    calling = _object(get(_object(get(sent, "toolConfig"), "tool_config"), "functionCallingConfig"), "tool_config")
    return Asked(
        contents=contents,
        prompt="\n\n".join(text for one in contents if one.get("role") != "model" for text in parts(one, "text")),
        input_tokens=_tokens([contents, get(sent, "systemInstruction"), declarations, schema]),
        as_json=mime_type == "application/json",
        schema=schema,
        declarations=declarations,
        calling=str(get(calling, "mode") or "AUTO"),
        max_output_tokens=get(config, "maxOutputTokens") or math.inf,
    )


def tokens_of(text: str) -> int:
    """How many tokens a text is."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def _tokens(sent: Any) -> int:
    return -(-sum(len(text.encode()) for text in _said(sent)) // BYTES_PER_TOKEN)


def _said(value: Any) -> Iterator[str]:
    """What is said in a value, names of fields aside."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _said(one)
    elif isinstance(value, list):
        for one in value:
            yield from _said(one)
    elif value is not None:
        yield value if isinstance(value, str) else orjson.dumps(value).decode()


def _contents(sent: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    contents = sent.get("contents")
    if isinstance(contents, dict):
        contents = [contents]
    if contents is None or contents == []:
        raise invalid("* GenerateContentRequest.contents: contents is not specified\n")
    if not isinstance(contents, list):
        raise _mistyped("contents", contents)
    for place, content in enumerate(contents):
        if not isinstance(content, dict):
            raise _mistyped(f"contents[{place}]", content)
        if content.get("role", "user") not in ("user", "model", "function"):
            raise invalid("Please use a valid role: user, model.")
        held = content.get("parts")
        if not isinstance(held, list) or not held:
            raise invalid(f"* GenerateContentRequest.contents[{place}].parts: contents.parts must not be empty.\n")
        for number, part in enumerate(held):
            _check_part(part, f"contents[{place}].parts[{number}]")
    return contents


def _check_part(part: Any, at: str) -> None:
    if not isinstance(part, dict):
        raise _mistyped(at, part)
    if "text" in part and not isinstance(part["text"], str):
        raise _mistyped(f"{at}.text", part["text"], "TYPE_STRING")
    for name in ("functionCall", "functionResponse"):
        held = get(part, name)
        if held is None:
            continue
        where = f"{at}.{_snake(name)}"
        _object(held, where)
        if not isinstance(held.get("name"), str) or not held["name"]:
            raise invalid(f"* GenerateContentRequest.{where}.name: Name cannot be empty.\n")
        _object(held.get("args" if name == "functionCall" else "response"), where)


def _check_numbers(config: Mapping[str, Any]) -> None:
    for name, (low, high) in {**_NUMBERS, **_INTEGERS}.items():
        value = get(config, name)
        if value is None:
            continue
        at = f"generation_config.{_snake(name)}"
        whole = name in _INTEGERS
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise _mistyped(at, value, "TYPE_INT32" if whole else "TYPE_FLOAT")
        if not low <= value <= high:
            raise invalid(f"* GenerateContentRequest.{at}: {_snake(name)} must be in the range [{low:g}, {high:g}].\n")


def _schema(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    mime_type, older, newer = (get(config, name) for name in ("responseMimeType", "responseSchema", "responseJsonSchema"))
    if mime_type is not None and mime_type not in _MIME_TYPES:
        allowed = ", ".join(sorted(_MIME_TYPES))
        raise invalid(f"* GenerateContentRequest.generation_config.response_mime_type: allowed mimetypes are {allowed}.\n")
    if older is not None and newer is not None:
        raise invalid("Only one of response_schema and response_json_schema can be set.")
    schema = newer if older is None else older
    if schema is None:
        return None
    if mime_type not in ("application/json", "text/x.enum"):
        raise invalid(f"Response schema with mime type: '{mime_type or 'text/plain'}' is unsupported; set it to application/json.")
    return _object(schema, "generation_config.response_schema")


def _declarations(sent: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    tools = sent.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _mistyped("tools", tools)
    for place, tool in enumerate(tools or []):
        declared = get(_object(tool, f"tools[{place}]"), "functionDeclarations")
        for number, one in enumerate(declared if isinstance(declared, list) else []):
            at = f"tools[{place}].function_declarations[{number}]"
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}", str(_object(one, at).get("name"))):
                raise invalid(
                    f"* GenerateContentRequest.{at}.name: Invalid function name. Must start with a letter or an underscore.\n"
                )
            yield one


def _known(holder: Mapping[str, Any], names: frozenset[str], *, at: str) -> None:
    for name in holder:
        if name not in names and name not in {_snake(one) for one in names}:
            raise invalid(f'Invalid JSON payload received. Unknown name "{name}": Cannot find field.', field=at)


def _object(value: Any, at: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _mistyped(at, value)
    return value


def _mistyped(at: str, value: Any, kind: str = "TYPE_MESSAGE") -> Refused:
    return invalid(f"Invalid value at '{at}' ({kind}), {orjson.dumps(value).decode()[:80]}", field=at)


def _snake(name: str) -> str:
    return re.sub(r"([A-Z])", lambda found: f"_{found[1].lower()}", name)
