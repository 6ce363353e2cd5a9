"""The seam of large outputs: bytes under the hash of what they are.

Nothing is ever changed under its name, so that putting the same content again changes nothing, whoever else does it meanwhile.
"""

from collections.abc import Collection
from datetime import timedelta
from typing import Final, Protocol

INLINE_BYTES: Final = 65_536
"""A larger output is kept apart; up to here it stands where it is used."""
LARGEST_BYTES: Final = 64 * 1024 * 1024
"""Of one output."""


class OutputStore(Protocol):
    """Where the bytes are. `id` is the SHA-256 of the content in hex; whoever calls has made and will check it.

    All raise StoreUnavailable when trying again may help, ConfigurationError when the store is not as it must be.
    """

    async def put(self, id: str, data: bytes) -> None:
        """Keep `data`, durably by the return. What is there already counts as put now."""
        ...

    async def get(self, id: str) -> bytes | None:
        """What was put; None when it is not there."""
        ...

    async def stale(self, older_than: timedelta) -> list[str]:
        """What was last put longer ago. None of it where the store itself deletes what is old."""
        ...

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        """Delete those of `ids` that are stale even now, and return how many there were."""
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...
