"""Signing keys in Secret Manager: the secret `COMM_HMAC_KEYS`.

Each key is a version of it: version 3 is the key `k3`, its value the secret's text. An enabled version verifies, a disabled or
destroyed one is retired. The version alias `active` names the one that signs; while there is no alias the oldest enabled one does, so
that a first key can be added with gcloud alone and a second one never signs by being added. The annotation `activated-k3` says
when k3 began to sign. Alias and annotation are written in one update, which fails when somebody else was quicker.
"""

import asyncio
from dataclasses import replace
from datetime import datetime
from typing import Final

from pydantic import SecretStr

from shared.errors import ConfigurationError, StoreUnavailable
from shared.keys.base import Key, KeySet, new_secret
from shared.secrets import SecretHead, SecretManager, SecretVersion

SECRET: Final = "COMM_HMAC_KEYS"
_ACTIVE: Final = "active"
_ACTIVATED: Final = "activated-"
_TRIES: Final = 5
_KEPT_NOTES: Final = 20
"""Annotations of a secret may take 16 KiB in all."""


class SecretManagerKeyStore:
    """The keys of a project. A process needs accessor and viewer on the secret; changing keys takes more (infra/secrets.tf)."""

    refresh_seconds = 300.0
    """A read takes two calls, and one more for every new key. Settings and tests may say otherwise."""

    def __init__(self, manager: SecretManager) -> None:
        self._manager = manager

    async def read(self) -> KeySet:
        """All keys as they are now. Raises ConfigurationError when there is none."""
        held = await self._held()
        if held.active is None:
            raise ConfigurationError(
                f"secret {SECRET} of project {self._manager.project} has no enabled version, so nothing can be signed; "
                "add a key: agent-team keys add"
            )
        return held

    async def read_any(self) -> KeySet:
        """As `read`, but a secret without a key is none."""
        return await self._held()

    async def add(self) -> str:
        """Make a key that verifies, and return its id; the very first one signs."""
        return f"k{await self._manager.add(SECRET, new_secret())}"

    async def activate(self, key_id: str, *, now: datetime) -> None:
        """Have a key sign. Raises as `KeySet.to_activate` does."""
        for _ in range(_TRIES):
            head = await self._manager.head(SECRET)
            held = await self._held(head)
            key = held.to_activate(key_id)
            number = int(key.id[1:])
            if head.aliases.get(_ACTIVE) == number:
                return
            if await self._manager.note(SECRET, _noted(head, number, now)):
                return
        raise StoreUnavailable(f"secret {SECRET} is being changed by others; try again")

    async def retire(self, key_id: str) -> None:
        """Have a key refused for good. Raises as `KeySet.to_retire` does."""
        key = (await self._held()).to_retire(key_id)
        if key.secret is not None:
            await self._manager.disable(SECRET, int(key.id[1:]))

    async def _held(self, head: SecretHead | None = None) -> KeySet:
        if head is None:
            head = await self._manager.head(SECRET)
        versions = await self._manager.versions(SECRET)
        secrets = await asyncio.gather(*(self._secret(one) for one in versions))
        keys = tuple(_key(one, secret, head) for one, secret in zip(versions, secrets, strict=True))
        named = head.aliases.get(_ACTIVE)
        usable = [key.id for key in keys if key.secret is not None]
        if named is None:
            return KeySet(keys, usable[0] if usable else None)
        if f"k{named}" not in usable:
            raise ConfigurationError(
                f"secret {SECRET}: its alias `{_ACTIVE}` names version {named}, which is not enabled; "
                f"enable it, or activate another key: agent-team keys activate ID"
            )
        return KeySet(keys, f"k{named}")

    async def _secret(self, version: SecretVersion) -> SecretStr | None:
        return await self._manager.value(SECRET, str(version.number)) if version.enabled else None


def _key(version: SecretVersion, secret: SecretStr | None, head: SecretHead) -> Key:
    noted = head.annotations.get(f"{_ACTIVATED}k{version.number}")
    return Key(f"k{version.number}", version.created_at, secret, None if noted is None else datetime.fromisoformat(noted))


def _noted(head: SecretHead, number: int, now: datetime) -> SecretHead:
    notes = {**head.annotations, f"{_ACTIVATED}k{number}": now.isoformat()}
    old = sorted((name for name in notes if name.startswith(_ACTIVATED)), key=lambda name: int(name.removeprefix(f"{_ACTIVATED}k")))
    for name in old[:-_KEPT_NOTES]:
        del notes[name]
    return replace(head, aliases={**head.aliases, _ACTIVE: number}, annotations=notes)
