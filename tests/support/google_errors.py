"""Everything that Google's clients raise, and what every translation of it keeps to."""

import inspect
from typing import Final

from google.api_core import exceptions as google
from google.auth import exceptions as auth

from shared.errors import AgentTeamError

_SECRET: Final = "what the service itself says"
NAMES: Final = [name for name, kind in inspect.getmembers(google, inspect.isclass) if issubclass(kind, Exception)]
AROUND: Final = [
    (auth.DefaultCredentialsError(_SECRET), True),  # type: ignore[no-untyped-call]
    (auth.RefreshError(_SECRET), True),  # type: ignore[no-untyped-call]
    (auth.RefreshError(_SECRET, retryable=True), False),  # type: ignore[no-untyped-call]
    (auth.TransportError(_SECRET), False),  # type: ignore[no-untyped-call]
    (TimeoutError(), False),
    (OSError(_SECRET), False),
    (RuntimeError(_SECRET), False),
]
"""What credentials and network raise, and whether it means that credentials are missing."""


def raised(name: str) -> Exception:
    """The driver's exception of this name."""
    kind: type[Exception] = getattr(google, name)
    error = kind.__new__(kind)
    Exception.__init__(error, _SECRET)
    return error


def says_one_clear_line(error: AgentTeamError, intended: type[AgentTeamError], *, where: str) -> None:
    assert type(error) is intended
    assert str(error).startswith(where)
    assert "\n" not in str(error)
    assert _SECRET not in str(error)
