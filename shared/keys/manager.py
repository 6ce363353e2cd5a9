"""Signing keys in Secret Manager: the secret `COMM_HMAC_KEYS`.

Each key is a version of it: version 3 is the key `k3`, its value the secret's text. An enabled version verifies, a disabled or
destroyed one is retired. The version alias `active` names the one that signs; while there is no alias the oldest enabled one
does, so that a first key can be added with gcloud alone and a second one never signs by being added. The annotation
`activated-k3` says when k3 began to sign. Alias and annotation are written in one update, which fails when somebody else was
quicker.
"""

import asyncio
from collections.abc import Iterable
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
        """All keys as they are now. Raises ConfigurationError when none of them can sign."""
        head, versions = await asyncio.gather(self._manager.head(SECRET), self._versions())
        held = _set(versions, head)
        if held.active not in {key.id for key in held.usable}:
            advice = "add a key: agent-team keys add" if not held.usable else "activate another: agent-team keys activate ID"
            raise ConfigurationError(
                f"secret {SECRET} of project {self._manager.project} has no key that signs (its alias `{_ACTIVE}` names no enabled "
                f"version); {advice}"
            )
        return held

    async def add(self) -> str:
        """Make a key that verifies, and return its id; the very first one signs."""
        return f"k{await self._manager.add(SECRET, new_secret())}"

    async def activate(self, key_id: str, *, now: datetime) -> None:
        """Have a key sign. Raises as `KeySet.to_activate` does."""
        for _ in range(_TRIES):
            head = await self._manager.head(SECRET)
            key = _set(await self._versions(), head).to_activate(key_id)
            number = int(key.id[1:])
            if head.aliases.get(_ACTIVE) == number or await self._manager.note(SECRET, _noted(head, number, now)):
                return
        raise StoreUnavailable(f"secret {SECRET} is being changed by others; try again")

    async def retire(self, key_id: str) -> None:
        """Have a key refused for good. Raises as `KeySet.to_retire` does."""
        key = (await self.read()).to_retire(key_id)
        if key.secret is not None:
            await self._manager.disable(SECRET, int(key.id[1:]))

    async def _versions(self) -> list[tuple[SecretVersion, SecretStr | None]]:
        versions = await self._manager.versions(SECRET)
        secrets = await asyncio.gather(*(self._secret(one) for one in versions))
        return list(zip(versions, secrets, strict=True))

    async def _secret(self, version: SecretVersion) -> SecretStr | None:
        return await self._manager.value(SECRET, str(version.number)) if version.enabled else None


def _set(versions: Iterable[tuple[SecretVersion, SecretStr | None]], head: SecretHead) -> KeySet:
    keys = []
    for version, secret in versions:
        noted = head.annotations.get(f"{_ACTIVATED}k{version.number}")
        activated_at = None if noted is None else datetime.fromisoformat(noted)
        keys.append(Key(f"k{version.number}", version.created_at, secret, activated_at))
    named = head.aliases.get(_ACTIVE)
    oldest = next((key.id for key in keys if key.secret is not None), None)
    return KeySet(tuple(keys), oldest if named is None else f"k{named}")


def _noted(head: SecretHead, number: int, now: datetime) -> SecretHead:
    notes = {**head.annotations, f"{_ACTIVATED}k{number}": now.isoformat()}
    old = sorted((name for name in notes if name.startswith(_ACTIVATED)), key=lambda name: int(name.removeprefix(f"{_ACTIVATED}k")))
    for name in old[:-_KEPT_NOTES]:
        del notes[name]
    return replace(head, aliases={**head.aliases, _ACTIVE: number}, annotations=notes)
