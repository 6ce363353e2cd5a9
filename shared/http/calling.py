"""One call to an address that somebody else gave, on a connection of its own, which is closed with it.

httpcore, which httpx stands on, is used directly: what a client does unasked (cookies, redirects, decompression, proxies and
passwords from the environment) must not happen here.
"""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Final

import httpcore

from shared.errors import HostUnavailable
from shared.http.addresses import Gate, PublicNetwork

_CONNECT_SECONDS: Final = 5.0
"""For one of a host's addresses, so that there is time for the next."""
_EXTENSIONS: Final = {"timeout": {"connect": _CONNECT_SECONDS}}


@asynccontextmanager
async def open_call(
    method: str,
    address: httpcore.URL,
    gate: Gate,
    *,
    headers: Sequence[tuple[str, str]],
    content: bytes | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[httpcore.Response]:
    """The answer of `address`, whose body is not read yet. The caller bounds the time; `tls` says whose certificates are believed.

    Raises InputError when `gate` does not let the address through, and HostUnavailable, which names no address, when no whole
    answer comes.
    """
    try:
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=_believed() if tls is None else tls, max_keepalive_connections=0, network_backend=PublicNetwork(gate)
            ) as pool,
            pool.stream(
                method, address, headers=[("Host", _host(address)), *headers], content=content, extensions=_EXTENSIONS
            ) as response,
        ):
            yield response
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError) as exc:
        # What the network says may name an address of ours.
        raise HostUnavailable(_said(exc)) from exc


def header(response: httpcore.Response, name: bytes) -> str | None:
    """A header as text; None where there is none."""
    return next((value.decode(errors="replace").strip() for key, value in response.headers if key.lower() == name), None)


def _host(address: httpcore.URL) -> str:
    host = address.host.decode()
    shown = f"[{host}]" if ":" in host else host
    usual = address.port in (None, {b"http": 80, b"https": 443}[address.scheme])
    return shown if usual else f"{shown}:{address.port}"


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
