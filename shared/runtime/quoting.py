"""Whether a text really holds the words that a model says it quotes: what stands nowhere is not handed on."""

import re

_MARKS = re.compile(r"[*_`>\"'“”„‘’«»]+|\.{3}|…")  # noqa: RUF001 -- typographic quotes are what models write

_ELLIPSIS = re.compile(r"\[?(?:\.{3}|…)\]?")


def holds(text: str, quote: str) -> bool:
    """Whether `quote` stands in `text`, word for word. Case, line ends, emphasis and quotation marks make no difference.

    Ellipses do: only what is between them has to be there, in this order. A quote without a word stands nowhere.
    """
    parts = [flat for part in _ELLIPSIS.split(quote) if (flat := _flat(part))]
    whole, at = _flat(text), 0
    for part in parts:
        found = whole.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return bool(parts)


def _flat(text: str) -> str:
    """The words of `text` and what stands between them, in one line, without what only marks them."""
    bare = " ".join(_MARKS.sub("", text).split()).casefold()
    return bare.strip(" .,;:!?-–—")  # noqa: RUF001 -- dashes of real texts
