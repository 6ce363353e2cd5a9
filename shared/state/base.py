"""The state's seam: SQL functions called by name, over a connection or over HTTP alike."""

from collections.abc import Mapping
from typing import Any, Protocol

Event = dict[str, Any]
"""What `advance` is given: `{"type": "step.completed", "workflow": …, …}`."""
Command = dict[str, Any]
"""What `advance` returns: `{"type": "dispatch", "cause": <index of the event>, …}`."""


class Caller(Protocol):
    """One way to call a SQL function."""

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        """Call `function` with named arguments; JSON in, JSON out, one transaction, one round trip.

        Raises StoreUnavailable when trying again may help, ConfigurationError when the database is not as it must be (password,
        name, schema not migrated), Permanent when the function refuses the arguments.
        """
        ...

    async def close(self) -> None:
        """Free what is held."""
        ...
