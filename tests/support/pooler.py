"""A real pgbouncer in transaction mode in front of the tests' PostgreSQL."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.conftest import Postgres
from tests.support.servers import free_port

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}{os.pathsep}/usr/sbin")
POOL_SIZE = 3


class Pooler:
    """A pooler: each of its `POOL_SIZE` connections to a database serves whoever has a transaction to run."""

    def __init__(self, port: int) -> None:
        self._port = port

    def dsn(self, direct: str, query: str = "?pgbouncer=true") -> str:
        """How to reach through the pooler what `direct` leads to."""
        return f"postgresql://postgres@127.0.0.1:{self._port}{urlsplit(direct).path}{query}"


@contextmanager
def pooler(postgres: Postgres) -> Iterator[Pooler]:
    """A pooler of the session's server. Where pgbouncer is not installed the test fails in CI and is skipped by name elsewhere."""
    if PGBOUNCER is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pgbouncer is missing; install it: apt-get install pgbouncer")
        pytest.skip("pgbouncer is not installed")
    server = Path(parse_qs(urlsplit(postgres.dsn("postgres")).query)["host"][0])
    with TemporaryDirectory() as folder:
        port = free_port()
        config = Path(folder) / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={server} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
            f"pool_mode = transaction\ndefault_pool_size = {POOL_SIZE}\nmax_client_conn = 500\n",
            encoding="utf-8",
        )
        Path(folder).chmod(0o755)
        # It refuses to run as root; whoever runs the server may reach the server's socket.
        user = server.stat().st_uid if os.geteuid() == 0 else None
        process = subprocess.Popen([PGBOUNCER, "--quiet", config], user=user, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port, process)
            yield Pooler(port)
        finally:
            process.terminate()
            process.wait(60)


def _wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, "pgbouncer did not start"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    raise AssertionError("pgbouncer does not listen")
