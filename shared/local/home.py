"""The folder where the local platform keeps its data, held by one platform at a time."""

import fcntl
import os
from pathlib import Path

from shared.errors import ConfigurationError


class Home:
    """`AGENT_TEAM_HOME`, locked until `release`. The lock goes with the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when the folder cannot be used or another platform holds it."""
        self.folder = folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise ConfigurationError(
                f"{self.folder} cannot be used ({error.strerror}); make it writable or set AGENT_TEAM_HOME to another folder"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigurationError(
                f"another platform (process {holder}) uses {self.folder}; end it, send it the work over HTTP, "
                "or set AGENT_TEAM_HOME to another folder"
            ) from error
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """Let the next platform in."""
        self._file.close()
