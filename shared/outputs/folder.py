"""Outputs in a folder of this machine: a file for each, named by its hash, never seen by halves.

A file's time is when its content was last put. Whoever deletes old ones holds the folder's lock alone, and whoever puts shares it:
what was just put again is not deleted any more. The lock is of one machine; a folder that several share needs a file system that
has locks.
"""

import asyncio
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from shared.errors import AgentTeamError, ConfigurationError, StoreUnavailable

_Answer = TypeVar("_Answer")
_MISPLACED = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_READ_ONLY = 30  # EROFS has no exception of its own


class FolderStore:
    """Files in `folder`, which is made with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()

    async def put(self, id: str, data: bytes) -> None:
        await self._apart(lambda: self._put(id, data))

    async def get(self, id: str) -> bytes | None:
        return await self._apart(lambda: self._get(id))

    async def stale(self, older_than: timedelta) -> list[str]:
        before = time.time() - older_than.total_seconds()
        return await self._apart(lambda: [path.name for path in self._folder.glob("??/*") if _is_older(path, before)])

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        before = time.time() - older_than.total_seconds()
        return await self._apart(lambda: self._remove(ids, before))

    async def close(self) -> None:
        pass

    def _put(self, id: str, data: bytes) -> None:
        path = self._path(id)
        with self._locked(fcntl.LOCK_SH):
            if path.exists() and path.stat().st_size == len(data):
                os.utime(path)
                return
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".new-", delete=False) as aside:
                try:
                    aside.write(data)
                    aside.flush()
                    os.fsync(aside.fileno())
                    Path(aside.name).replace(path)
                except BaseException:
                    Path(aside.name).unlink(missing_ok=True)
                    raise
            _sync(path.parent)

    def _get(self, id: str) -> bytes | None:
        try:
            return self._path(id).read_bytes()
        except FileNotFoundError:
            return None

    def _remove(self, ids: Collection[str], before: float) -> int:
        gone = 0
        for path in map(self._path, ids):
            with self._locked(fcntl.LOCK_EX):
                if _is_older(path, before):
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone

    def _path(self, id: str) -> Path:
        return self._folder / id[:2] / id

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / ".lock").open("a") as lock:
            fcntl.flock(lock, how)
            yield

    async def _apart(self, work: Callable[[], _Answer]) -> _Answer:
        """Do it in a thread: a disk may take its time."""
        try:
            return await asyncio.to_thread(work)
        except OSError as error:
            raise _translated(error, self._folder) from error


def _translated(error: OSError, folder: Path) -> AgentTeamError:
    if isinstance(error, _MISPLACED) or error.errno == _READ_ONLY:
        return ConfigurationError(
            f"{folder} cannot hold outputs ({error.strerror}); make it writable or set OUTPUTS_URL to another folder"
        )
    return StoreUnavailable(f"{folder} cannot be used now ({error.strerror}); see whether its disk is full or broken")


def _is_older(path: Path, before: float) -> bool:
    try:
        return path.stat().st_mtime < before
    except FileNotFoundError:
        return False


def _sync(folder: Path) -> None:
    """What was renamed into `folder` is there after a power cut, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
