"""A text as it is kept for search: checked, and cut into passages.

A passage ends where a paragraph ends, else a sentence, else a line, else a word, and has at most `PASSAGE` characters. All passages
in a row are the text again, to the byte.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass

from shared.errors import InputError

MAX_BYTES = 5_000_000
PASSAGE = 1500
"""Characters: a few paragraphs, so that what is found can be read whole, and several of them fit into a prompt."""
_SHORTEST = PASSAGE // 3
_MAX_NAME = 200
_ENDS = (
    re.compile(r"\n[ \t]*\n\s*"),
    re.compile(r"[.!?\u2026][\"')\]\u00bb\u201d\u2019]*\s+|[\u3002\uff01\uff1f]\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"\s+"),
)


@dataclass(frozen=True, slots=True)
class Document:
    """A text that may be kept; `sha256` is that of the text in UTF-8."""

    name: str
    sha256: str
    passages: list[str]


def document(name: str, data: bytes) -> Document:
    """`data` as the document `name`. Raises InputError for what is not text in UTF-8, or empty, or larger than `MAX_BYTES`."""
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise InputError(f"{name[:60]!r} cannot be a document's name; give 1 to {_MAX_NAME} characters that can be printed")
    if len(data) > MAX_BYTES:
        raise InputError(f"{name} has more than the {MAX_BYTES:,} bytes that a document may have; split it")
    text = normal(_decoded(name, data))
    if not text.strip():
        raise InputError(f"{name} is empty; there is nothing in it to find")
    return Document(name, hashlib.sha256(text.encode()).hexdigest(), passages(text))


def normal(text: str) -> str:
    """The one form, of those that look the same, that is kept and searched for."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n"))


def passages(text: str) -> list[str]:
    """`text` in pieces."""
    found = []
    start = 0
    while len(text) - start > PASSAGE:
        end = _end(text, start)
        found.append(text[start:end])
        start = end
    return [*found, text[start:]]


def _end(text: str, start: int) -> int:
    window = text[start : start + PASSAGE]
    for ends in _ENDS:
        last = max((match.end() for match in ends.finditer(window)), default=0)
        if last >= _SHORTEST:
            return start + last
    return start + PASSAGE


def _decoded(name: str, data: bytes) -> str:
    if b"\0" in data:
        raise InputError(f"{name} is not text: it holds NUL bytes; give UTF-8 text (convert UTF-16, PDF and office files)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name} is not UTF-8 text: line {line} holds other bytes; save it as UTF-8") from None
