"""What a tool gave, as a model is shown it: `{"untrusted": …}` or `{"error": "one line"}`, and never more than 16 KB of JSON."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from shared.ai.untrusted import disarmed
from shared.errors import OutputInvalid
from shared.telemetry import redact_text

LARGEST_BYTES: Final = 16_384
_LONGEST_ERROR: Final = 500
_NOTE: Final = "the result was longer and has been cut here"

Result = Mapping[str, Any]


def result_of(tool: str, value: Any) -> Result:
    """What `tool` gave. Raises OutputInvalid when that is not JSON."""
    try:
        # There and back: dataclasses and dates become what they are in JSON, and only that is looked through for marks.
        plain = disarmed(orjson.loads(orjson.dumps(value)))
    except (TypeError, ValueError, RecursionError) as exc:
        raise OutputInvalid(f"{tool} gave a result that is not JSON") from exc
    result = {"untrusted": plain}
    size = len(orjson.dumps(result))
    if size <= LARGEST_BYTES:
        return result
    place = _longest(plain)
    if place is not None and size - len(orjson.dumps(plain[place])) <= LARGEST_BYTES // 2:
        return _cut(plain[place], lambda text: {"untrusted": {**plain, place: text}, "cut": _NOTE})
    return _cut(plain if isinstance(plain, str) else orjson.dumps(plain).decode(), lambda text: {"untrusted": text, "cut": _NOTE})


def error_of(message: str) -> Result:
    """What a model is told of a call that came to nothing."""
    return {"error": disarmed(redact_text(" ".join(message.split())))[:_LONGEST_ERROR]}


def _longest(value: Any) -> str | None:
    """The field of an object that holds its longest text."""
    texts = [name for name, one in value.items() if isinstance(one, str)] if isinstance(value, dict) else []
    return max(texts, key=lambda name: len(value[name]), default=None)


def _cut(text: str, around: Callable[[str], Result]) -> Result:
    """As much of `text` as fits with what stands `around` it."""
    kept = text.encode()[:LARGEST_BYTES].decode(errors="ignore")
    # JSON may need several bytes for one of the text's, so how much fits is known only once it is written.
    while (size := len(orjson.dumps(result := around(kept)))) > LARGEST_BYTES:
        kept = kept[: len(kept) * LARGEST_BYTES // size]
    return result
