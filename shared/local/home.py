"""The folder where the local platform keeps its data, held by one platform at a time."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from shared.errors import ConfigurationError

LOG_FILE = "agent-team.log"
_LARGEST_LOG_BYTES = 20 * 1024 * 1024


class Home:
    """`AGENT_TEAM_HOME`, locked until `release`. The lock goes with the process, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Raises ConfigurationError when the folder cannot be used or another platform holds it."""
        self.folder = folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / "lock").open("a+", encoding="ascii")
        except OSError as error:
            raise _unusable(self.folder, error) from error
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


def open_log(folder: Path) -> TextIO:
    """The home folder's log, to be appended to; one that has grown over 20 MB becomes `agent-team.log.1` first.

    Needs no lock: lines of several processes don't mix. Raises ConfigurationError when the folder cannot be used.
    """
    file = folder.resolve() / LOG_FILE
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.exists() and file.stat().st_size > _LARGEST_LOG_BYTES:
            file.replace(file.with_name(f"{LOG_FILE}.1"))
        return file.open("a", encoding="utf-8")
    except OSError as error:
        raise _unusable(file.parent, error) from error


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{folder} cannot be used ({error.strerror}); make it writable or set AGENT_TEAM_HOME to another folder"
    )
