"""A web site of this machine, which counts who comes."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field


def page(body: bytes | str = "hello", *, status: str = "200 OK", **headers: str) -> bytes:
    """An answer. `content_type` becomes Content-Type, and so on."""
    content = body.encode() if isinstance(body, str) else body
    given = {"content_type": "text/plain", "content_length": str(len(content)), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in given.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def moved(location: str, status: str = "302 Found") -> bytes:
    return page("", status=status, location=location)


@dataclass
class Site:
    """Answers by path; a path that it does not know hangs until the client goes away."""

    pages: dict[str, bytes] = field(default_factory=lambda: {"/": page()})
    port: int = 0
    connections: int = 0
    requests: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def paths(self) -> list[str]:
        return [request.split(" ")[1] for request in self.requests]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.requests.append(request)
            self.asked.set()
            answer = self.pages.get(request.split(" ")[1])
            if answer is None:
                await reader.read()
            else:
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.left.set()
            writer.close()


@asynccontextmanager
async def site(
    pages: Mapping[str, bytes] | None = None, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    made = Site() if pages is None else Site(dict(pages))
    server = await asyncio.start_server(made.serve, host, 0, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
