"""A gcloud on the path that records its calls and plays failures, and a Monitoring API that answers as it is told."""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_PROGRAM = """#!{python}
import fcntl, json, pathlib, sys
home = pathlib.Path({home!r})
with (home / "calls").open("a") as calls:
    fcntl.flock(calls, fcntl.LOCK_EX)
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
told = json.loads((home / "told").read_text())
called = " " + " ".join(sys.argv[1:]) + " "
for words, reason in told["failures"].items():
    if f" {{words}} " in called:
        sys.exit("ERROR: (gcloud) " + reason)
for words, answer in told["answers"].items():
    if f" {{words}} " in called:
        print(answer)
        break
"""


@dataclass
class FakeGcloud:
    """`answers` and `failures` are by words that a call has to hold in a row, the first that fits counts."""

    home: Path
    answers: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def install(self) -> str:
        """Write the program; returns the PATH on which it is found first."""
        program = self.home / "bin" / "gcloud"
        program.parent.mkdir(exist_ok=True)
        program.write_text(_PROGRAM.format(python=sys.executable, home=str(self.home)), encoding="utf-8")
        program.chmod(0o755)
        (self.home / "calls").touch()
        (self.home / "told").write_text(json.dumps({"answers": self.answers, "failures": self.failures}), encoding="utf-8")
        return f"{program.parent}{os.pathsep}{os.environ['PATH']}"

    def calls(self, *words: str) -> list[list[str]]:
        """The calls so far that hold all of `words`."""
        made = [json.loads(line) for line in (self.home / "calls").read_text(encoding="utf-8").splitlines()]
        return [call for call in made if all(word in call for word in words)]


@contextmanager
def monitoring(values: dict[str, float | None]) -> Iterator[tuple[str, list[str]]]:
    """A Prometheus query API: a query that holds a key of `values` gets its value, any other nothing. Yields address, queries."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            (query,) = parse_qs(urlsplit(self.path).query)["query"]
            asked.append(query)
            value = next((value for key, value in values.items() if key in query), None)
            result: list[Any] = [] if value is None else [{"metric": {}, "value": [0, str(value)]}]
            body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
