"""The ring of a running process: it keeps up with its store, so that a rotation needs no restart.

It is refreshed as it is used, not in the background: an instance of a function has no CPU between two requests. So whoever is about
to verify or to sign awaits `fresh` first, which asks the store when its last answer is too old. Nothing that was not asked for
waits.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from shared.clock import Clock
from shared.errors import AgentTeamError, ConfigurationError
from shared.keys.base import KeySet, KeyStore
from shared.messages import KeyRing, KeyState
from shared.telemetry import describe_error, redact_values

_log = logging.getLogger(__name__)
AGAIN_SECONDS: Final = 10.0
"""Between two questions that were not due: forged messages must not become a storm of them, nor a store that does not answer."""


class LiveRing:
    """A ring that `make` makes of what `store` holds; `first` is what it holds now, where that is known.

    While the store does not answer, the ring stays as it was. Raises ConfigurationError or StoreUnavailable while there is none.
    """

    def __init__(self, store: KeyStore, make: Callable[[KeySet], KeyRing], clock: Clock, *, first: KeySet | None = None) -> None:
        self._store = store
        self._make = make
        self._clock = clock
        self._again_seconds = min(AGAIN_SECONDS, store.refresh_seconds)
        self._held: KeySet | None = None
        self._ring: KeyRing | None = None
        self._asked_at = clock.monotonic()
        self._due_at = self._asked_at
        self._asking = asyncio.Lock()
        if first is not None:
            self._take(first)

    @property
    def active(self) -> str:
        """The id of the key that signs."""
        return self._known.active

    @property
    def states(self) -> Mapping[str, KeyState]:
        """Every key's NAME, and what it may do."""
        return self._known.states

    def sign(self, topic: str, data: bytes) -> dict[str, str]:
        """As `KeyRing.sign`."""
        return self._known.sign(topic, data)

    def verify(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> None:
        """As `KeyRing.verify`."""
        self._known.verify(topic, data, attributes)

    def seal(self, purpose: str, data: bytes) -> bytes:
        """As `KeyRing.seal`."""
        return self._known.seal(purpose, data)

    def is_sealed(self, purpose: str, data: bytes, *, key_id: str, seal: bytes) -> bool:
        """As `KeyRing.is_sealed`."""
        return self._known.is_sealed(purpose, data, key_id=key_id, seal=seal)

    async def fresh(self) -> None:
        """Return once the ring is no older than the store allows."""
        if self._ring is None or self._clock.monotonic() >= self._due_at:
            await self._refresh()

    async def renewed(self) -> bool:
        """After a signature was refused: whether the store knows more than the ring did. It is asked at most every few seconds."""
        before = self._ring
        if self._clock.monotonic() - self._asked_at >= self._again_seconds:
            await self._refresh()
        return self._ring is not before

    @property
    def _known(self) -> KeyRing:
        if self._ring is None:
            raise ConfigurationError("the signing keys have not been read yet; await fresh() before signing or verifying")
        return self._ring

    async def _refresh(self) -> None:
        wanted_at = self._clock.monotonic()
        async with self._asking:
            if self._ring is not None and self._asked_at > wanted_at:
                return  # somebody asked while we waited for our turn
            try:
                self._take(await self._store.read())
            except AgentTeamError as error:
                if self._ring is None:
                    raise
                self._asked_at = self._clock.monotonic()
                self._due_at = self._asked_at + self._again_seconds
                _log.warning("the signing keys stay as they were", extra={"error": describe_error(error)})

    def _take(self, held: KeySet) -> None:
        if held != self._held:
            redact_values(*(key.secret.get_secret_value() for key in held.usable if key.secret is not None))
            self._ring = self._make(held)
            self._held = held
        self._asked_at = self._clock.monotonic()
        self._due_at = self._asked_at + self._store.refresh_seconds
