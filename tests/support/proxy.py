"""A TCP proxy on loopback whose connections can be cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes on between its clients and one server."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._open: set[asyncio.StreamWriter] = set()
        self.address = ""

    def cut(self) -> int:
        """Break every connection without a word; how many there were."""
        cut = len(self._open)
        for writer in self._open:
            writer.transport.abort()
        return cut // 2

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._open |= pair
        try:
            with suppress(asyncio.CancelledError):  # or the server would tell of it at its end
                await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))
        finally:
            self._open -= pair

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy(address: str) -> AsyncIterator[Proxy]:
    """A proxy to `address`, host:port."""
    host, _, port = address.partition(":")
    opened = Proxy(host, int(port))
    server = await asyncio.start_server(opened.serve, "127.0.0.1", 0)
    opened.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield opened
    finally:
        server.close()
        opened.cut()
        await server.wait_closed()
