"""Signing keys in the home folder, for the platform on one machine: `signing-keys.json`, readable by its owner alone.

The file is replaced as a whole, so that nobody reads half of it, by one process at a time.
"""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import SecretStr

from shared.clock import Clock
from shared.errors import ConfigurationError, Conflict
from shared.keys.base import Key, KeySet, new_secret

FILE: Final = "signing-keys.json"
_LOCK: Final = "signing-keys.lock"
_REFRESH_SECONDS: Final = 1.0
"""Looking whether the file has changed costs some microseconds."""
_DEFAULT = "default"


class FileKeyStore:
    """The keys in `folder`; none while it has no such file. It also retires `default`, the environment's own secret."""

    refresh_seconds = _REFRESH_SECONDS

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._file = folder / FILE
        self._lock = folder / _LOCK
        self._clock = clock
        self._seen: tuple[tuple[int, int, int], KeySet] | None = None

    def load(self) -> KeySet:
        """All keys as they are now. It reads the file only when that has changed."""
        try:
            status = self._file.stat()
            mark = (status.st_ino, status.st_mtime_ns, status.st_size)
            if self._seen is None or self._seen[0] != mark:
                self._seen = mark, _parsed(orjson.loads(self._file.read_bytes()))
            return self._seen[1]
        except (FileNotFoundError, NotADirectoryError):
            return KeySet()
        except OSError as error:
            raise ConfigurationError(f"{self._file} cannot be read ({error.strerror}); make it readable for this user") from error
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{self._file} does not hold signing keys ({type(error).__name__}); restore it, or remove it"
            ) from None

    async def read(self) -> KeySet:
        """All keys as they are now."""
        return self.load()

    async def add(self) -> str:
        """Make a key that verifies, and return its id."""

        def with_another(held: KeySet) -> KeySet:
            number = max((int(key.id[1:]) for key in held.keys), default=0) + 1
            return replace(held, keys=(*held.keys, Key(f"k{number}", self._clock.now(), new_secret())))

        return (await self._change(with_another)).keys[-1].id

    async def activate(self, key_id: str, *, now: datetime) -> None:
        """Have a key sign. Raises as `KeySet.to_activate` does."""

        def signing(held: KeySet) -> KeySet:
            key = held.to_activate(key_id)
            if key.id == held.active:
                return held
            keys = tuple(replace(one, activated_at=now) if one.id == key.id else one for one in held.keys)
            return replace(held, keys=keys, active=key.id)

        await self._change(signing)

    async def retire(self, key_id: str) -> None:
        """Have a key, or `default`, refused for good. Raises as `KeySet.to_retire` does."""

        def without(held: KeySet) -> KeySet:
            if key_id == _DEFAULT:
                if held.active is None:
                    raise Conflict("the default secret signs; activate a key first: agent-team keys activate ID")
                return replace(held, refused=(_DEFAULT,))
            key = held.to_retire(key_id)
            return replace(held, keys=tuple(replace(one, secret=None) if one.id == key.id else one for one in held.keys))

        await self._change(without)

    async def _change(self, change: Callable[[KeySet], KeySet]) -> KeySet:
        return await asyncio.to_thread(self._changed, change)

    def _changed(self, change: Callable[[KeySet], KeySet]) -> KeySet:
        with self._locked():
            held = self.load()
            wanted = change(held)
            if wanted != held:
                self._write(wanted)
            return wanted

    def _write(self, keys: KeySet) -> None:
        with tempfile.NamedTemporaryFile(dir=self._file.parent, prefix=FILE, delete=False) as aside:  # made for its owner alone
            try:
                aside.write(orjson.dumps(_document(keys)))
                aside.flush()
                os.fsync(aside.fileno())
                Path(aside.name).replace(self._file)
            except BaseException:
                Path(aside.name).unlink(missing_ok=True)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time; the lock goes with it, however it ends."""
        try:
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            with self._lock.open("a") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                yield
        except OSError as error:
            folder = self._lock.parent
            raise ConfigurationError(
                f"{folder} cannot be written ({error.strerror}); make it writable or set AGENT_TEAM_HOME to another folder"
            ) from error


def _document(keys: KeySet) -> dict[str, Any]:
    return {
        "active": keys.active,
        "refused": keys.refused,
        "keys": [
            {
                "id": key.id,
                "created_at": key.created_at,
                "activated_at": key.activated_at,
                "secret": None if key.secret is None else key.secret.get_secret_value(),
            }
            for key in keys.keys
        ],
    }


def _parsed(document: dict[str, Any]) -> KeySet:
    return KeySet(
        tuple(
            Key(
                str(one["id"]),
                datetime.fromisoformat(one["created_at"]),
                None if one["secret"] is None else SecretStr(one["secret"]),
                None if one["activated_at"] is None else datetime.fromisoformat(one["activated_at"]),
            )
            for one in document["keys"]
        ),
        document["active"],
        tuple(document["refused"]),
    )
