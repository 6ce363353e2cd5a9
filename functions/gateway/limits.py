"""How often a client may ask: so many requests a minute of one address, over all instances that share the guards.

The headers are those of https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` says what
is allowed, `RateLimit` what is left of it (`r`) and in how many seconds it is whole again (`t`). A refusal is exact, and so is its
`Retry-After`. What is left is what this instance has seen: where others serve the same client too, it may be less.

The minute begins with the client's first request. While the guards' store is down an instance allows its share of the limit.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from functions.gateway.edge import Edge
from functions.gateway.problems import TOO_MANY, problem
from shared.errors import RateLimited
from shared.guards import Window
from shared.runtime import Runtime

_log = logging.getLogger(__name__)

UNLIMITED: Final = frozenset({"/health", "/health/ready"})
"""Asked by machines that restart what does not answer."""
_SECONDS: Final = 60.0
_NAME: Final = "minute"
_IPV6_BITS: Final = 64
"""The network that one subscriber is given: https://www.rfc-editor.org/rfc/rfc6177."""
_MOST_SEEN: Final = 10_000


class RateLimit:
    """Refuses what goes over the limit: 429. The outermost of all, so that every answer tells what is left."""

    def __init__(self, app: ASGIApp, *, live: Runtime) -> None:
        self._app = app
        self._live = live
        self._limit = live.settings.api_rate_per_minute
        self._policy = f'"{_NAME}";q={self._limit};w={_SECONDS:.0f}'
        self._seen: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Of each address when its minute ends, and its requests here; one more than allowed when some were refused."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in UNLIMITED:
            await self._app(scope, receive, send)
            return
        address = client_address(scope, self._live.settings.api_proxy_hops)
        refused_for = await self._reserve(address)
        left, seconds = self._left(address, refused_for)

        async def send_with_limit(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["ratelimit-policy"] = self._policy
                headers["ratelimit"] = f'"{_NAME}";r={left};t={seconds}'
            await send(message)

        app = self._app
        if refused_for is not None:
            detail = f"{self._limit} requests a minute are allowed; try again after the seconds in Retry-After"
            app = Edge(problem(TOO_MANY, detail, headers={"retry-after": str(seconds)}))
        await app(scope, receive, send_with_limit)

    async def _reserve(self, address: str) -> float | None:
        """Count a request. The seconds to wait when it is one too many."""
        window = Window(_NAME, self._limit, 1, _SECONDS, _SECONDS)
        try:
            # The bucket itself never fills: all that counts is the minute.
            await self._live.guards.limiter.reserve(f"api:{address}", rate=1, burst=1, cost=0, windows=[window], max_wait_seconds=0)
        except RateLimited as error:
            return _SECONDS if error.retry_after_seconds is None else error.retry_after_seconds
        return None

    def _left(self, address: str, refused_for: float | None) -> tuple[int, int]:
        """Requests that are left, and seconds until all are there again."""
        now = self._live.clock.monotonic()
        ends, used = self._seen.get(address, (0.0, 0))
        if refused_for is not None:
            if used <= self._limit:  # once a minute: whoever is refused may go on as fast as it can
                _log.warning("rate limit: a client is refused", extra={"client": address, "status": "rejected"})
            ends, used = now + refused_for, self._limit + 1
        elif ends <= now:
            ends, used = now + _SECONDS, 1
        else:
            used += 1
        self._seen[address] = ends, used
        self._seen.move_to_end(address)
        if len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return max(0, self._limit - used), max(1, math.ceil(ends - now))


def client_address(scope: Scope, hops: int) -> str:
    """Who asks: an IPv4 address, or the network of an IPv6 address.

    That is the socket's peer or, behind `hops` proxies, what the outermost of them was called from. Each appends one entry to
    `X-Forwarded-For`; what stands to the left of theirs is what the client wrote, and is not looked at. Where there are too few
    entries, or that one is no address, the peer counts.
    """
    peer = scope.get("client")
    known = None if peer is None else _network(peer[0])
    if hops:
        # Several headers of a name are one list (https://www.rfc-editor.org/rfc/rfc9110#section-5.3).
        entries: Sequence[str] = ",".join(Headers(scope=scope).getlist("x-forwarded-for")).rsplit(",", hops)[-hops:]
        forwarded = _network(entries[0]) if len(entries) == hops else None
        known = known if forwarded is None else forwarded
    return "unknown" if known is None else known


def _network(text: str) -> str | None:
    """`203.0.113.7`, `203.0.113.7:4711`, `2001:db8::1` and `[2001:db8::1]:4711` as what they count as; None for anything else."""
    host = text.strip().strip('"')
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # The name of a link is not part of a network's.
    return str(ip_network((int(address), _IPV6_BITS), strict=False))
