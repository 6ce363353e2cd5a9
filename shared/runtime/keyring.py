"""Settings → the keys that sign: the environment's, and beside them those of a store that rotate while the process runs."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from shared.clock import Clock
from shared.config import Settings
from shared.errors import ConfigurationError
from shared.keys import FileKeyStore, KeyStore, LiveRing, StaticKeys, ring_of
from shared.telemetry import redact_values


def open_ring(settings: Settings, store: KeyStore, clock: Clock) -> LiveRing:
    """The ring of the settings and `store`. One that a file holds is read at once; others by the first `fresh`.

    Where keys are kept in a file a secret that is not given is made, and kept in AGENT_TEAM_HOME.
    """
    given = settings.comm_hmac_default_secret
    default = None if given is None else given.get_secret_value()
    local = isinstance(store, FileKeyStore)
    if default is None and local:
        default = local_secret(settings.agent_team_home, "hmac-secret", secrets.token_urlsafe(48))
        redact_values(default)
    keys = {name: secret.get_secret_value() for name, secret in settings.comm_hmac_keys.items()}
    static = StaticKeys(settings.comm_hmac_active_key_id, keys, default)
    return LiveRing(
        store, lambda held: ring_of(static, held), clock, first=store.load() if isinstance(store, FileKeyStore) else None
    )


def local_secret(home: Path, name: str, new: str) -> str:
    """A secret of this machine's platform, which becomes `new` on first use and is readable by its owner alone."""
    file = home / name
    try:
        home.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            # Written aside and then linked: nobody ever sees half a secret, and of two that make one the first wins.
            with tempfile.NamedTemporaryFile("w", dir=home, encoding="ascii") as aside, suppress(FileExistsError):
                aside.write(new)
                aside.flush()
                os.link(aside.name, file)
        return file.read_text(encoding="ascii")
    except OSError as error:
        raise ConfigurationError(
            f"{home} cannot be written ({error.strerror}); make it writable or set AGENT_TEAM_HOME to another folder"
        ) from error
