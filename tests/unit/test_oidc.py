"""Who may push: only Pub/Sub, shown by a token that Google signed. Keys, certificates and tokens are real, the issuer is ours."""

import asyncio
import base64
import hmac
import json
import logging
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import httpx
import jwt as pyjwt
import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.bus import Delivery, Message, Outcome
from shared.clock import ManualClock
from shared.config import Settings
from shared.errors import ConfigurationError, EnvelopeRejected, Transient
from shared.local.server import create_app
from shared.runtime import Runtime, oidc
from shared.runtime.door import push
from shared.runtime.oidc import Certificates, Fetched, PushTokens
from shared.telemetry import metrics
from tests.support.doubles import MAX_BYTES, SECRET
from tests.support.identity import ISSUER, Google, Key, key
from tests.support.pushes import raw_push

AUDIENCE = "https://writer.example.com/"
ACCOUNT = "pusher@project.iam.gserviceaccount.com"
PUSH = raw_push(Message("agent-writer", b"data"), "agent-writer.writer")


@pytest.fixture
def clock() -> ManualClock:
    # The library that verifies looks at the real time.
    return ManualClock(datetime.now(UTC))


@pytest.fixture
def google() -> Google:
    return Google(key("first"))


@pytest.fixture
def tokens(google: Google, clock: ManualClock) -> PushTokens:
    return PushTokens(AUDIENCE, ACCOUNT, clock, Certificates(clock, google))


def claims(**changes: Any) -> dict[str, Any]:
    now = int(datetime.now(UTC).timestamp())
    right = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "azp": "113",
        "sub": "113",
        "email": ACCOUNT,
        "email_verified": True,
        "iat": now,
        "exp": now + 3600,
    }
    return {name: value for name, value in (right | changes).items() if value is not ...}


def token(signed_by: Key | None = None, *, headers: Mapping[str, Any] | None = None, **changes: Any) -> str:
    signer = key("first") if signed_by is None else signed_by
    return pyjwt.encode(claims(**changes), signer.private, algorithm="RS256", headers={"kid": signer.key_id, **(headers or {})})


def assembled(header: Mapping[str, Any], payload: Mapping[str, Any], signature: bytes = b"") -> str:
    parts = (json.dumps(header).encode(), json.dumps(payload).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def hs256_with_the_public_key() -> str:
    unsigned = assembled({"alg": "HS256", "typ": "JWT", "kid": "first"}, claims()).rstrip(".")
    digest = hmac.digest(key("first").public, unsigned.encode(), "sha256")
    return f"{unsigned}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def altered() -> str:
    header, _, signature = token().split(".")
    payload = assembled({}, claims(sub="somebody else")).split(".")[1]
    return f"{header}.{payload}.{signature}"


def ago(seconds: float) -> int:
    return int(datetime.now(UTC).timestamp() - seconds)


async def test_the_right_token_passes(tokens: PushTokens) -> None:
    await tokens.check(f"Bearer {token()}")
    await tokens.check(f"bearer  {token(iss='accounts.google.com')}")


async def test_clocks_may_differ_a_little(tokens: PushTokens) -> None:
    await tokens.check(f"Bearer {token(exp=ago(10))}")
    await tokens.check(f"Bearer {token(iat=ago(-10))}")


WRONG = {
    "another audience": lambda: token(aud="https://critic.example.com/"),
    "an audience that begins alike": lambda: token(aud=AUDIENCE + "more"),
    "a list of audiences": lambda: token(aud=[AUDIENCE]),
    "no audience": lambda: token(aud=...),
    "another issuer": lambda: token(iss="https://accounts.example.com"),
    "no issuer": lambda: token(iss=...),
    "another account": lambda: token(email="somebody@project.iam.gserviceaccount.com"),
    "no account": lambda: token(email=...),
    "an unverified email": lambda: token(email_verified=False),
    "a verification that is a text": lambda: token(email_verified="true"),
    "expired": lambda: token(iat=ago(3700), exp=ago(60)),
    "no expiry": lambda: token(exp=...),
    "not yet valid": lambda: token(iat=ago(-60)),
    "alg none": lambda: assembled({"alg": "none", "kid": "first"}, claims()),
    "HS256 with the public key": hs256_with_the_public_key,
    "another algorithm": lambda: pyjwt.encode(claims(), key("first").private, algorithm="RS512", headers={"kid": "first"}),
    "an unknown key": lambda: token(key("unknown")),
    "another's key under a known id": lambda: token(key("unknown"), headers={"kid": "first"}),
    "no key id": lambda: pyjwt.encode(claims(), key("first").private, algorithm="RS256"),
    "altered claims": altered,
    "the signature removed": lambda: token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE",
    "no signature": lambda: token().rpartition(".")[0] + ".",
    "two parts": lambda: token().rpartition(".")[0],
    "garbage": lambda: "a.b.c",
    "no JSON object": lambda: ".".join([base64.urlsafe_b64encode(b"[]").decode()] * 3),
    "deep JSON": lambda: base64.urlsafe_b64encode(b"[" * 5000).decode() + ".e30.e30",
    "nothing": lambda: "",
    "over 8 KiB": lambda: token(sub="x" * 9000),
}


class Door:
    """A push door that asks for tokens, with one handler behind it."""

    def __init__(self, tokens: PushTokens) -> None:
        self.arrived: list[Delivery] = []
        self._tokens = tokens

    async def post(self, headers: Mapping[str, str]) -> httpx.Response:
        async def handle(delivery: Delivery) -> Outcome:
            self.arrived.append(delivery)
            return Outcome.ACK

        async def endpoint(request: Request) -> Response:
            return await push(request, {"agent-writer": handle}, max_bytes=MAX_BYTES, tokens=self._tokens)

        app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
            return await client.post("/", content=orjson.dumps(PUSH), headers=headers)


@pytest.fixture
def door(tokens: PushTokens) -> Door:
    return Door(tokens)


async def test_a_push_with_the_right_token_is_delivered(door: Door) -> None:
    assert (await door.post({"authorization": f"Bearer {token()}"})).status_code == 204
    assert [delivery.data for delivery in door.arrived] == [b"data"]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_push_with_a_wrong_token_is_refused_and_counted(door: Door, caplog: pytest.LogCaptureFixture, wrong: str) -> None:
    shown = cast("Any", WRONG[wrong])()
    await _refused(door, {"authorization": f"Bearer {shown}"}, caplog)
    assert shown == "" or shown not in caplog.text
    assert ACCOUNT not in caplog.text


@pytest.mark.parametrize("headers", [{}, {"authorization": ""}, {"authorization": "Basic dXNlcg=="}, {"authorization": "Bearer"}])
async def test_a_push_without_a_token_is_refused_and_counted(
    door: Door, caplog: pytest.LogCaptureFixture, headers: dict[str, str]
) -> None:
    await _refused(door, headers, caplog)


async def test_a_token_that_cloud_run_did_not_look_at_proves_nothing(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Cloud Run checks X-Serverless-Authorization where it is there, and passes Authorization on as it came."""
    door = Door(PushTokens(AUDIENCE, ACCOUNT, clock, verified_by_cloud_run=True))
    forged = {"authorization": "Bearer " + token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"}
    await _refused(door, {**forged, "x-serverless-authorization": f"Bearer {token()}"}, caplog)
    assert (await door.post(forged)).status_code == 204


async def _refused(door: Door, headers: Mapping[str, str], caplog: pytest.LogCaptureFixture) -> None:
    before = metrics.value("envelope.rejected", reason="token")
    with caplog.at_level(logging.INFO):
        answer = await door.post(headers)
    assert (answer.status_code, answer.content, answer.headers["www-authenticate"]) == (401, b"", "Bearer")
    assert door.arrived == []
    assert metrics.value("envelope.rejected", reason="token") == before + 1
    (record,) = [one for one in caplog.records if one.name.startswith("shared")]
    assert record.__dict__["reason"] == "token"


async def test_the_token_is_checked_before_the_body_is_read(tokens: PushTokens) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("the body was read")

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    assert (await push(request, {}, max_bytes=MAX_BYTES, tokens=tokens)).status_code == 401


async def test_while_google_cannot_be_asked_nobody_is_believed_and_nothing_is_lost(door: Door, google: Google) -> None:
    google.down = True
    before = metrics.value("envelope.rejected", reason="token")
    assert (await door.post({"authorization": f"Bearer {token()}"})).status_code == 503
    assert door.arrived == []
    assert metrics.value("envelope.rejected", reason="token") == before


async def test_a_signature_that_cloud_run_took_away_is_explained(tokens: PushTokens) -> None:
    with pytest.raises(EnvelopeRejected, match="switch Cloud Run's IAM check of callers off"):
        await tokens.check("Bearer " + token().rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE")


@pytest.mark.parametrize(
    "wrong", [None, {"aud": "another"}, {"email": "somebody@else"}, {"exp": 1}, {"iss": "https://evil.example"}]
)
async def test_what_cloud_run_verified_is_believed_where_it_is_said_to_and_held_to_its_claims(
    clock: ManualClock, wrong: dict[str, Any] | None
) -> None:
    believing = PushTokens(AUDIENCE, ACCOUNT, clock, verified_by_cloud_run=True)
    header = "Bearer " + token(**(wrong or {})).rpartition(".")[0] + ".SIGNATURE_REMOVED_BY_GOOGLE"
    if wrong is None:
        await believing.check(header)
    else:
        with pytest.raises(EnvelopeRejected):
            await believing.check(header)


async def test_a_token_that_kept_its_signature_is_verified_there_too(clock: ManualClock, google: Google) -> None:
    believing = PushTokens(AUDIENCE, ACCOUNT, clock, Certificates(clock, google), verified_by_cloud_run=True)
    await believing.check("Bearer " + token())
    with pytest.raises(EnvelopeRejected, match="signature"):
        await believing.check("Bearer " + token().rpartition(".")[0] + "." + "A" * 342)


async def test_certificates_are_kept_as_long_as_google_allows(tokens: PushTokens, google: Google, clock: ManualClock) -> None:
    for number in range(5):
        await tokens.check(f"Bearer {token(sub=str(number))}")
    assert google.asked == 1
    await clock.advance(3599)
    await tokens.check(f"Bearer {token(sub='kept')}")
    assert google.asked == 1
    await clock.advance(2)
    await tokens.check(f"Bearer {token(sub='fetched')}")
    assert google.asked == 2


async def test_a_new_key_of_googles_is_fetched_when_it_is_first_seen(
    tokens: PushTokens, google: Google, clock: ManualClock
) -> None:
    await tokens.check(f"Bearer {token()}")
    google.certificates = {"second": key("second").certificate}
    await clock.advance(61)
    await tokens.check(f"Bearer {token(key('second'))}")
    with pytest.raises(EnvelopeRejected):
        await tokens.check(f"Bearer {token(sub='of the key that is gone')}")
    assert google.asked == 2


async def test_made_up_keys_ask_google_once_a_minute(tokens: PushTokens, google: Google, clock: ManualClock) -> None:
    async def try_ten() -> None:
        for number in range(10):
            with pytest.raises(EnvelopeRejected):
                await tokens.check(f"Bearer {token(headers={'kid': f'made-up-{number}'})}")

    await try_ten()
    assert google.asked == 1
    await clock.advance(61)
    await try_ten()
    assert google.asked == 2


async def test_many_pushes_at_once_ask_google_once(google: Google, clock: ManualClock) -> None:
    async def slow() -> Fetched:
        await asyncio.sleep(0)
        return await google()

    tokens = PushTokens(AUDIENCE, ACCOUNT, clock, Certificates(clock, slow))
    await asyncio.gather(*(tokens.check(f"Bearer {token(sub=str(number))}") for number in range(10)))
    assert google.asked == 1


async def test_a_google_that_does_not_answer_is_asked_again_after_a_pause(
    tokens: PushTokens, google: Google, clock: ManualClock
) -> None:
    google.down = True
    for _ in range(3):
        with pytest.raises(Transient):
            await tokens.check(f"Bearer {token()}")
    assert google.asked == 1
    google.down = False
    await clock.advance(6)
    await tokens.check(f"Bearer {token()}")
    assert google.asked == 2


async def test_a_verified_token_is_remembered_until_it_expires_and_no_other_is(
    tokens: PushTokens, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = token()
    await tokens.check(f"Bearer {shown}")
    monkeypatch.setattr("google.auth.jwt.decode", _not_called)
    await tokens.check(f"Bearer {shown}")
    with pytest.raises(EnvelopeRejected):
        await tokens.check(f"Bearer {shown[:-4]}AAAA")
    await clock.advance(3601)
    with pytest.raises(EnvelopeRejected):
        await tokens.check(f"Bearer {shown}")


def _not_called(*_: object, **__: object) -> None:
    raise AssertionError("verified again")


async def test_what_is_remembered_is_bounded(tokens: PushTokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oidc, "_REMEMBERED_TOKENS", 2)
    shown = [token(sub=str(number)) for number in range(3)]
    for one in shown:
        await tokens.check(f"Bearer {one}")
    monkeypatch.setattr("google.auth.jwt.decode", _not_called)
    await tokens.check(f"Bearer {shown[2]}")
    with pytest.raises(EnvelopeRejected):
        await tokens.check(f"Bearer {shown[0]}")


# --- what is asked of Google ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def answers(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[httpx.Response]]:
    """What the next fetches are answered with; the way there is httpx's own."""
    given: list[httpx.Response] = []

    async def handle(self: object, request: httpx.Request) -> httpx.Response:
        assert str(request.url) == "https://www.googleapis.com/oauth2/v1/certs"
        return given.pop(0)

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", handle)
    yield given
    assert given == []


async def test_certificates_are_kept_for_the_age_that_google_says(answers: list[httpx.Response]) -> None:
    answers.append(httpx.Response(200, json={"k": "PEM"}, headers={"cache-control": "public, max-age=24078, must-revalidate"}))
    assert await oidc.fetch_from_google() == ({"k": "PEM"}, 24078.0)
    answers.append(httpx.Response(200, json={"k": "PEM"}))
    assert await oidc.fetch_from_google() == ({"k": "PEM"}, 0.0)


@pytest.mark.parametrize("answer", [httpx.Response(500), httpx.Response(200, json=["k"]), httpx.Response(200, content=b"<html>")])
async def test_an_answer_without_certificates_is_none(
    answers: list[httpx.Response], clock: ManualClock, answer: httpx.Response
) -> None:
    answers.append(answer)
    with pytest.raises(Transient):
        await Certificates(clock).of("k")


# --- where tokens are asked for ---------------------------------------------------------------------------------------------------


def live(tmp_path: Path, clock: ManualClock, **settings: Any) -> Runtime:
    given: dict[str, Any] = {
        "comm_hmac_default_secret": SECRET,
        "agent_team_home": tmp_path,
        "database_url": "postgresql://nobody@127.0.0.1:1/none",
    }
    return Runtime(Settings(**(given | settings)), clock=clock)


async def test_the_local_platform_asks_for_tokens_where_the_settings_say_so(
    tmp_path: Path, clock: ManualClock, tokens: PushTokens
) -> None:
    runtime = live(tmp_path, clock, push_audience=AUDIENCE, push_service_account=ACCOUNT)
    assert isinstance(runtime.push_tokens, PushTokens)
    runtime.__dict__["push_tokens"] = tokens  # which knows the certificates of our issuer
    transport = httpx.ASGITransport(create_app(runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://platform") as client:
        assert (await client.post("/functions/writer", json={})).status_code == 401
        right = {"authorization": f"Bearer {token()}"}
        assert (await client.post("/functions/writer", json={}, headers=right)).status_code == 204
    await runtime.close()


async def test_without_an_audience_no_token_is_asked_for(tmp_path: Path, clock: ManualClock) -> None:
    assert live(tmp_path, clock).push_tokens is None


async def test_an_audience_alone_opens_no_door(tmp_path: Path, clock: ManualClock) -> None:
    with pytest.raises(ConfigurationError, match="PUSH_SERVICE_ACCOUNT"):
        _ = live(tmp_path, clock, push_audience=AUDIENCE).push_tokens
