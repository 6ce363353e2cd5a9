"""The text of a web page, in time that grows with the page and with nothing else.

The standard library's HTMLParser is not used: in `<a <a <a …` it searches to the end anew at each tag. 40 KB take it 8 s and 1 MB
an hour and more, in regular expressions that let nothing else of the process run, and what is read here comes from anybody.
"""

import html
import re
from collections.abc import Iterator
from typing import Final

_TAG: Final = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]{0,30})")
_HIDDEN: Final = {
    name: re.compile(rf"</{name}\b", re.IGNORECASE | re.ASCII)
    for name in ("iframe", "math", "noscript", "object", "script", "select", "style", "svg", "template", "textarea")
}
"""Elements whose content is not text of the page → their end."""
_INLINE: Final = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd", "mark", "q", "s", "samp",
     "small", "span", "strong", "sub", "sup", "time", "u", "var", "wbr"}
)  # fmt: skip
"""Elements that do not end a line."""
_CELLS: Final = frozenset({"td", "th"})
_ENTITY: Final = re.compile(r"&#?[a-zA-Z0-9]{1,32};")


def text_of(page: str) -> str:
    """What a person would read of an HTML page: a line a block, without scripts, styles and comments."""
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), "".join(_pieces(page)))
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _pieces(page: str) -> Iterator[str]:
    """The page's text, piece by piece, and a line's end for each block."""
    at = 0
    while (start := page.find("<", at)) != -1:
        # A line's end in the source is a space in the text.
        yield page[at:start].replace("\n", " ").replace("\r", " ")
        tag = _TAG.match(page, start)
        if tag is None:
            at, piece = _no_element(page, start)
            yield piece
            continue
        name = tag[1].lower()
        at = _after(page, ">", tag.end())
        ending = _HIDDEN.get(name)
        if ending is not None and page[start + 1] != "/":
            end = ending.search(page, at)
            at = len(page) if end is None else _after(page, ">", end.end())
        if name in _CELLS:
            yield " "
        elif name not in _INLINE:
            yield "\n"
    yield page[at:].replace("\n", " ").replace("\r", " ")


def _no_element(page: str, start: int) -> tuple[int, str]:
    """Where a comment, a declaration or a lone `<` at `start` ends, and the text that it is."""
    if page.startswith("<!--", start):
        return _after(page, "-->", start + 4), ""
    if page.startswith(("<!", "<?", "</"), start):
        return _after(page, ">", start + 2), ""
    return start + 1, "<"


def _after(page: str, what: str, start: int) -> int:
    """Where the next `what` ends; the page's end if it never comes, so that nobody looks for it again."""
    found = page.find(what, start)
    return len(page) if found == -1 else found + len(what)
