"""The simulator's connections, so that one can be cut: an ASGI application cannot do that by itself."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Connections:
    """The open connections, by the caller's address."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def drop(self, client: tuple[str, int], *, at_once: bool) -> None:
        """Cut the connection; unless `at_once`, what was written is sent first."""
        transport = self._open.get((client[0], client[1]))
        if transport is not None and at_once:
            transport.abort()
        elif transport is not None:
            transport.close()

    def protocol(self) -> type[H11Protocol]:
        """How uvicorn speaks HTTP, each connection known here from its beginning to its end."""
        held = self._open

        class Known(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                self._peer: Any = transport.get_extra_info("peername")[:2]
                held[self._peer] = transport
                super().connection_made(transport)

            def connection_lost(self, exc: Exception | None) -> None:
                held.pop(self._peer, None)
                super().connection_lost(exc)

        return Known
