"""A Pub/Sub emulator of the tests' own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from shared.errors import ConfigurationError
from shared.local.servers import emulator_command
from tests.support import emulators
from tests.support.servers import free_port


@cache
def missing() -> str | None:
    """What this machine lacks to run the emulator."""
    try:
        emulator_command(1)
    except ConfigurationError as error:
        return f"the emulator: {error}"
    return None


def require() -> None:
    """Skip the test where the emulator cannot run; fail it in CI, where it must."""
    emulators.require("Pub/Sub", missing())


@contextmanager
def emulator(port: int | None = None) -> Iterator[str]:
    """A running emulator, as host:port; on any free port unless told."""
    port = free_port() if port is None else port
    # The script replaces itself by java: the process is the emulator.
    command, variables = emulator_command(port)
    with emulators.running("Pub/Sub", command, port, variables) as address:
        yield address
