"""A Pub/Sub emulator of the tests' own, in a process that they start and end."""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

_PROGRAM = "platform/pubsub-emulator/bin/cloud-pubsub-emulator"
_JAVA = "-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"
_START_SECONDS = 60.0


@cache
def missing() -> str | None:
    """What this machine lacks to run the emulator."""
    for program in ("java", "gcloud"):
        if shutil.which(program) is None:
            return program
    return None if _program().exists() else "the emulator: gcloud components install pubsub-emulator"


def require() -> None:
    """Skip the test where the emulator cannot run; fail it in CI, where it must."""
    lack = missing()
    if lack is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the Pub/Sub tests need {lack}")
        pytest.skip(f"the Pub/Sub tests need {lack}")


@contextmanager
def emulator(port: int | None = None) -> Iterator[str]:
    """A running emulator, as host:port; on any free port unless told."""
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    # The script replaces itself by java: the process is the emulator.
    process = subprocess.Popen(
        [str(_program()), "--host=127.0.0.1", f"--port={port}"],
        env={**os.environ, "JAVA_OPTS": _JAVA},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_ready(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)  # it keeps everything in memory: nothing is lost
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + _START_SECONDS
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
                return
        except OSError:
            if time.monotonic() > end:
                break
            time.sleep(0.05)
    raise AssertionError(f"the Pub/Sub emulator did not start within {_START_SECONDS:g} s")


@cache
def _program() -> Path:
    asked = subprocess.run(
        ["gcloud", "info", "--format=value(installation.sdk_root)"], capture_output=True, text=True, timeout=60, check=True
    )
    return Path(asked.stdout.strip()) / _PROGRAM
