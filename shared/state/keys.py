"""Keys of the API: made here, shown once, and kept as their SHA-256.

A key is `atk_<id>_<secret>`. Its secret is 256 random bits: nobody can try them through, so that a fast hash keeps it as safe as a
slow one, and costs no request the time that a password's takes (NIST SP 800-63B, look-up secrets of 112 bits and more).
"""

import hashlib
import re
import secrets
import string
from typing import Any, Final, Literal

from shared.clock import Clock
from shared.errors import Conflict, InputError, NotFound
from shared.state.base import Caller

Scope = Literal["read", "submit", "admin"]
SCOPES: Final[tuple[Scope, ...]] = ("read", "submit", "admin")
"""What a caller may do; each includes those before it."""
PREFIX: Final = "atk_"
_ID_LETTERS: Final = string.ascii_lowercase + string.digits
_SECRET_BYTES: Final = 32
_KEY: Final = re.compile(r"atk_([a-z0-9]{12})_[A-Za-z0-9_-]{43}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


def new_key() -> str:
    """A key that nobody has."""
    id = "".join(secrets.choice(_ID_LETTERS) for _ in range(12))
    return f"{PREFIX}{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"


def id_of(key: str) -> str | None:
    """The id in a key; None when it has not the form of one."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeys:
    """The calls about keys; for errors see `Caller.call`. `clock` replaces the database's time in tests."""

    def __init__(self, caller: Caller, clock: Clock | None) -> None:
        self._caller = caller
        self._clock = clock

    async def add(self, name: str, scope: Scope) -> str:
        """Make a key and return it: it cannot be read again. Raises InputError for a wrong name, Conflict for one in use."""
        if _NAME.fullmatch(name) is None:
            raise InputError(f"{name[:60]!r} cannot be a key's name; give up to 64 of letters, digits and . _ - @")
        key = new_key()
        arguments = {"id": id_of(key), "name": name, "hash": digest(key), "scope": scope, **self._moment()}
        if not await self._caller.call("add_api_key", arguments):
            raise Conflict(f"there is a key {name} already; give another name, or revoke that one first")
        return key

    async def listed(self) -> list[dict[str, Any]]:
        """Every key by name, revoked ones too: `{id, name, scope, created_at, last_used_at, revoked_at}`."""
        found: list[dict[str, Any]] = await self._caller.call("list_api_keys", {})
        return found

    async def revoke(self, name: str) -> None:
        """Take a key's rights away for good; its name is free again. Raises NotFound."""
        if not await self._caller.call("revoke_api_key", {"name": name, **self._moment()}):
            raise NotFound(f"there is no key {name[:64]!r} in use; look for its name in the list of all")

    async def find(self, id: str) -> dict[str, Any] | None:
        """The key of this id, `{id, name, hash, scope}`; None when there is none in use."""
        found: dict[str, Any] | None = await self._caller.call("find_api_key", {"id": id})
        return found

    async def note_use(self, id: str) -> None:
        """Note that a key was used; it is written at most once a minute."""
        await self._caller.call("use_api_key", {"id": id, **self._moment()})

    async def exist(self) -> bool:
        """Whether a key was ever added, one that was revoked since included."""
        return bool(await self._caller.call("has_api_keys", {}))

    def _moment(self) -> dict[str, Any]:
        return {} if self._clock is None else {"moment": self._clock.now()}
