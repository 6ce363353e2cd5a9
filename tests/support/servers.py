"""Real servers as subprocesses that the tests own: started on a free port, ready when they answer, killed by their process id."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
import redis

from shared.local.servers import redis_binary

_START_SECONDS = 60.0
_PORTS_TRIED = 5


def missing(server: str) -> NoReturn:
    """Fail where servers are required (CI=true), else skip by name."""
    message = f"{server} is not installed"
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{message}, and CI=true requires it")
    pytest.skip(message)


_PORTS = range(11_000, 22_000)
"""Below those that the system gives to connections and to whoever asks for any, so that none is taken before or between its uses.

So are those 10,000 above, where a Redis Cluster speaks too: https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html.
"""


@contextmanager
def patience() -> Iterator[None]:
    """Wait for Redis as long as it takes, where a test is not about that: to a process that was held up, every answer is late."""
    limits: dict[str, Any] = {"CONNECT_SECONDS": 60.0, "ANSWER_SECONDS": 60.0}
    with patch.multiple("shared.redis.connections", **limits), patch.multiple("shared.redis.store", **limits):
        yield


def free_port() -> int:
    """A port that nobody listens on."""
    while True:
        port = secrets.choice(_PORTS)  # which no test seeds
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


class RedisServer:
    """One Redis. It can be stopped, killed and started again on the same port and the same data."""

    def __init__(self, binary: Path, folder: Path, options: tuple[str, ...], password: str | None) -> None:
        self._command = [str(binary), "--dir", str(folder), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no", *options]
        self._log = folder / "redis.log"
        self._password = password
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """What REDIS_URL would be."""
        login = "" if self._password is None else f":{self._password}@"
        return f"redis://{login}127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start on the port of last time, the first time on a free one, and return when it answers."""
        ports = [self.port] if self.port else [free_port() for _ in range(_PORTS_TRIED)]
        for port in ports:
            self.port = port
            with self._log.open("ab") as log:
                self._process = subprocess.Popen([*self._command, "--port", str(port)], stdout=log, stderr=log)
            if self._answers():
                return
        raise AssertionError(f"redis-server did not start:\n{self._log.read_text(encoding='utf-8', errors='replace')[-2000:]}")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End the process, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(timeout=_START_SECONDS)

    def execute(self, *words: str | int | bytes) -> Any:
        """The answer of one command, from outside of any event loop's way."""
        with redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=1, retry=None) as client:
            return client.execute_command(*words)

    def _answers(self) -> bool:
        """Whether it answers in time; False as soon as the process has ended."""
        end = time.monotonic() + _START_SECONDS
        while self._process is not None and self._process.poll() is None:
            try:
                # Another one answers where somebody else was given this port at the same moment; then this one ends by itself.
                if self.execute("PING") and self.execute("INFO", "server")["process_id"] == self.pid:
                    return True
            except (redis.ConnectionError, redis.TimeoutError):
                pass
            if time.monotonic() > end:
                self.kill()
            time.sleep(0.01)
        return False


@contextmanager
def redis_server(*options: str, password: str | None = None) -> Iterator[RedisServer]:
    """An empty Redis of one's own. `options` are redis-server's: "--maxmemory", "2mb", …"""
    binary = redis_binary()
    if binary is None:
        missing("redis-server")
    folder = Path(tempfile.mkdtemp(prefix="agent-team-redis-"))
    server = RedisServer(binary, folder, (*options, *(() if password is None else ("--requirepass", password))), password)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)
