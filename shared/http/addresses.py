"""Which addresses may be called when somebody else names them: http and https, of hosts on the public internet and of nothing else.

Two gates, and both must let it through. `parse` refuses what is not a plain address: other schemes and ports, user info, spellings
that one parser reads otherwise than another. `PublicNetwork` stands where a connection is made: it resolves the name itself, wants
every address of the answer to be public, and connects to the very address that it looked at, so that a name whose answer changes
between look and use (DNS rebinding) gains nothing.

Special addresses: https://www.iana.org/assignments/iana-ipv4-special-registry, https://www.iana.org/assignments/iana-ipv6-special-registry.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn
from urllib.parse import quote, urlsplit

import httpcore

from shared.errors import HostUnavailable, InputError

LONGEST: Final = 2048
PORTS: Final = frozenset({80, 443})

_UNPRINTABLE: Final = re.compile(r"[\x00-\x20\x7f-\xa0\\\ud800-\udfff]")
_NAME: Final = re.compile(r"(?=.{4,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""At least two labels, the last of which starts with a letter: no parser takes such a name for a number."""
_INTERNAL: Final = ("arpa", "corp", "home", "internal", "intranet", "lan", "local", "localdomain", "localhost", "private")
"""Last labels that name nothing on the public internet. Their addresses would be refused as well."""

_GLOBAL_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
"""Beyond it are loopback, link-local, ULA, NAT64, and the mapped and compatible forms of IPv4."""
_SPECIAL: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' own, and a cloud's metadata
        "168.63.129.16/32",  # Azure's host: public by number alone
        "169.254.0.0/16",  # link-local, and most clouds' metadata
        "192.0.0.0/24",  # protocols' own, and Oracle's metadata
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocols' own, Teredo among them
        "2002::/16",  # 6to4: an IPv4 address inside
        "3fff::/20",  # documentation; not in every Python's tables
    )
)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A host and a port → its addresses. Raises OSError."""


def is_public(address: str) -> bool:
    """Whether `address` (a literal) belongs to the public internet, and no other address is hidden in it."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in _GLOBAL_UNICAST or ip.scope_id is not None):
        return False
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not special and not any(ip in network for network in _SPECIAL)


async def resolve(host: str, port: int) -> Sequence[str]:
    """What the machine's resolver says."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True, slots=True)
class Gate:
    """What may be called. The first three are for tests, whose servers are on this machine.

    `loopback` lets this machine through as well, on any port, where it is written out: localhost, 127.0.0.1, [::1]. A name that
    leads here is refused all the same.
    """

    may_connect: Callable[[str], bool] = is_public
    resolve: Resolve = resolve
    ports: Collection[int] = PORTS
    loopback: bool = False

    def means_loopback(self, host: str) -> bool:
        """Whether `host` is this machine, and may be."""
        return self.loopback and (host == "localhost" or _is_loopback(host))

    def lets_through(self, host: str, address: str) -> bool:
        """Whether `address`, which `host` stands for, may be connected to."""
        return _is_loopback(address) if self.means_loopback(host) else self.may_connect(address)


PUBLIC: Final = Gate()


def parse(url: str, gate: Gate = PUBLIC) -> httpcore.URL:
    """`url` taken apart. Where its name leads is looked at when a connection is made.

    Raises InputError when it is not a plain http or https address with a name, or with a literal that `gate` lets through.
    """
    if len(url) > LONGEST:
        _refuse(f"it is longer than {LONGEST} characters")
    if _UNPRINTABLE.search(url) is not None:
        _refuse("it holds a space, a backslash or a control character; percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        _refuse("it cannot be read")
    if parts.scheme not in ("http", "https"):
        _refuse("only http and https are allowed")
    if "@" in parts.netloc or "%" in parts.netloc:
        _refuse("its host must be a plain name, without user and password")
    port = {"http": 80, "https": 443}[parts.scheme] if port is None else port
    host = _host(parts.netloc, parts.hostname or "", gate)
    if port not in gate.ports and not (port and gate.means_loopback(host)):
        _refuse(f"its port must be {' or '.join(map(str, sorted(gate.ports)))}")
    # Only what stands for itself in a path or query stays; the fragment is the reader's own business.
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~") + (
        f"?{quote(parts.query, safe='/%:@!$&()*+,;=~?')}" if parts.query else ""
    )
    return httpcore.URL(scheme=parts.scheme.encode(), host=host.encode(), port=port, target=target.encode())


def _host(netloc: str, host: str, gate: Gate) -> str:
    if not host.isascii():
        _refuse("its host is not ASCII; write international names in their xn-- form")
    if netloc.startswith("["):
        if netloc.partition("]")[2][:1] not in ("", ":"):
            _refuse("its host must be a name or an address, not both")
        try:
            return _literal(str(ipaddress.IPv6Address(host)), gate)
        except ValueError:
            _refuse("its host is no IPv6 address")
    try:
        return _literal(str(ipaddress.IPv4Address(host)), gate)
    except ValueError:
        pass
    if gate.means_loopback(host):
        return host
    if _NAME.fullmatch(host) is None:
        _refuse("its host must be a full name such as www.example.org, or an address")
    if host.rpartition(".")[2] in _INTERNAL:
        _refuse("its host is not on the public internet")
    return host


def _literal(host: str, gate: Gate) -> str:
    if not gate.lets_through(host, host):
        _refuse("its host is not on the public internet")
    return host


def _is_loopback(host: str) -> bool:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return ip.is_loopback if ip.version == 4 else ip == ipaddress.IPv6Address("::1")


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """Connects to what `gate` lets through, by `inner`."""

    def __init__(self, gate: Gate, inner: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._gate = gate
        self._inner = httpcore.AnyIOBackend() if inner is None else inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises InputError, which names no address, when any address of `host` is not public, and HostUnavailable without any."""
        try:
            addresses = list(dict.fromkeys(await self._gate.resolve(host, port)))
        except (OSError, UnicodeError) as exc:
            raise HostUnavailable("there is no such host") from exc
        if not addresses or not all(self._gate.lets_through(host, address) for address in addresses):
            _refuse("its host is not on the public internet")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        _refuse("its host is not on the public internet")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


def _refuse(reason: str) -> NoReturn:
    raise InputError(f"the address cannot be called: {reason}")
