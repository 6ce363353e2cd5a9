"""What a store of signing keys holds, and what may be done with it.

A key is added (it verifies), activated (it signs, and the one before it verifies on) and retired (it is refused, for good). Keys
are kept in the order in which they were added. Beside them stand the keys of the environment, `COMM_HMAC_*`: while the store
names no active key, `COMM_HMAC_ACTIVE_KEY_ID` signs.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import SecretStr

from shared.errors import Conflict, NotFound
from shared.messages import KeyRing, KeyState


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a store."""

    id: str
    """`k1`, `k2`, …: what messages name it by."""
    created_at: datetime
    secret: SecretStr | None
    """None once it is retired."""
    activated_at: datetime | None = None
    """When it last began to sign; None when it never did, or nobody noted it."""


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys of a store, the oldest first."""

    keys: tuple[Key, ...] = ()
    active: str | None = None
    """The one that signs; None while none of them does."""
    refused: tuple[str, ...] = ()
    """Ids of keys of the environment that are retired."""

    @property
    def usable(self) -> tuple[Key, ...]:
        """Those that are not retired."""
        return tuple(key for key in self.keys if key.secret is not None)

    def state(self, key: Key) -> KeyState:
        """What a key of this set may do."""
        if key.secret is None:
            return KeyState.RETIRED
        return KeyState.ACTIVE if key.id == self.active else KeyState.VERIFY

    def key(self, key_id: str) -> Key:
        """The key with this id. Raises NotFound."""
        for key in self.keys:
            if key.id == key_id.lower():
                return key
        raise NotFound(f"there is no signing key {key_id[:60]!r} in the store; agent-team keys list shows them")

    def last_signed_at(self, key: Key) -> datetime | None:
        """When the key stopped signing, as the next one began; None for one that signs now, never did, or nobody knows."""
        if key.id == self.active or key.activated_at is None:
            return None
        later = [one.activated_at for one in self.keys if one.activated_at is not None and one.activated_at > key.activated_at]
        return min(later, default=None)

    def to_activate(self, key_id: str) -> Key:
        """The key, if it may sign. Raises NotFound, and Conflict for a retired one."""
        key = self.key(key_id)
        if key.secret is None:
            raise Conflict(f"signing key {key.id} is retired, and stays so; add another one: agent-team keys add")
        return key

    def to_retire(self, key_id: str) -> Key:
        """The key, if it may be retired. Raises NotFound, and Conflict for the active one."""
        key = self.key(key_id)
        if key.id == self.active:
            raise Conflict(f"signing key {key.id} is the active one; activate another key first: agent-team keys activate ID")
        return key


class KeyStore(Protocol):
    """Where keys are kept. Every method is safe to repeat but `add`, and safe beside other processes.

    All raise ConfigurationError for a store that cannot be used and StoreUnavailable for one that cannot be used now.
    """

    refresh_seconds: float
    """How soon every process that uses its ring knows of a change."""

    async def read(self) -> KeySet:
        """All keys as they are now."""
        ...

    async def add(self) -> str:
        """Make a key that verifies, and return its id."""
        ...

    async def activate(self, key_id: str, *, now: datetime) -> None:
        """Have a key sign. Raises as `KeySet.to_activate` does."""
        ...

    async def retire(self, key_id: str) -> None:
        """Have a key refused for good. Raises as `KeySet.to_retire` does."""
        ...


@dataclass(frozen=True, slots=True)
class StaticKeys:
    """The keys of the environment: `COMM_HMAC_*`."""

    active: str
    keys: Mapping[str, str]
    default: str | None


def ring_of(static: StaticKeys, stored: KeySet) -> KeyRing:
    """The ring of the environment's keys and the store's. Raises ConfigurationError as KeyRing does."""
    own = {key.id: key.secret.get_secret_value() for key in stored.usable if key.secret is not None}
    retired = [key.id for key in stored.keys if key.secret is None]
    active = static.active if stored.active is None else stored.active
    return KeyRing(active, {**static.keys, **own}, default=static.default, retired=[*retired, *stored.refused])


def new_secret() -> SecretStr:
    """A secret for a new key: 384 random bits."""
    return SecretStr(secrets.token_urlsafe(48))
