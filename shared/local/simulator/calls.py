"""Function calls: which ones the simulated model asks for, and whether a conversation that holds some is in order.

Without a script each declared function is called once, in the order of their declarations, one to a turn, with arguments from the
prompt; then the model answers. Gemini 3 models sign the first call of a turn and want the signature back
(https://ai.google.dev/gemini-api/docs/thought-signatures); as there, two fixed words stand in for one that another model gave.
"""

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from shared.ai.offline.fill import fill
from shared.ai.offline.material import Material
from shared.local.simulator.asked import Asked, get, invalid, parts
from shared.local.simulator.schemas import plain

Script = Sequence[Sequence[tuple[str, Mapping[str, Any]]]]
"""Turn by turn the calls to ask for, each a name and its arguments. After the last turn comes the answer."""

_UNSIGNED: Final = ("context_engineering_is_the_way_to_go", "skip_thought_signature_validator")
_URL: Final = re.compile(r"https?://[^\s<>\"')\]]+")
_SUM: Final = re.compile(r"\d+(?:\.\d+)?(?:\s*[-+*/]\s*\d+(?:\.\d+)?)+")


def wanted(asked: Asked, material: Material, script: Script | None) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls to ask for now; none when it is time to answer."""
    if not asked.declarations or asked.calling == "NONE":
        return []
    turns = [called for content in asked.contents if (called := parts(content, "functionCall"))]
    if script is not None:
        return list(script[len(turns)]) if len(turns) < len(script) else []
    done = {call["name"] for calls in turns for call in calls}
    left = [one for one in asked.declarations if one["name"] not in done]
    if not left and asked.calling == "ANY":
        left = list(asked.declarations)
    return [(left[0]["name"], _arguments(left[0], material, asked.prompt))] if left else []


def as_parts(calls: Sequence[tuple[str, Mapping[str, Any]]], *, model: str, turn: int) -> list[dict[str, Any]]:
    """The parts of the answer that asks for `calls`."""
    newer = model.startswith("gemini-3")
    written = []
    for place, (name, arguments) in enumerate(calls):
        call: dict[str, Any] = {"name": name, "args": dict(arguments)}
        if newer:
            call["id"] = f"call-{turn}-{place}"
        part: dict[str, Any] = {"functionCall": call}
        if newer and place == 0:
            part["thoughtSignature"] = _signature(call)
        written.append(part)
    return written


def check(asked: Asked, model: str) -> None:
    """Raises Refused when calls and responses do not match, or when a signature that must be there is missing or altered."""
    for place, content in enumerate(asked.contents):
        calls, responses = parts(content, "functionCall"), parts(content, "functionResponse")
        if calls:
            following = asked.contents[place + 1] if place + 1 < len(asked.contents) else {"parts": []}
            _match(calls, parts(following, "functionResponse"))
        if responses and (place == 0 or not parts(asked.contents[place - 1], "functionCall")):
            raise invalid("Please ensure that function response turn comes immediately after a function call turn.")
    if model.startswith("gemini-3"):
        _check_signatures(asked)


def _match(calls: list[Any], responses: list[Any]) -> None:
    if len(calls) != len(responses):
        raise invalid(
            "Please ensure that the number of function response parts is equal to the number of function call parts of the"
            " function call turn."
        )
    # In any order, as the calls may have been carried out.
    if sorted(_key(call) for call in calls) != sorted(_key(response) for response in responses):
        raise invalid("Please ensure that function response parts have the names and ids of the function call parts.")


def _key(part: Mapping[str, Any]) -> tuple[str, str]:
    return part["name"], str(part.get("id") or "")


def _check_signatures(asked: Asked) -> None:
    """The calls since the user last wrote something must be signed, each turn's first."""
    said = [place for place, content in enumerate(asked.contents) if content.get("role") != "model" and parts(content, "text")]
    for place in range(said[-1] if said else 0, len(asked.contents)):
        first = next((part for part in asked.contents[place]["parts"] if get(part, "functionCall") is not None), None)
        if first is None:
            continue
        call, signature = get(first, "functionCall"), get(first, "thoughtSignature")
        if not signature:
            raise invalid(
                "Function call is missing a thought_signature in functionCall parts. This is required for tools to work correctly,"
                " and missing thought_signature may lead to degraded model performance. Additional data, function call"
                f" `default_api:{call['name']}` , position {place + 1}. Please refer to"
                " https://ai.google.dev/gemini-api/docs/thought-signatures for more details."
            )
        if (
            _decoded(signature) not in (_decoded(_signature(call)), *(word.encode() for word in _UNSIGNED))
            and signature not in _UNSIGNED
        ):
            raise invalid("Corrupted thought signature.")


def _signature(call: Mapping[str, Any]) -> str:
    """Of the call itself, so that it fits no other."""
    said = orjson.dumps([call["name"], call.get("args", {})], option=orjson.OPT_SORT_KEYS)
    return base64.b64encode(hashlib.sha256(b"thought of " + said).digest()).decode()


def _decoded(signature: str) -> bytes:
    """Bytes in either of base64's alphabets, as protocol buffers take them; empty for what is neither."""
    try:
        return base64.b64decode(str(signature).translate(str.maketrans("-_", "+/")), validate=True)
    except ValueError:
        return b""


def _arguments(declaration: Mapping[str, Any], material: Material, prompt: str) -> dict[str, Any]:
    declared = get(declaration, "parametersJsonSchema") or declaration.get("parameters") or {"type": "object"}
    filled = fill(plain(declared), material)
    arguments = dict(filled) if isinstance(filled, dict) else {}
    # What no sentence could stand for is looked for in the prompt.
    for name, found, otherwise in (
        ("url", _URL.search(prompt), "https://example.com/"),
        ("expression", _SUM.search(prompt), "1 + 1"),
    ):
        if isinstance(arguments.get(name), str):
            arguments[name] = otherwise if found is None else found[0]
    return arguments
