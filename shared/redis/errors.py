"""What goes wrong with Redis, in the platform's words: one clear error each, with the server's address and never its password."""

import re
from typing import Final

from redis import exceptions as driver

from shared.errors import AgentTeamError, BusUnavailable, ConfigurationError, StoreUnavailable

_Kind = type[ConfigurationError] | type[StoreUnavailable]
"""StoreUnavailable stands for whatever the server is to its user."""

_FORBIDDEN: Final = (
    ConfigurationError,
    "Redis at {where} does not allow REDIS_URL's user what the platform does; grant +@read +@write +@scripting +time ~agent-team:*",
)
_FULL: Final = (StoreUnavailable, "Redis at {where} is full; raise its maxmemory")
_REPLICA: Final = (
    StoreUnavailable,
    "Redis at {where} is a read-only replica; REDIS_URL must name the primary, unless a failover is going on",
)
_WITHOUT_DISK: Final = (
    StoreUnavailable,
    "Redis at {where} cannot write to its disk and takes no changes; look into the server's log",
)

_BY_CODE: Final[dict[str, tuple[_Kind, str]]] = {
    "NOPERM": _FORBIDDEN,
    "OOM": _FULL,
    "READONLY": _REPLICA,
    "MISCONF": _WITHOUT_DISK,
}
"""Answers by their first word, which may come from within a script."""

_BY_CLASS: Final[tuple[tuple[type[Exception], tuple[_Kind, str]], ...]] = (
    *(
        (kind, (ConfigurationError, "Redis at {where} refuses REDIS_URL's user or password; correct it"))
        for kind in (
            driver.AuthenticationError,
            driver.AuthenticationWrongNumberOfArgsError,
            driver.AuthorizationError,
            driver.ExternalAuthProviderError,
        )
    ),
    (driver.NoPermissionError, _FORBIDDEN),
    (driver.InvalidResponse, (ConfigurationError, "what answers at {where} is not Redis; correct REDIS_URL")),
    (driver.OutOfMemoryError, _FULL),
    (driver.ReadOnlyError, _REPLICA),
    (driver.BusyLoadingError, (StoreUnavailable, "Redis at {where} is still loading its data")),
    *(
        (kind, (StoreUnavailable, "the Redis Cluster at {where} cannot answer now ({name})"))
        for kind in (driver.ClusterError, driver.RedisClusterException, driver.AskError, driver.TryAgainError)
    ),
    *((kind, (StoreUnavailable, "Redis at {where} does not answer in time")) for kind in (driver.TimeoutError, TimeoutError)),
    *(
        (kind, (StoreUnavailable, "Redis at {where} cannot be reached ({name}); is it running, and is REDIS_URL right?"))
        for kind in (driver.ConnectionError, OSError)
    ),
    (driver.ResponseError, (StoreUnavailable, "Redis at {where} refuses a call ({name})")),
    (Exception, (StoreUnavailable, "a call of Redis at {where} failed ({name})")),
)
"""The first class that fits decides."""

_IN_A_SCRIPT: Final = re.compile(r"@user_script: ?\d+: -?([A-Z]{3,16}) ")
"""Before Redis 7 a script's error quotes the error of the command inside it."""
_NOT_ALLOWED_IN_A_SCRIPT: Final = "can't run this command"


def translate(
    error: Exception, where: str, *, unavailable: type[StoreUnavailable] | type[BusUnavailable] = StoreUnavailable
) -> AgentTeamError:
    """The platform's error for one of redis-py's or the network's. `where` is the server's address, fit to be shown.

    `unavailable` is what a transient error becomes. The message holds nothing of the driver's, which quotes commands.
    """
    if isinstance(error, AgentTeamError):
        return error
    name = type(error).__name__
    decided = _by_code(error) if isinstance(error, driver.ResponseError) else None
    kind, message = decided or next(decided for known, decided in _BY_CLASS if isinstance(error, known))
    text = message.format(where=where, name=name)
    return unavailable(text) if kind is StoreUnavailable else kind(text)


def _by_code(error: driver.ResponseError) -> tuple[_Kind, str] | None:
    text = str(error)
    inside = _IN_A_SCRIPT.search(text)
    code = inside[1] if inside else text.partition(" ")[0]
    return _FORBIDDEN if _NOT_ALLOWED_IN_A_SCRIPT in text else _BY_CODE.get(code)
