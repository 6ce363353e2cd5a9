"""A server that takes what Sentry's client sends: https://develop.sentry.dev/sdk/data-model/envelopes/."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class SentryServer:
    """What was received, and where."""

    def __init__(self, url: str) -> None:
        self.dsn = url.replace("://", "://public-key@") + "/1"
        self.bodies: list[bytes] = []
        self.items: list[tuple[str, dict[str, Any]]] = []
        """Type and content of every item."""

    def events(self) -> list[dict[str, Any]]:
        """The errors, oldest first."""
        return [content for kind, content in self.items if kind == "event"]

    def transactions(self) -> list[dict[str, Any]]:
        """The transactions, oldest first."""
        return [content for kind, content in self.items if kind == "transaction"]

    def take(self, body: bytes) -> None:
        """Read one envelope."""
        self.bodies.append(body)
        lines = body.split(b"\n")[1:]
        while len(lines) > 1:
            head, content, *lines = lines
            self.items.append((json.loads(head)["type"], json.loads(content)))


@contextmanager
def sentry_server(*, hangs: bool = False) -> Iterator[SentryServer]:
    """Serve while the block runs; a server that `hangs` takes requests and answers none until then."""
    ending = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if hangs:
                ending.wait(30)
                return
            received.take(gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body)
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received = SentryServer(f"http://127.0.0.1:{server.server_address[1]}")
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            yield received
        finally:
            ending.set()
            server.shutdown()
            serving.join()
