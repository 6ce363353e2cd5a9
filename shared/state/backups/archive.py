"""The file of a backup: a ZIP with PostgreSQL's own dump and a manifest of what the dump holds.

One file, so that the parts cannot be swapped or lost; a ZIP, because its directory stands at the end: a file that was cut off has
none. The dump is stored as it is (it is compressed already), so `unzip` and `pg_restore` are all that reading it by hand takes.
"""

import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import ConfigurationError, InputError

FORMAT: Final = 1
_DUMP, _MANIFEST = "database.dump", "manifest.json"
_CHUNK_BYTES = 1 << 20
_LARGEST_MANIFEST_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Table(_Part):
    """What a table held: its rows, and a checksum over all of them that knows no order."""

    schema_name: str
    name: str
    rows: Annotated[int, Field(ge=0)]
    checksum: Annotated[str, Field(pattern=r"[0-9]{1,40}")]


class Dump(_Part):
    """PostgreSQL's part."""

    size_bytes: int
    sha256: str


class Manifest(_Part):
    """What a backup holds, as its snapshot had it."""

    format: int
    made_at: datetime
    schema_version: str
    """The last migration that was applied."""
    server_version: int
    """The major version of the PostgreSQL that was dumped."""
    dumped_by: int
    """The major version of the program that wrote the dump; an older one may not be able to read it."""
    tables: tuple[Table, ...]
    dump: Dump

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)


def write(file: Path, dump: IO[bytes], manifest: Callable[[Dump], Manifest]) -> Manifest:
    """Make the file, readable by its owner alone, from what `dump` gives until its end. Raises ConfigurationError."""
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(made, "wb") as raw, zipfile.ZipFile(raw, "w") as whole:
            hashed, size = hashlib.sha256(), 0
            with whole.open(_DUMP, "w", force_zip64=True) as entry:
                while chunk := dump.read(_CHUNK_BYTES):
                    hashed.update(chunk)
                    size += len(chunk)
                    entry.write(chunk)
            made_of = manifest(Dump(size_bytes=size, sha256=hashed.hexdigest()))
            whole.writestr(_MANIFEST, orjson.dumps(made_of.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        return made_of
    except OSError as error:
        if not isinstance(error, FileExistsError):
            file.unlink(missing_ok=True)
        raise ConfigurationError(f"{file} cannot be written ({error.strerror}); give another place with --to") from error
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def check(file: Path) -> Manifest:
    """The manifest of a file that is whole: every byte of the dump was read. Raises InputError, which says what is wrong."""
    try:
        with zipfile.ZipFile(file) as whole:
            if sorted(whole.namelist()) != [_DUMP, _MANIFEST]:
                raise InputError(f"{file} is a ZIP, but no backup of the platform")
            manifest = _manifest(file, whole)
            hashed, size = hashlib.sha256(), 0
            with whole.open(_DUMP) as dump:
                while chunk := dump.read(_CHUNK_BYTES):
                    hashed.update(chunk)
                    size += len(chunk)
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:  # the last two: flags that damage can set
        raise InputError(f"{file} is cut off or damaged, or no backup at all; take another one") from error
    if (size, hashed.hexdigest()) != (manifest.dump.size_bytes, manifest.dump.sha256):
        raise InputError(f"{file} holds another dump than its manifest says; take another one")
    return manifest


def pour(file: Path, into: IO[bytes]) -> None:
    """Write the dump to a program that reads it, and close; one that has read enough may close its end before."""
    with zipfile.ZipFile(file) as whole, whole.open(_DUMP) as dump, suppress(BrokenPipeError), into:
        while chunk := dump.read(_CHUNK_BYTES):
            into.write(chunk)


def digest(file: Path) -> str:
    """SHA-256 of the whole file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest(file: Path, whole: zipfile.ZipFile) -> Manifest:
    unknown = f"{file} has a manifest that this release does not understand; use the release that made it"
    if whole.getinfo(_MANIFEST).file_size > _LARGEST_MANIFEST_BYTES:
        raise InputError(unknown)
    try:
        given = orjson.loads(whole.read(_MANIFEST))
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise InputError(unknown)
        return Manifest.model_validate(given)
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise InputError(unknown) from error
