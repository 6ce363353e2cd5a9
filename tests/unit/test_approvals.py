"""Links to approvals: what they prove, and that nothing else proves it."""

from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.messages import APPROVE, ApprovalLink, KeyRing, approval_links, read_token
from tests.support.doubles import SECRET, WORKFLOW

OTHER = "another secret of the tests, long enough too"
RING = KeyRing("v1", {"V1": SECRET, "V2": OTHER})
LINK = ApprovalLink(WORKFLOW, "publish/ask", 2, 1_800_000_000)
TOKEN = LINK.token(RING)
NOW = datetime(2026, 11, 25, tzinfo=UTC)
URL_SAFE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."


def test_a_token_proves_what_it_was_made_of_and_fits_into_a_path() -> None:
    assert read_token(TOKEN, RING) == LINK
    assert set(TOKEN) <= set(URL_SAFE)
    assert len(TOKEN) < 200


def test_no_secret_is_in_a_token_and_the_same_link_is_the_same_token() -> None:
    assert SECRET.encode() not in orjson.dumps(TOKEN)
    assert LINK.token(RING) == TOKEN


def test_a_token_with_any_character_changed_is_none() -> None:
    # Each of them, because few of the texts that decode to the same bytes would be met by chance.
    for place in range(len(TOKEN)):
        changed = {TOKEN[:place] + other + TOKEN[place + 1 :] for other in URL_SAFE + "=+/é\n"} - {TOKEN}
        assert {read_token(one, RING) for one in changed} == {None}, place


def test_a_token_with_anything_put_in_or_cut_off_is_none() -> None:
    for place in range(len(TOKEN) + 1):
        changed = {TOKEN[:place] + more + TOKEN[place:] for more in ("A", "=", " ", "\n", ".", "!", "é", "==")}
        changed |= {TOKEN[:place], TOKEN[place:]} - {TOKEN}
        assert {read_token(one, RING) for one in changed} == {None}, place


@given(st.text(max_size=1200))
def test_no_other_text_is_a_token(text: str) -> None:
    assert read_token(text, RING) is None


@pytest.mark.parametrize(
    "change",
    [
        {"workflow": WORKFLOW.replace("wf_0", "wf_1")},
        {"step": "publish/other"},
        {"attempt": 3},
        {"expires": LINK.expires + 1},
    ],
)
def test_the_seal_of_one_link_is_none_for_another(change: dict[str, object]) -> None:
    fields = {**LINK._asdict(), **change}
    body = urlsafe_b64encode(orjson.dumps([*fields.values(), "v1"])).decode().rstrip("=")
    assert read_token(f"{body}.{TOKEN.partition('.')[2]}", RING) is None


def test_a_key_that_signs_no_longer_still_proves_until_it_is_retired() -> None:
    rotated, retired = (KeyRing("v2", {"V1": SECRET, "V2": OTHER}, retired=names) for names in ((), ("v1",)))
    assert read_token(TOKEN, rotated) == LINK
    assert LINK.token(rotated) != TOKEN
    assert read_token(TOKEN, retired) is None
    assert read_token(LINK.token(rotated), retired) == LINK


def test_a_ring_without_the_key_takes_no_link_of_it() -> None:
    assert read_token(TOKEN, KeyRing("v2", {"V2": OTHER})) is None
    assert read_token(TOKEN, KeyRing("v1", {"V1": OTHER})) is None


def test_a_messages_signature_opens_no_approval_and_a_seal_signs_no_message() -> None:
    body, _, seal = TOKEN.partition(".")
    for topic in ("approval-link", "seal-v1", "v1"):
        signature = RING.sign(topic, body.encode())["hmac-signature"]
        assert signature.removeprefix("v1,").rstrip("=").replace("+", "-").replace("/", "_") != seal
    assert RING.seal("approval-link", b"x") != RING.seal("another-purpose", b"x")


def test_a_link_lasts_as_long_as_its_approval_waits_and_a_week_without_an_end() -> None:
    def expires(until: str | None) -> int:
        about = {"step": "ask", "attempt": 1, "waiting": {"until": until}, "workflow": WORKFLOW}
        link = approval_links(RING, "https://team.example.com/", **about, now=NOW)["approve"]  # type: ignore[arg-type]
        start, _, token = link.rpartition("/")
        assert start == f"https://team.example.com{APPROVE}"
        read = read_token(token, RING)
        assert read is not None
        return read.expires

    assert expires(None) == int((NOW + timedelta(days=7)).timestamp())
    assert expires("2026-11-25T10:00:00.5+00:00") == int(datetime(2026, 11, 25, 10, tzinfo=UTC).timestamp())
