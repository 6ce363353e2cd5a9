"""What a misspelt word was probably meant to be."""

from collections.abc import Iterable
from difflib import get_close_matches

_SHOWN = 60


def quoted(word: object) -> str:
    """`word` as it can stand in a message: in quotes, on one line, shortened."""
    return repr(str(word)[:_SHOWN])


def suggestion(word: str, known: Iterable[str], *, what: str) -> str:
    """The second half of a message about an unknown `word`: the nearest known one, or all of them when there are few."""
    names = sorted(known)
    close = get_close_matches(word[:_SHOWN], names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return f"there are no {what}"
    listed = ", ".join(names[:20])
    return f"{what} here: {listed}" if len(names) <= 20 else f"{what} here: {listed}, and {len(names) - 20} more"
