"""A Secret Manager in this process: the service's own wire format, over the library's own types."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import grpc.aio  # type: ignore[import-untyped]
from google.cloud import secretmanager_v1 as api

from shared.clock import Clock
from shared.secrets import SecretManager

PROJECT = "acme"
_SERVICE = "google.cloud.secretmanager.v1.SecretManagerService"


@dataclass
class Stored:
    """One secret. `refused` are the methods that this account may not call."""

    values: list[bytes] = field(default_factory=list)
    disabled: set[int] = field(default_factory=set)
    created: list[datetime] = field(default_factory=list)
    aliases: dict[str, int] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    changes: int = 0
    refused: set[str] = field(default_factory=set)


class Service:
    """What it holds, and how often each method was called."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.secrets: dict[str, Stored] = {}
        self.calls: Counter[str] = Counter()
        self.down = False
        self.address = ""
        self.before: Callable[[str], None] = lambda _method: None
        """Called before each method: where tests let somebody else be quicker."""

    def put(self, name: str, *values: str) -> Stored:
        """A secret with these versions."""
        stored = self.secrets.setdefault(name, Stored())
        for value in values:
            stored.values.append(value.encode())
            stored.created.append(self.clock.now())
        return stored

    def manager(self, clock: Clock | None = None) -> SecretManager:
        """A client of it."""
        member = "serviceAccount:fn-writer@acme.iam.gserviceaccount.com"
        return SecretManager(PROJECT, self.clock if clock is None else clock, member=member, address=self.address)

    def access_secret_version(self, request: Any) -> Any:
        name, version = self._split(request.name)
        stored = self.secrets[name]
        number = len(stored.values) if version == "latest" else int(version)
        if not 0 < number <= len(stored.values):
            raise KeyError(version)
        if number in stored.disabled:
            raise _Refused(grpc.StatusCode.FAILED_PRECONDITION)
        return api.AccessSecretVersionResponse(name=self._version(name, number), payload={"data": stored.values[number - 1]})

    def get_secret(self, request: Any) -> Any:
        name, _ = self._split(request.name)
        stored = self.secrets[name]
        return api.Secret(
            name=request.name, version_aliases=stored.aliases, annotations=stored.annotations, etag=f'"{stored.changes}"'
        )

    def list_secret_versions(self, request: Any) -> Any:
        name, _ = self._split(request.parent)
        stored = self.secrets[name]
        states = api.SecretVersion.State
        versions = [
            api.SecretVersion(
                name=self._version(name, number),
                create_time=created,
                state=states.DISABLED if number in stored.disabled else states.ENABLED,
            )
            for number, created in enumerate(stored.created, start=1)
        ]
        return api.ListSecretVersionsResponse(versions=list(reversed(versions)))  # the newest first, as the service does

    def add_secret_version(self, request: Any) -> Any:
        name, _ = self._split(request.parent)
        self.secrets[name]
        self.put(name, request.payload.data.decode())
        return api.SecretVersion(name=self._version(name, len(self.secrets[name].values)))

    def disable_secret_version(self, request: Any) -> Any:
        name, version = self._split(request.name)
        self.secrets[name].disabled.add(int(version))
        return api.SecretVersion(name=request.name, state=api.SecretVersion.State.DISABLED)

    def update_secret(self, request: Any) -> Any:
        name, _ = self._split(request.secret.name)
        stored = self.secrets[name]
        if request.secret.etag != f'"{stored.changes}"':
            raise _Refused(grpc.StatusCode.ABORTED)
        assert set(request.update_mask.paths) == {"version_aliases", "annotations"}
        stored.aliases, stored.annotations = dict(request.secret.version_aliases), dict(request.secret.annotations)
        stored.changes += 1
        return request.secret

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        parts = path.split("/")
        assert parts[:3] == ["projects", PROJECT, "secrets"], path
        return parts[3], parts[5] if len(parts) > 4 else ""

    @staticmethod
    def _version(name: str, number: int) -> str:
        return f"projects/1234/secrets/{name}/versions/{number}"


class _Refused(Exception):
    pass


_METHODS = {
    "AccessSecretVersion": api.AccessSecretVersionRequest,
    "GetSecret": api.GetSecretRequest,
    "ListSecretVersions": api.ListSecretVersionsRequest,
    "AddSecretVersion": api.AddSecretVersionRequest,
    "DisableSecretVersion": api.DisableSecretVersionRequest,
    "UpdateSecret": api.UpdateSecretRequest,
}


def _handler(service: Service, method: str, request_type: Any) -> Any:
    name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in method)[1:]

    async def handle(request: Any, context: Any) -> Any:
        service.calls[name] += 1
        service.before(name)
        if service.down:
            await context.abort(grpc.StatusCode.INTERNAL)
        secret = (getattr(request, "name", "") or getattr(request, "parent", "") or request.secret.name).split("/")[3]
        if secret in service.secrets and name in service.secrets[secret].refused:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED)
        try:
            return getattr(service, name)(request)
        except KeyError:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        except _Refused as refusal:
            await context.abort(refusal.args[0])

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request_type.deserialize,
        response_serializer=lambda message: type(message).serialize(message),
    )


@asynccontextmanager
async def serving(clock: Clock) -> AsyncIterator[Service]:
    """A service that answers at its `address`."""
    service = Service(clock)
    server = grpc.aio.server()
    handlers = {method: _handler(service, method, request_type) for method, request_type in _METHODS.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    service.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        yield service
    finally:
        await server.stop(None)
