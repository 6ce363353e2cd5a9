"""Backups in a bucket of Google Cloud Storage: made where there is none, never written again, read back to the last byte.

What this needs of the bucket: storage.objects.create and .get, which Terraform grants the job. The client is the library's own and
blocks: its calls run in a thread.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from shared.errors import AgentTeamError, ConfigurationError, InputError, StoreUnavailable
from shared.state.backups.archive import digest

if TYPE_CHECKING:
    from google.cloud.storage import Blob, Client  # type: ignore[import-untyped]

_SECONDS: Final = (10.0, 120.0)
"""To connect, and between two pieces of an answer."""


def is_bucket(place: str) -> bool:
    """Whether a place is one in a bucket, rather than on this machine."""
    return place.startswith("gs://")


def object_in(place: str, name: str) -> str:
    """The address of the object `name` below `gs://bucket/prefix`. Raises InputError."""
    bucket, prefix = _parts(place)
    return f"gs://{bucket}/{prefix}/{name}" if prefix else f"gs://{bucket}/{name}"


def upload(file: Path, place: str, *, project: str | None) -> None:
    """Copy `file` to the object at `place`, which must not exist, and compare what the bucket gives back. Blocking."""
    from google.api_core.exceptions import PreconditionFailed

    with _open(project) as client:
        try:
            blob = _blob(client, place)
            # Cloud Storage's own time of an object says when it was uploaded, and moves with a copy; this one is kept.
            blob.custom_time = _made_at(file)
            blob.upload_from_filename(file, "application/zip", if_generation_match=0, timeout=_SECONDS, checksum="crc32c")
            read = _Hashing()
            blob.download_to_file(read, timeout=_SECONDS)
        except PreconditionFailed as error:
            raise InputError(f"{place} is there already; backups are never overwritten") from error
        except Exception as error:
            raise _translated(error, place) from error
        if read.digest() != digest(file):
            raise StoreUnavailable(f"{place} is not what was uploaded; make another backup")


def download(place: str, file: Path, *, project: str | None) -> None:
    """Copy the object at `place` to `file`. Blocking. Raises InputError when there is none."""
    from google.api_core.exceptions import NotFound

    with _open(project) as client:
        try:
            _blob(client, place).download_to_filename(file, timeout=_SECONDS)
        except NotFound as error:
            raise InputError(f"there is no {place}; `gcloud storage ls` shows what there is") from error
        except Exception as error:
            raise _translated(error, place) from error


class _Hashing:
    """A file that keeps nothing but the hash of what is written to it."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def digest(self) -> str:
        return self._hash.hexdigest()


def _made_at(file: Path) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(file.stat().st_mtime, UTC)


def _open(project: str | None) -> "Client":
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage import Client

    from shared.google_errors import LOG_IN

    try:
        return Client(project=project)
    except (GoogleAuthError, OSError) as error:
        raise ConfigurationError(f"Cloud Storage needs credentials; {LOG_IN}") from error


def _blob(client: "Client", place: str) -> "Blob":
    bucket, name = _parts(place)
    if not name:
        raise InputError(f"{place} names no object: gs://bucket/name, as `gcloud storage ls` shows them")
    return client.bucket(bucket).blob(name)


def _parts(place: str) -> tuple[str, str]:
    parts = urlsplit(place)
    if parts.scheme != "gs" or not parts.netloc or parts.query or parts.fragment:
        raise InputError(f"{place[:80]!r} is no place in a bucket; write gs://bucket/prefix")
    return parts.netloc, parts.path.strip("/")


def _translated(error: Exception, place: str) -> AgentTeamError:
    """By status: https://cloud.google.com/storage/docs/json_api/v1/status-codes. The service's own text stays out."""
    from google.api_core import exceptions as google
    from google.auth.exceptions import GoogleAuthError

    from shared.google_errors import LOG_IN

    bucket = f"the bucket {urlsplit(place).netloc}"
    match error:
        case AgentTeamError():
            return error
        case google.NotFound():
            return ConfigurationError(f"{bucket} does not exist; create it with `terraform apply`")
        case google.Forbidden():
            return ConfigurationError(f"{bucket} refuses this account; grant it storage.objects.create and .get on it")
        case google.Unauthorized() | GoogleAuthError():
            return ConfigurationError(f"{bucket} needs credentials; {LOG_IN}")
        case OSError() if error.filename is not None:
            return ConfigurationError(f"{error.filename} cannot be used ({error.strerror})")
        case _:
            return StoreUnavailable(f"{bucket} cannot be reached or refuses work ({type(error).__name__})")
