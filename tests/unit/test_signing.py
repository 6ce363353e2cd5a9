import base64
import hashlib
import hmac
import traceback
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from shared.errors import ConfigurationError, EnvelopeRejected
from shared.messages import CONTENT_TYPE, KeyRing, KeyState

DEFAULT, FIRST, SECOND = (f"{word}-secret-{'0123456789' * 4}" for word in ("default", "first", "second"))
TOPIC = "agent-planner"
DATA = b'{"specversion":"1.0"}'
TOKEN = st.text("abcXYZ019._-", min_size=1, max_size=40)


def a_ring(active: str = "prod-v1", *, retired: Collection[str] = ()) -> KeyRing:
    return KeyRing(active, {"V1": FIRST, "V2": SECOND}, default=DEFAULT, retired=retired)


def signed(secret: str, key_id: str, topic: str = TOPIC, data: bytes = DATA) -> dict[str, str]:
    """The contract, written once more."""
    text = b"v1\n" + key_id.encode() + b"\n" + topic.encode() + b"\n" + data
    digest = hmac.new(secret.encode(), text, hashlib.sha256).digest()
    return {"hmac-key-id": key_id, "hmac-signature": f"v1,{base64.b64encode(digest).decode()}"}


def rejection(ring: KeyRing, topic: str, data: bytes, attributes: dict[str, str]) -> EnvelopeRejected:
    with pytest.raises(EnvelopeRejected, match=r"^HMAC verification failed: ") as caught:
        ring.verify(topic, data, attributes)
    return caught.value


def test_a_signature_is_what_the_contract_says() -> None:
    assert a_ring().sign(TOPIC, DATA) == {"content-type": CONTENT_TYPE, **signed(FIRST, "prod-v1")}


@given(topic=TOKEN, data=st.binary(max_size=300))
def test_what_a_ring_signs_it_verifies(topic: str, data: bytes) -> None:
    a_ring().verify(topic, data, a_ring().sign(topic, data))


@pytest.mark.parametrize("key_id", ["v2", "key-v2", "prod-v2", "PROD-V2", "eu.prod_v2", "V2"])
def test_different_ids_name_the_same_key(key_id: str) -> None:
    a_ring().verify(TOPIC, DATA, signed(SECOND, key_id))
    assert a_ring(key_id).sign(TOPIC, DATA)["hmac-signature"] == signed(SECOND, key_id)["hmac-signature"]


@pytest.mark.parametrize("key_id", ["default", "prod-v3", "v2-", "prodv2", "v2.old", "-", "9"])
def test_an_id_that_names_no_key_is_the_default_secret(key_id: str) -> None:
    a_ring().verify(TOPIC, DATA, signed(DEFAULT, key_id))


def test_the_longest_name_wins() -> None:
    ring = KeyRing("v2", {"V2": FIRST, "PROD_V2": SECOND})
    ring.verify(TOPIC, DATA, signed(SECOND, "prod-v2"))
    ring.verify(TOPIC, DATA, signed(SECOND, "eu-prod-v2"))
    ring.verify(TOPIC, DATA, signed(FIRST, "test-v2"))


def test_a_refusal_says_whether_the_key_is_retired_or_unknown() -> None:
    ring = KeyRing("v2", {"V2": SECOND}, retired=("V1",))
    assert "key id 'prod-v1' is retired" in str(rejection(ring, TOPIC, DATA, signed(FIRST, "prod-v1")))
    assert "key id 'prod-v3' is unknown" in str(rejection(ring, TOPIC, DATA, signed(FIRST, "prod-v3")))


def test_without_a_default_secret_an_id_that_names_no_key_is_refused() -> None:
    ring = KeyRing("v1", {"V1": FIRST})
    assert rejection(ring, TOPIC, DATA, signed(FIRST, "v3")).reason == "key"


@pytest.mark.parametrize("key_id", ["", "v 1", "v1\n", "ключ", "v" * 256])
def test_a_missing_or_malformed_key_id_is_refused(key_id: str) -> None:
    assert rejection(a_ring(), TOPIC, DATA, signed(FIRST, key_id)).reason == "key"
    assert rejection(a_ring(), TOPIC, DATA, {}).reason == "key"


def _no_padding(signature: str) -> str:
    return signature.rstrip("=")


def _other_last_bits(signature: str) -> str:
    # 32 bytes leave two unused bits in the last letter: a lenient decoder takes four letters for one.
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return f"{signature[:-2]}{alphabet[alphabet.index(signature[-2]) ^ 1]}="


@pytest.mark.parametrize(
    "change",
    [
        _no_padding,
        _other_last_bits,
        lambda signature: "",
        lambda signature: f"{signature} ",
        lambda signature: f"{signature}\n",
        lambda signature: signature.removeprefix("v1,"),
        lambda signature: signature.replace("v1,", "v2,"),
        lambda signature: f"v1,{base64.b64decode(signature[3:]).hex()}",
        lambda signature: f"{signature[:-1]}é",
        lambda signature: f"{signature},{signature}",
    ],
)
def test_a_signature_has_one_spelling(change: Callable[[str], str]) -> None:
    attributes = signed(FIRST, "v1")
    attributes["hmac-signature"] = change(attributes["hmac-signature"])
    assert rejection(a_ring(), TOPIC, DATA, attributes).reason == "signature"


def test_a_missing_signature_is_refused() -> None:
    assert rejection(a_ring(), TOPIC, DATA, {"hmac-key-id": "v1"}).reason == "signature"


def test_a_message_for_another_topic_is_refused() -> None:
    assert rejection(a_ring(), "agent-judge", DATA, a_ring().sign(TOPIC, DATA)).reason == "signature"


def test_a_signature_is_bound_to_the_id_of_its_key() -> None:
    attributes = a_ring("prod-v1").sign(TOPIC, DATA) | {"hmac-key-id": "v1"}
    assert rejection(a_ring(), TOPIC, DATA, attributes).reason == "signature"


def test_what_is_signed_cannot_be_cut_in_another_place() -> None:
    attributes = a_ring().sign("topic", b"more\ndata")
    assert rejection(a_ring(), "topic\nmore", b"data", attributes).reason == "signature"


@given(
    part=st.sampled_from(["data", "topic", "hmac-key-id", "hmac-signature"]),
    position=st.integers(0, 10_000),
    flip=st.integers(1, 255),
)
def test_changing_any_single_byte_makes_verification_fail(part: str, position: int, flip: int) -> None:
    parts = {"data": DATA, "topic": TOPIC.encode()} | {name: text.encode() for name, text in a_ring().sign(TOPIC, DATA).items()}
    changed = bytearray(parts[part])
    changed[position % len(changed)] ^= flip
    parts[part] = bytes(changed)
    topic, key_id, signature = (parts[name].decode("latin-1") for name in ("topic", "hmac-key-id", "hmac-signature"))
    rejected = rejection(a_ring(), topic, parts["data"], {"hmac-key-id": key_id, "hmac-signature": signature})
    assert rejected.reason in ({"key", "signature"} if part == "hmac-key-id" else {"signature"})


@given(attributes=st.dictionaries(st.sampled_from(["hmac-key-id", "hmac-signature", "content-type"]), st.text()), topic=st.text())
def test_arbitrary_attributes_are_refused_and_raise_nothing_else(attributes: dict[str, str], topic: str) -> None:
    assert rejection(a_ring(), topic, DATA, attributes).reason in {"key", "signature"}


@pytest.mark.parametrize("topic", ["", "a/b", "a\nb", "тема", "a" * 256])
def test_a_topic_that_cannot_be_signed_for_is_a_configuration_error(topic: str) -> None:
    with pytest.raises(ConfigurationError, match="topic"):
        a_ring().sign(topic, DATA)


def test_a_rotation_adds_activates_and_retires() -> None:
    old = KeyRing("prod-v1", {"V1": FIRST})
    both = KeyRing("prod-v1", {"V1": FIRST, "V2": SECOND})
    assert both.states == {"V1": KeyState.ACTIVE, "V2": KeyState.VERIFY}
    both.verify(TOPIC, DATA, signed(SECOND, "prod-v2"))
    assert both.sign(TOPIC, DATA) == old.sign(TOPIC, DATA)

    switched = KeyRing("prod-v2", {"V1": FIRST, "V2": SECOND})
    assert switched.active == "prod-v2"
    assert switched.states == {"V1": KeyState.VERIFY, "V2": KeyState.ACTIVE}
    switched.verify(TOPIC, DATA, old.sign(TOPIC, DATA))
    both.verify(TOPIC, DATA, switched.sign(TOPIC, DATA))

    new = KeyRing("prod-v2", {"V1": FIRST, "V2": SECOND}, retired=("prod-v1",))
    assert new.states == {"V1": KeyState.RETIRED, "V2": KeyState.ACTIVE}
    new.verify(TOPIC, DATA, switched.sign(TOPIC, DATA))
    for key_id in ("prod-v1", "v1", "any.v1"):
        assert rejection(new, TOPIC, DATA, signed(FIRST, key_id)).reason == "key"


def test_a_retired_id_does_not_fall_back_to_the_default_secret() -> None:
    ring = a_ring("v2", retired=("v1",))
    for secret in (FIRST, DEFAULT):
        assert rejection(ring, TOPIC, DATA, signed(secret, "prod-v1")).reason == "key"
    ring.verify(TOPIC, DATA, signed(DEFAULT, "prod-v0"))


@pytest.mark.parametrize("retired", ["V1", "v1", "prod-v1"])
@pytest.mark.parametrize("keys", [{"V1": FIRST, "V2": SECOND}, {"V2": SECOND}])
def test_a_ring_can_be_made_with_retired_keys(keys: dict[str, str], retired: str) -> None:
    ring = KeyRing("v2", keys, default=DEFAULT, retired=(retired,))
    for secret in (FIRST, DEFAULT):
        assert rejection(ring, TOPIC, DATA, signed(secret, "prod-v1")).reason == "key"
    assert rejection(ring, TOPIC, DATA, signed(FIRST, "v1")).reason in {"key", "signature"}
    assert KeyState.RETIRED in ring.states.values()


@pytest.mark.parametrize("key_id", ["prod-v9", "prod-default", "", "ключ"])
def test_a_mistyped_id_retires_no_key(key_id: str) -> None:
    ring = KeyRing("v2", {"V1": FIRST, "V2": SECOND}, retired=(key_id,))
    ring.verify(TOPIC, DATA, signed(FIRST, "v1"))
    ring.verify(TOPIC, DATA, ring.sign(TOPIC, DATA))


def test_the_default_secret_retires_under_its_own_name_alone() -> None:
    a_ring("v2", retired=("prod-v0",)).verify(TOPIC, DATA, signed(DEFAULT, "prod-v3"))
    ring = a_ring("v2", retired=("default",))
    assert ring.states["DEFAULT"] is KeyState.RETIRED
    assert rejection(ring, TOPIC, DATA, signed(DEFAULT, "prod-v0")).reason == "key"
    ring.verify(TOPIC, DATA, signed(FIRST, "v1"))
    with pytest.raises(ConfigurationError, match="retired"):
        a_ring("prod-v0", retired=("default",))


def test_the_active_key_cannot_be_retired() -> None:
    with pytest.raises(ConfigurationError, match="names a retired key"):
        a_ring("prod-v1", retired=("V1",))


def test_a_retired_secret_may_not_stay_trusted_under_another_name() -> None:
    with pytest.raises(ConfigurationError, match="COMM_HMAC_DEFAULT_SECRET holds the secret of COMM_HMAC_KEY_V1"):
        KeyRing("v2", {"V1": FIRST, "V2": SECOND}, default=FIRST, retired=("v1",))
    with pytest.raises(ConfigurationError, match="COMM_HMAC_KEY_V3 holds the secret of COMM_HMAC_KEY_V1"):
        KeyRing("v2", {"V1": FIRST, "V2": SECOND, "V3": FIRST}, retired=("V1",))


def test_a_name_is_used_once() -> None:
    with pytest.raises(ConfigurationError, match="COMM_HMAC_KEY_A_B is given twice"):
        KeyRing("v1", {"A_B": FIRST, "a-b": SECOND})


@pytest.mark.parametrize("name", ["", "_V1", "V 1", "V1\n", "ключ", "V" * 256])
def test_a_name_that_no_variable_could_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="COMM_HMAC_KEY_<NAME>"):
        KeyRing("v1", {name: FIRST}, default=DEFAULT)


def test_the_default_secret_has_a_variable_of_its_own() -> None:
    with pytest.raises(ConfigurationError, match="set COMM_HMAC_DEFAULT_SECRET"):
        KeyRing("v1", {"V1": FIRST, "default": SECOND})


@pytest.mark.parametrize("active", ["", "prod v1", "prod-v1\n", "v" * 256])
def test_an_active_id_that_cannot_be_signed_with_is_refused(active: str) -> None:
    with pytest.raises(ConfigurationError, match="COMM_HMAC_ACTIVE_KEY_ID is "):
        a_ring(active)


def test_an_active_id_needs_a_key_or_the_default_secret() -> None:
    assert KeyRing("prod-v9", {}, default=DEFAULT).states == {"DEFAULT": KeyState.ACTIVE}
    with pytest.raises(ConfigurationError, match="set COMM_HMAC_DEFAULT_SECRET or name a key"):
        KeyRing("prod-v9", {"V1": FIRST})


@pytest.mark.parametrize("kind", [str, str.encode, SecretStr])
def test_a_secret_under_32_characters_is_refused_and_not_shown(kind: Callable[[str], SecretStr | str | bytes]) -> None:
    short = "short-secret-0123456789-abcdefg"
    makers: dict[str, Callable[[], KeyRing]] = {
        "COMM_HMAC_KEY_V1": lambda: KeyRing("v1", {"V1": kind(short)}),
        "COMM_HMAC_DEFAULT_SECRET": lambda: KeyRing("v1", {}, default=kind(short)),
    }
    for variable, make in makers.items():
        with pytest.raises(ConfigurationError, match=f"^{variable} is shorter than 32 characters") as caught:
            make()
        assert short not in "".join(traceback.format_exception(caught.value))
    KeyRing("v1", {"V1": kind(f"{short}!")}).sign(TOPIC, DATA)


def test_every_kind_of_secret_signs_alike() -> None:
    rings = [KeyRing("v1", {"V1": secret}) for secret in (FIRST, FIRST.encode(), SecretStr(FIRST))]
    assert len({ring.sign(TOPIC, DATA)["hmac-signature"] for ring in rings}) == 1


def test_a_secret_of_bytes_that_are_no_text_can_be_used() -> None:
    ring = KeyRing("v1", {"V1": "\udcff" * 32})
    ring.verify(TOPIC, DATA, ring.sign(TOPIC, DATA))


def test_a_ring_shows_names_and_states_and_no_secret() -> None:
    ring = a_ring("v2", retired=("v1",))
    assert repr(ring) == "KeyRing(active='v2', DEFAULT: verify, V1: retired, V2: active)"
    assert not hasattr(ring, "__dict__")
