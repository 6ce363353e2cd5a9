"""What an SQLSTATE means to whoever called: https://www.postgresql.org/docs/current/errcodes-appendix.html.

Both ways to the database meet the same codes; only the words for what to mend differ.
"""

from collections.abc import Mapping

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable

_TRANSIENT = ("08", "25006", "40", "53", "55", "57", "58", "XX")  # 25006: read only, as while failing over or when the disk is full


def error_for(code: str, name: str, *, fixes: Mapping[str, str]) -> AgentTeamError:
    """The platform's error for an SQLSTATE; `name` is what the error is called besides.

    `fixes` says of codes, or of classes of them (their first two characters), what must be mended: ConfigurationError.
    """
    message = fixes.get(code, fixes.get(code[:2]))
    if message is not None:
        return ConfigurationError(f"{message} (SQLSTATE {code})")
    if code.startswith(_TRANSIENT):
        return StoreUnavailable(f"the database cannot work now (SQLSTATE {code}, {name})")
    return Permanent(f"the database refuses the call (SQLSTATE {code}, {name})")
