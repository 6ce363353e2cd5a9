"""Google's emulators, in processes that the tests start and end."""

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pytest

_START_SECONDS = 60.0


def require(tests: str, lack: str | None) -> None:
    """Skip the test where the emulator cannot run; fail it in CI, where it must."""
    if lack is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the {tests} tests need {lack}")
        pytest.skip(f"the {tests} tests need {lack}")


@contextmanager
def running(name: str, command: Sequence[str], port: int, variables: Mapping[str, str]) -> Iterator[str]:
    """A running emulator, as host:port."""
    process = subprocess.Popen(command, env={**os.environ, **variables}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_ready(name, process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)  # it keeps everything in memory: nothing is lost
        process.wait()


def _wait_until_ready(name: str, process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
                return
        except OSError:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    raise AssertionError(f"the {name} emulator did not start within {_START_SECONDS:g} s")
