"""A server that answers what a test tells it to, as bytes, and remembers what it was asked."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

SECONDS = 20


@dataclass
class Request:
    """What came in."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Scripted:
    """The server's address and what it was asked."""

    url: str
    requests: list[Request] = field(default_factory=list)


@contextmanager
def scripted(answers: Sequence[bytes]) -> Iterator[Scripted]:
    """A server on a port of this machine: each connection gets the next answer and is closed; the last answer goes on for ever."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = Scripted(f"http://127.0.0.1:{listening.getsockname()[1]}")
    thread = threading.Thread(target=_serve, args=(listening, list(answers), server))
    thread.start()
    try:
        yield server
    finally:
        with suppress(OSError):  # wakes the thread, which waits in accept
            listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(SECONDS)


def answer(status: int, body: bytes, kind: str = "application/json", **headers: str) -> bytes:
    """One HTTP answer."""
    lines = [f"HTTP/1.1 {status} Whatever", f"content-type: {kind}", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def stream(*parts: bytes) -> bytes:
    """Server-sent events that end with the connection."""
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + b"".join(parts)


def _serve(listening: socket.socket, answers: list[bytes], server: Scripted) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        with connection, suppress(OSError):
            connection.settimeout(SECONDS)
            server.requests.append(_read(connection))
            connection.sendall(answers.pop(0) if len(answers) > 1 else answers[0])


def _read(connection: socket.socket) -> Request:
    data = b""
    while b"\r\n\r\n" not in data and (more := connection.recv(65536)):
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
    while len(body) < int(headers.get("content-length", "0")) and (more := connection.recv(65536)):
        body += more
    return Request(line, headers, body)
