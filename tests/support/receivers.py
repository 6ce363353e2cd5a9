"""A webhook's receiver on this machine, which keeps what it gets."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from standardwebhooks import Webhook


@dataclass
class Call:
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    def verified(self, secret: str) -> dict[str, Any]:
        """What it tells, as the library of Standard Webhooks believes it. Raises WebhookVerificationError."""
        return dict(Webhook(secret).verify(self.body, self.headers))


def answer(status: int, **headers: str) -> bytes:
    """An answer without a body. `retry_after` becomes Retry-After, and so on."""
    lines = [f"HTTP/1.1 {status} Whatever", "Content-Length: 0"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@dataclass
class Receiver:
    """Gives its answers one after the other, the last of them for ever; None is no answer at all."""

    answers: tuple[bytes | None, ...] = (answer(200),)
    port: int = 0
    connections: int = 0
    calls: list[Call] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?token=a-secret-of-the-receiver"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for line in lines if line for name, value in [line.split(":", 1)]}
            assert request.startswith("POST ")
            body = await reader.readexactly(int(headers["content-length"]))
            given = self.answers[min(len(self.calls), len(self.answers) - 1)]
            self.calls.append(Call(request.split(" ")[1], headers, body))
            if given is None:
                await reader.read()
            else:
                writer.write(given)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver(*answers: bytes | None, port: int = 0) -> AsyncIterator[Receiver]:
    made = Receiver(answers) if answers else Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", port)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await server.wait_closed()
