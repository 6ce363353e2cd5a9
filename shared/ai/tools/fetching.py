"""`http_get`: a page of the public internet as text.

httpcore, which httpx stands on, is used directly: what a client does unasked (cookies, redirects, decompression, proxies and
passwords from the environment) must not happen here. A connection is made for one page and closed with it, so nobody has to own it.
"""

import asyncio
import re
import ssl
from email.message import Message
from functools import cache
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import urljoin

import httpcore
from pydantic import Field

from shared.ai.tools.addresses import LONGEST, Gate, PublicNetwork, parse
from shared.ai.tools.declaring import Tool, declare
from shared.ai.tools.pages import text_of
from shared.errors import InputError

MOST_BYTES: Final = 1_000_000
MOST_REDIRECTS: Final = 5
_SECONDS: Final = 30.0
"""For all of it, redirects included; a call may be given less."""
_CONNECT_SECONDS: Final = 5.0
"""For one of a host's addresses, so that there is time for the next."""
_CHARSETS: Final = re.compile(
    r"utf-?(8|16|32)|us-ascii|ascii|latin|iso-?\d|windows-|cp\d|koi8|gb|big5|shift_jis|euc-|macintosh", re.IGNORECASE
)
"""Python knows more, and some of them (punycode) take quadratic time."""
_MOST_TEXT: Final = 15_000
"""Characters: about what a result may hold anyway."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_TEXT: Final = frozenset({"application/json", "application/ld+json", "application/xml", "application/yaml", *_HTML})
_EXTENSIONS: Final = {"timeout": {"connect": _CONNECT_SECONDS}}
_HEADERS: Final = (
    ("User-Agent", "agent-team/0.1 (http_get; reads one page)"),
    ("Accept", "text/html, text/*;q=0.9, application/json;q=0.9, application/xml;q=0.8"),
    ("Accept-Encoding", "identity"),
    ("Connection", "close"),
)


def fetching(gate: Gate | None = None, tls: ssl.SSLContext | None = None) -> Tool:
    """The tool `http_get`. `gate` says what may be fetched and `tls` whose certificates are believed; both are for tests."""
    allowed = Gate() if gate is None else gate

    async def http_get(
        url: Annotated[
            str, "The whole address, http or https, of a page on the public internet.", Field(min_length=1, max_length=LONGEST)
        ],
    ) -> dict[str, Any]:
        """Read a web page or text file. Gives its final url, status, content_type, and its text without markup."""
        try:
            async with asyncio.timeout(_SECONDS):
                return await _fetched(url, allowed, _believed() if tls is None else tls)
        except TimeoutError as exc:
            raise InputError(f"the page cannot be fetched: it took longer than {_SECONDS:g} s") from exc

    return declare(http_get)


async def _fetched(url: str, gate: Gate, tls: ssl.SSLContext) -> dict[str, Any]:
    for _ in range(MOST_REDIRECTS + 1):
        address = parse(url, gate.ports)
        network = PublicNetwork(gate)
        try:
            async with (
                httpcore.AsyncConnectionPool(ssl_context=tls, max_keepalive_connections=0, network_backend=network) as pool,
                pool.stream("GET", address, headers=_headers(address), extensions=_EXTENSIONS) as response,
            ):
                location = _header(response, b"location")
                if response.status not in _REDIRECTS or location is None:
                    return {"url": url, "status": response.status, **await _read(response)}
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as exc:
            # What the network says may name an address of ours.
            raise InputError(f"the page cannot be fetched: {_said(exc)}") from exc
        url = _joined(url, location)
    _refuse(f"it is redirected more than {MOST_REDIRECTS} times")


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        _refuse("it is redirected to what is no address")


async def _read(response: httpcore.Response) -> dict[str, Any]:
    """The type and the text of an answer."""
    if _header(response, b"content-encoding") not in (None, "identity"):
        _refuse("it came compressed although that was not asked for")
    kind = Message()
    kind["content-type"] = _header(response, b"content-type") or "text/plain"
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


def _headers(address: httpcore.URL) -> list[tuple[str, str]]:
    host = address.host.decode()
    shown = f"[{host}]" if ":" in host else host
    usual = address.port in (None, {b"http": 80, b"https": 443}[address.scheme])
    return [("Host", shown if usual else f"{shown}:{address.port}"), *_HEADERS]


def _header(response: httpcore.Response, name: bytes) -> str | None:
    """A header as text; None where there is none."""
    return next((value.decode(errors="replace").strip() for key, value in response.headers if key.lower() == name), None)


def _said(exc: Exception) -> str:
    cause = exc.__cause__ or exc.__context__
    if isinstance(exc, ssl.SSLError) or isinstance(cause, ssl.SSLError):
        return "its certificate is not valid for its name"
    if isinstance(exc, httpcore.TimeoutException):
        return "it took too long"
    return "it broke off or broke the rules of HTTP" if isinstance(exc, httpcore.ProtocolError) else "it cannot be reached"


@cache
def _believed() -> ssl.SSLContext:
    """The certificates that httpx comes with. httpcore's own default would add those that the environment names."""
    import httpx

    return httpx.create_ssl_context(trust_env=False)


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"the page cannot be fetched: {reason}")
