"""`http_get`: a page of the public internet as text."""

import asyncio
import re
import ssl
from email.message import Message
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import urljoin

import httpcore
from pydantic import Field

from shared.ai.tools.declaring import Tool, declare
from shared.ai.tools.pages import text_of
from shared.errors import HostUnavailable, InputError
from shared.http.addresses import LONGEST, PUBLIC, Gate, parse
from shared.http.calling import header, open_call

MOST_BYTES: Final = 1_000_000
MOST_REDIRECTS: Final = 5
_SECONDS: Final = 30.0
"""For all of it, redirects included; a call may be given less."""
_CHARSETS: Final = re.compile(
    r"utf-?(8|16|32)|us-ascii|ascii|latin|iso-?\d|windows-|cp\d|koi8|gb|big5|shift_jis|euc-|macintosh", re.IGNORECASE
)
"""Python knows more, and some of them (punycode) take quadratic time."""
_MOST_TEXT: Final = 15_000
"""Characters: about what a result may hold anyway."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_TEXT: Final = frozenset({"application/json", "application/ld+json", "application/xml", "application/yaml", *_HTML})
_HEADERS: Final = (
    ("User-Agent", "agent-team/0.1 (http_get; reads one page)"),
    ("Accept", "text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.8"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)


def fetching(gate: Gate = PUBLIC, tls: ssl.SSLContext | None = None) -> Tool:
    """The tool `http_get`. `gate` says what may be fetched and `tls` whose certificates are believed; both are for tests."""

    async def http_get(
        url: Annotated[
            str, "The whole address, http or https, of a page on the public internet.", Field(min_length=1, max_length=LONGEST)
        ],
    ) -> dict[str, Any]:
        """Read a web page or text file. Gives its final url, status, content_type, and its text without markup."""
        try:
            async with asyncio.timeout(_SECONDS):
                return await _fetched(url, gate, tls)
        except TimeoutError as exc:
            raise InputError(f"the page cannot be fetched: it took longer than {_SECONDS:g} s") from exc

    return declare(http_get)


async def _fetched(url: str, gate: Gate, tls: ssl.SSLContext | None) -> dict[str, Any]:
    for _ in range(MOST_REDIRECTS + 1):
        try:
            async with open_call("GET", parse(url, gate), gate, headers=_HEADERS, tls=tls) as response:
                location = header(response, b"location")
                if response.status not in _REDIRECTS or location is None:
                    return {"url": url, "status": response.status, **await _read(response)}
        except HostUnavailable as exc:
            raise InputError(f"the page cannot be fetched: {exc}") from exc
        url = _joined(url, location)
    _refuse(f"it is redirected more than {MOST_REDIRECTS} times")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        _refuse("it is redirected to what is no address")


async def _read(response: httpcore.Response) -> dict[str, Any]:
    """The type and the text of an answer."""
    if header(response, b"content-encoding") not in (None, "identity"):
        _refuse("it came compressed although that was not asked for")
    kind = Message()
    kind["content-type"] = header(response, b"content-type") or "text/plain"
    media = kind.get_content_type()
    if media not in _TEXT and not media.startswith("text/") and not media.endswith(("+xml", "+json")):
        _refuse("it is not text")
    body, whole = await _body(response)
    text = _decoded(body, kind.get_content_charset())
    if media in _HTML:
        text = await asyncio.to_thread(text_of, text)
    read: dict[str, Any] = {"content_type": media, "text": text[:_MOST_TEXT]}
    return read if whole and len(text) <= _MOST_TEXT else {**read, "cut": "the page goes on; only its beginning is here"}


async def _body(response: httpcore.Response) -> tuple[bytes, bool]:
    """The first bytes of an answer, and whether they are all of it."""
    body = bytearray()
    async for piece in response.aiter_stream():
        body += piece
        if len(body) > MOST_BYTES:
            return bytes(body[:MOST_BYTES]), False
    return bytes(body), True


def _decoded(body: bytes, charset: str | None) -> str:
    try:
        return body.decode(charset if charset is not None and _CHARSETS.match(charset) else "utf-8", errors="replace")
    except (LookupError, UnicodeError):  # a charset that nobody knows
        return body.decode(errors="replace")


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"the page cannot be fetched: {reason}")
