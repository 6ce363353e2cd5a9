r"""Who may speak on the bus: HMAC keys, their rotation, and the signatures that they make.

A signature covers the exact bytes sent, the topic that they are for and the id of the key, so an altered message fails, and so does
one that is replayed to another topic or under another id. In a message's attributes:

    content-type      application/cloudevents+json
    hmac-key-id       the id of the key
    hmac-signature    v1,<base64 of HMAC-SHA256(secret, "v1\n" + key id + "\n" + topic + "\n" + data)>

Ids and topics are 1 to 255 of `[A-Za-z0-9._-]`: without a line break in them, no two texts to be signed are the same.

What else is signed with the keys (`seal`) begins with other bytes, so that neither can be taken for the other.

**Which key an id names.** Write the id in capitals, with `_` for `.` and `-`, and drop words from its front until the rest is the
NAME of a key: `key-v2`, `prod-v2` and `v2` all name `COMM_HMAC_KEY_V2`, and the longest NAME wins. An id that names no key is the
default secret, as is the id `default`. Retired keys keep their NAMEs, so an id never falls from a retired key to another one.

**Rotation** is three new rings, a while apart: with one more key (it verifies), with its id as the active one (it signs), and with
the old key retired (it is refused). `shared.keys` makes them.
"""

import hmac
import re
from binascii import b2a_base64
from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Protocol

from pydantic import SecretStr

from shared.errors import ConfigurationError, EnvelopeRejected

CONTENT_TYPE = "application/cloudevents+json"
MIN_SECRET_LENGTH = 32
"""Characters; for bytes, bytes."""

Secret = SecretStr | str | bytes

_VERSION = "v1"
_SEALED = "seal-v1"
_DEFAULT = "DEFAULT"
_DEFAULT_VARIABLE = "COMM_HMAC_DEFAULT_SECRET"
_ACTIVE_VARIABLE = "COMM_HMAC_ACTIVE_KEY_ID"
_ALLOWED = "1 to 255 letters, digits, dots, underscores and hyphens"
_is_token = re.compile(r"[A-Za-z0-9._-]{1,255}").fullmatch
_is_name = re.compile(r"[A-Z0-9][A-Z0-9_]{0,254}").fullmatch
_SEPARATORS = str.maketrans(".-", "__")


class KeyState(StrEnum):
    """What a key may do."""

    VERIFY = "verify"
    """Its signatures are accepted."""
    ACTIVE = "active"
    """It signs, and its signatures are accepted."""
    RETIRED = "retired"
    """Refused, under every id that names it."""


class Ring(Protocol):
    """What signs and verifies. One that rotates while it is used is asked to keep up: `shared.keys` has it."""

    def sign(self, topic: str, data: bytes) -> dict[str, str]:
        """As `KeyRing.sign`."""
        ...

    def verify(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> None:
        """As `KeyRing.verify`."""
        ...

    @property
    def active(self) -> str:
        """The id of the key that signs."""
        ...

    def seal(self, purpose: str, data: bytes) -> bytes:
        """As `KeyRing.seal`."""
        ...

    def is_sealed(self, purpose: str, data: bytes, *, key_id: str, seal: bytes) -> bool:
        """As `KeyRing.is_sealed`."""
        ...

    async def fresh(self) -> None:
        """Return once its keys are as new as they have to be."""
        ...

    async def renewed(self) -> bool:
        """After a signature was refused: whether there are other keys now, with which to try again."""
        ...


class KeyRing:
    """The keys that sign and verify. Immutable: a rotation gives a new ring. It shows NAMEs and states, never a secret.

    `active` is the id that signs, `keys` maps NAMEs (as in `COMM_HMAC_KEY_<NAME>`, in any case) to secrets, `default` is the secret
    of every id that names no key, and `retired` lists the NAMEs or ids to refuse, whether or not their secrets are still given.

    Raises ConfigurationError, naming the variable, for a secret under 32 characters, a NAME that is not one or is given twice, a
    retired secret that is trusted under another NAME, and an active id that names no usable key.
    """

    __slots__ = ("_active", "_active_name", "_macs", "_names", "_retired")

    _active: str
    _active_name: str
    # NAME → an HMAC that has taken in its secret and nothing else: copying it is quicker than keying a new one for every message.
    _macs: Mapping[str, hmac.HMAC]
    _retired: frozenset[str]
    # All of them, retired ones too.
    _names: frozenset[str]

    def __init__(
        self, active: str, keys: Mapping[str, Secret], *, default: Secret | None = None, retired: Collection[str] = ()
    ) -> None:
        macs: dict[str, hmac.HMAC] = {}
        for given, secret in keys.items():
            name = _own_name(given)
            if name in macs:
                raise ConfigurationError(f"{_variable(name)} is given twice, in different spellings; keep one")
            macs[name] = _keyed(name, secret)
        if default is not None:
            macs[_DEFAULT] = _keyed(_DEFAULT, default)
        # One whose secret is gone is refused by its own spelling.
        refused = frozenset(_named(key_id, macs.keys()) or _normalised(key_id) for key_id in retired)
        self._active, self._macs, self._retired = active, _without(macs, refused), refused
        self._names = refused.union(self._macs)
        self._active_name = self._signer()

    @property
    def active(self) -> str:
        """The id of the key that signs."""
        return self._active

    @property
    def states(self) -> Mapping[str, KeyState]:
        """Every key's NAME, and what it may do; the default secret is called `DEFAULT`."""
        states = {name: KeyState.ACTIVE if name == self._active_name else KeyState.VERIFY for name in self._macs}
        return dict(sorted((states | dict.fromkeys(self._retired, KeyState.RETIRED)).items()))

    def sign(self, topic: str, data: bytes) -> dict[str, str]:
        """The attributes with which `data` goes to `topic`. Raises ConfigurationError for a topic that can't be signed."""
        if _is_token(topic) is None:
            raise ConfigurationError(f"topic {_shown(topic)} cannot be signed for; name topics with {_ALLOWED}")
        return {
            "content-type": CONTENT_TYPE,
            "hmac-key-id": self._active,
            "hmac-signature": _signature(self._macs[self._active_name], self._active, topic, data),
        }

    def verify(self, topic: str, data: bytes, attributes: Mapping[str, str]) -> None:
        """Return if a key of this ring signed `data` for `topic`.

        Raises EnvelopeRejected with reason `key` when the id is missing, malformed, unknown or retired, and `signature` otherwise.
        Takes the same time wherever a wrong signature differs.
        """
        key_id = attributes.get("hmac-key-id")
        if not isinstance(key_id, str) or _is_token(key_id) is None:
            raise _rejected("key", "the message has no usable hmac-key-id; publish it with `agent-team publish` or through the API")
        name = self._active_name if key_id == self._active else _named(key_id, self._names) or _DEFAULT
        mac = self._macs.get(name)
        if mac is None:
            if name in self._retired:
                raise _rejected("key", f"key id {key_id!r} is retired; sign with the active key")
            raise _rejected("key", f"key id {key_id!r} is unknown; set COMM_HMAC_KEY_<NAME> here too, or sign with a key that is")
        given = attributes.get("hmac-signature")
        # compare_digest takes text only if it is ASCII.
        if not isinstance(given, str) or not given.isascii() or _is_token(topic) is None:
            raise _rejected("signature", f"the message for topic {_shown(topic)} has no usable hmac-signature; sign it")
        if not hmac.compare_digest(_signature(mac, key_id, topic, data), given):
            raise _rejected(
                "signature",
                f"the message was altered, is for another topic than {topic!r}, or was signed with another secret than "
                f"{_variable(name)} here; compare the secrets of sender and receiver",
            )

    def seal(self, purpose: str, data: bytes) -> bytes:
        """The active key's MAC of `data` for `purpose`, which has no line break. It is good for nothing else, messages included."""
        return _seal(self._macs[self._active_name], purpose, self._active, data)

    def is_sealed(self, purpose: str, data: bytes, *, key_id: str, seal: bytes) -> bool:
        """Whether the key that `key_id` names sealed `data` for `purpose`, and is trusted still. In constant time, as `verify`."""
        if _is_token(key_id) is None:
            return False
        mac = self._macs.get(_named(key_id, self._names) or _DEFAULT)
        return mac is not None and hmac.compare_digest(_seal(mac, purpose, key_id, data), seal)

    async def fresh(self) -> None:
        """It never changes."""

    async def renewed(self) -> bool:
        """It never changes."""
        return False

    def __repr__(self) -> str:
        keys = ", ".join(f"{name}: {state}" for name, state in self.states.items())
        return f"KeyRing(active={self._active!r}, {keys})"

    def _signer(self) -> str:
        """The NAME of the key that signs."""
        active = self._active
        if _is_token(active) is None:
            raise ConfigurationError(f"{_ACTIVE_VARIABLE} is {_shown(active)}; expected {_ALLOWED}")
        name = _named(active, self._names) or _DEFAULT
        if name in self._retired:
            raise ConfigurationError(f"{_ACTIVE_VARIABLE} is {active!r}, which names a retired key; name one that is not")
        if name not in self._macs:
            raise ConfigurationError(f"{_ACTIVE_VARIABLE} is {active!r}, which names no key; set {_DEFAULT_VARIABLE} or name a key")
        return name


def _named(key_id: str, names: Collection[str]) -> str | None:
    """The longest of `names` with which `key_id` ends."""
    # Not remembered per id: senders choose ids, and could make such a memory grow without end.
    name, more = _normalised(key_id), "_"
    while more:
        if name in names:
            return name
        _, more, name = name.partition("_")
    return None


def _normalised(text: str) -> str:
    return text.upper().translate(_SEPARATORS)


def _own_name(text: str) -> str:
    name = _normalised(text)
    if _is_name(name) is None:
        raise ConfigurationError(f"COMM_HMAC_KEY_<NAME> has the NAME {_shown(text)}; expected letters, digits and underscores")
    if name == _DEFAULT:
        raise ConfigurationError(f"COMM_HMAC_KEY_{_DEFAULT} is not a key of its own; set {_DEFAULT_VARIABLE}")
    return name


def _without(macs: Mapping[str, hmac.HMAC], names: Collection[str]) -> dict[str, hmac.HMAC]:
    """The other keys. A dropped secret that is also one of theirs would stay trusted, so that is refused."""
    dropped = {macs[name].digest(): name for name in names if name in macs}
    kept = {name: mac for name, mac in macs.items() if name not in names}
    for name, mac in kept.items():
        twin = dropped.get(mac.digest())
        if twin is not None:
            raise ConfigurationError(f"{_variable(name)} holds the secret of {_variable(twin)}, which retires; change it first")
    return kept


def _variable(name: str) -> str:
    return _DEFAULT_VARIABLE if name == _DEFAULT else f"COMM_HMAC_KEY_{name}"


def _shown(text: str) -> str:
    return repr(text[:60])


def _keyed(name: str, secret: Secret) -> hmac.HMAC:
    text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
    if len(text) < MIN_SECRET_LENGTH:
        raise ConfigurationError(
            f"{_variable(name)} is shorter than {MIN_SECRET_LENGTH} characters; make one with `openssl rand -base64 48`"
        )
    # An environment may hold bytes that are no text; encoding them strictly would raise an error that carries the secret.
    return hmac.new(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"), digestmod="sha256")


def _signature(mac: hmac.HMAC, key_id: str, topic: str, data: bytes) -> str:
    running = mac.copy()
    running.update(f"{_VERSION}\n{key_id}\n{topic}\n".encode())
    running.update(data)
    return f"{_VERSION},{b2a_base64(running.digest(), newline=False).decode()}"


def _seal(mac: hmac.HMAC, purpose: str, key_id: str, data: bytes) -> bytes:
    running = mac.copy()
    running.update(f"{_SEALED}\n{purpose}\n{key_id}\n".encode())
    running.update(data)
    return running.digest()


def _rejected(reason: str, message: str) -> EnvelopeRejected:
    return EnvelopeRejected(reason, f"HMAC verification failed: {message}")
