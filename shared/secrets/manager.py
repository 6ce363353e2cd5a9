"""Secrets of a Google Cloud project, and their versions.

The client, 280 ms to import, is opened by the first call, in its event loop.

A value that was read is kept for five minutes, that of a numbered version for ever: it never changes. Rules:
https://cloud.google.com/secret-manager/docs/reference/rpc/google.cloud.secretmanager.v1
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from shared.clock import Clock
from shared.errors import ConfigurationError

if TYPE_CHECKING:
    from google.cloud.secretmanager_v1 import SecretManagerServiceAsyncClient

KEPT_SECONDS: Final = 300.0
"""How long a value is believed to be the latest."""
_CALL_SECONDS: Final = 10.0
"""The longest that a call takes, the driver's own retries included."""
_ACCESSOR, _VIEWER, _MANAGER = (f"roles/secretmanager.{role}" for role in ("secretAccessor", "viewer", "admin"))


@dataclass(frozen=True, slots=True)
class SecretHead:
    """What is noted on a secret, for all to see: nothing of it is secret."""

    aliases: Mapping[str, int]
    annotations: Mapping[str, str]
    etag: str
    """Changes with every change: with it, `SecretManager.note` finds out that somebody was quicker."""


@dataclass(frozen=True, slots=True)
class SecretVersion:
    """One version of a secret, without its value."""

    number: int
    enabled: bool
    created_at: datetime


class SecretManager:
    """The secrets of `project`, for the account that `member` names (in what it says about missing grants).

    All methods raise ConfigurationError, in one line with the command that mends it, for a secret, a version, a grant or
    credentials that are missing, and StoreUnavailable while the service does not answer. `address` is that of a server without
    TLS, for tests.
    """

    def __init__(self, project: str, clock: Clock, *, member: str = "user:YOU", address: str | None = None) -> None:
        self.project = project
        self._clock = clock
        self._member = member
        self._address = address
        self._kept: dict[tuple[str, str], tuple[SecretStr, float]] = {}

    async def value(self, secret: str, version: str = "latest") -> SecretStr:
        """The value of a secret, as text, without the blanks around it."""
        kept = self._kept.get((secret, version))
        if kept is not None and self._clock.monotonic() < kept[1]:
            return kept[0]
        async with self._asking(secret, _ACCESSOR) as client:
            answer = await client.access_secret_version(name=f"{self._name(secret)}/versions/{version}")
        try:
            value = SecretStr(answer.payload.data.decode().strip())
        except UnicodeDecodeError:
            raise ConfigurationError(f"secret {secret} of project {self.project} is no UTF-8 text; add a version that is") from None
        until = inf if version.isdecimal() else self._clock.monotonic() + KEPT_SECONDS
        self._kept[secret, version] = value, until
        return value

    async def head(self, secret: str) -> SecretHead:
        """What is noted on a secret."""
        async with self._asking(secret, _VIEWER) as client:
            found = await client.get_secret(name=self._name(secret))
        return SecretHead(dict(found.version_aliases), dict(found.annotations), found.etag)

    async def versions(self, secret: str) -> list[SecretVersion]:
        """Every version, the oldest first."""
        from google.cloud.secretmanager_v1 import SecretVersion as Version

        async with self._asking(secret, _VIEWER) as client:
            pages = await client.list_secret_versions(parent=self._name(secret))
            found = [
                SecretVersion(
                    int(one.name.rpartition("/")[2]),
                    one.state == Version.State.ENABLED,
                    datetime.fromtimestamp(one.create_time.timestamp(), UTC),
                )
                async for one in pages
            ]
        return sorted(found, key=lambda one: one.number)

    async def add(self, secret: str, value: SecretStr) -> int:
        """Add a version and return its number. Not idempotent: the service makes another one every time."""
        from google.cloud.secretmanager_v1 import SecretPayload

        payload = SecretPayload(data=value.get_secret_value().encode())
        async with self._asking(secret, _MANAGER) as client:
            made = await client.add_secret_version(parent=self._name(secret), payload=payload)
        return int(made.name.rpartition("/")[2])

    async def disable(self, secret: str, number: int) -> None:
        """Have a version refused from now on. Whoever has read it already has it."""
        async with self._asking(secret, _MANAGER) as client:
            await client.disable_secret_version(name=f"{self._name(secret)}/versions/{number}")

    async def note(self, secret: str, head: SecretHead) -> bool:
        """Replace what is noted on a secret; False, and nothing changes, when somebody did since `head` was read."""
        from google.api_core.exceptions import Aborted, FailedPrecondition
        from google.cloud.secretmanager_v1 import Secret
        from google.protobuf.field_mask_pb2 import FieldMask  # type: ignore[import-untyped]

        wanted = Secret(
            name=self._name(secret), version_aliases=dict(head.aliases), annotations=dict(head.annotations), etag=head.etag
        )
        mask = FieldMask(paths=["version_aliases", "annotations"])
        async with self._asking(secret, _MANAGER) as client:
            try:
                await client.update_secret(secret=wanted, update_mask=mask)
            except (Aborted, FailedPrecondition):
                return False
        return True

    async def close(self) -> None:
        """Let go of the connection, if there is one."""
        if "_client" in self.__dict__:
            await self._client.transport.close()  # type: ignore[no-untyped-call]

    def _name(self, secret: str) -> str:
        return f"projects/{self.project}/secrets/{secret}"

    @asynccontextmanager
    async def _asking(self, secret: str, role: str) -> AsyncIterator["SecretManagerServiceAsyncClient"]:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                yield self._client
        except Exception as error:
            from shared.secrets.errors import translate

            raise translate(error, secret, project=self.project, member=self._member, role=role) from error

    @cached_property
    def _client(self) -> "SecretManagerServiceAsyncClient":
        from google.cloud.secretmanager_v1 import SecretManagerServiceAsyncClient

        if self._address is None:
            return SecretManagerServiceAsyncClient()
        from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
            SecretManagerServiceGrpcAsyncIOTransport,
        )
        from grpc.aio import insecure_channel  # type: ignore[import-untyped]

        return SecretManagerServiceAsyncClient(
            transport=SecretManagerServiceGrpcAsyncIOTransport(channel=insecure_channel(self._address))
        )
