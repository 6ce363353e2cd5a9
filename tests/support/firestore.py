"""A Firestore emulator of the tests' own."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from shared.local.servers import sdk_root
from tests.support import emulators
from tests.support.servers import free_port

_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
_MAIN = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"
_JAVA = ("-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.language=en")


@cache
def missing() -> str | None:
    """What this machine lacks to run the emulator."""
    if shutil.which("java") is None:
        return "java"
    jar = _jar()
    return None if jar is not None and jar.exists() else "the emulator: gcloud components install cloud-firestore-emulator"


def require() -> None:
    """Skip the test where the emulator cannot run; fail it in CI, where it must."""
    emulators.require("Firestore", missing())


@contextmanager
def emulator() -> Iterator[str]:
    """A running emulator, as host:port."""
    port = free_port()
    command = ["java", *_JAVA, "-cp", str(_jar()), _MAIN, "--host=127.0.0.1", f"--port={port}"]
    with emulators.running("Firestore", command, port, {}) as address:
        yield address


def _jar() -> Path | None:
    root = sdk_root()
    return None if root is None else root / _JAR
