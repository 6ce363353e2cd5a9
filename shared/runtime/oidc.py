"""Who calls: the identity token that a caller shows, and the certificates that prove it.

An OpenID Connect token, signed by Google (https://cloud.google.com/docs/authentication/token-types#id), for an audience and in the
name of an account. With each push, Pub/Sub shows one for the audience and the service account that the push subscription names
(https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions). The same token is shown for up to an hour, so what was
verified is remembered, byte for byte, until it expires.

Refused is whatever is not exactly that. Where Cloud Run's own IAM check of callers is on, it takes the signature away once it has
verified it (https://cloud.google.com/run/docs/troubleshooting#signature-removed). Nobody here could tell such a token from a forged
one, so it is refused, unless the deployment says that nothing gets here past that check: then its claims are held to the same.
"""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from shared.clock import Clock
from shared.errors import EnvelopeRejected, TokenRefused, Transient

_log = logging.getLogger(__name__)

CERTIFICATES_URL: Final = "https://www.googleapis.com/oauth2/v1/certs"
_ISSUERS: Final = ("https://accounts.google.com", "accounts.google.com")
_SKEW_SECONDS: Final = 30
_FETCH_SECONDS: Final = 5.0
_LEAST_AGE_SECONDS, _MOST_AGE_SECONDS = 60.0, 86_400.0
_UNKNOWN_KEY_SECONDS: Final = 60.0
"""Between two fetches that only an unknown key id asks for: anybody can make one up."""
_FAILURE_SECONDS: Final = 5.0
_REMEMBERED_TOKENS: Final = 64
_LONGEST_TOKEN: Final = 8_192
_SIGNATURE_REMOVED: Final = ".SIGNATURE_REMOVED_BY_GOOGLE"
_SCHEME: Final = re.compile(r"Bearer +([A-Za-z0-9_.=-]+)", re.IGNORECASE)
_MAX_AGE: Final = re.compile(r"(?:^|[\s,])max-age=(\d{1,9})", re.IGNORECASE)


class Fetched(NamedTuple):
    """Certificates (PEM) by key id, and for how many seconds they may be kept."""

    certificates: Mapping[str, str]
    max_age_seconds: float


Fetch = Callable[[], Awaitable[Fetched]]


async def fetch_from_google() -> Fetched:
    """Google's certificates as they are now. Raises what httpx raises, and ValueError for an answer that holds none."""
    import httpx  # only a door that checks tokens needs it, and only now and then

    async with httpx.AsyncClient(timeout=_FETCH_SECONDS) as client, asyncio.timeout(_FETCH_SECONDS):
        answer = await client.get(CERTIFICATES_URL)
    answer.raise_for_status()
    certificates = answer.json()
    if not isinstance(certificates, dict) or not all(isinstance(one, str) for one in certificates.values()):
        raise ValueError("not certificates by key id")
    age = _MAX_AGE.search(answer.headers.get("cache-control", ""))
    return Fetched(certificates, 0.0 if age is None else float(age[1]))


class Certificates:
    """Google's certificates, fetched when they are needed and kept as long as the answer allows."""

    def __init__(self, clock: Clock, fetch: Fetch = fetch_from_google) -> None:
        self._clock = clock
        self._fetch = fetch
        self._held: Mapping[str, str] = {}
        self._fresh_until = self._asked_at = self._failed_at = float("-inf")
        self._fetching = asyncio.Lock()

    async def of(self, key_id: str) -> str | None:
        """The certificate of a key; None when Google has none. Raises Transient when Google cannot be asked."""
        if not self._knows(key_id):
            async with self._fetching:
                if not self._knows(key_id):  # another request may have fetched meanwhile
                    await self._refresh()
        return self._held.get(key_id)

    def _knows(self, key_id: str) -> bool:
        """Whether what is held says all about a key that may be said now."""
        now = self._clock.monotonic()
        return now < self._fresh_until and (key_id in self._held or now - self._asked_at < _UNKNOWN_KEY_SECONDS)

    async def _refresh(self) -> None:
        now = self._clock.monotonic()
        if now - self._failed_at < _FAILURE_SECONDS:
            raise _unavailable()
        try:
            fetched = await self._fetch()
        except Exception as error:
            self._failed_at = now
            _log.warning("Google's certificates cannot be fetched from %s (%s)", CERTIFICATES_URL, type(error).__name__)
            raise _unavailable() from error
        self._held, self._asked_at = fetched.certificates, now
        self._fresh_until = now + min(max(fetched.max_age_seconds, _LEAST_AGE_SECONDS), _MOST_AGE_SECONDS)


class IdentityTokens:
    """Tokens for `audience`, and in whose name they are. Messages say that the audience is the one of `setting`."""

    def __init__(
        self,
        audience: str,
        clock: Clock,
        certificates: Certificates | None = None,
        *,
        setting: str,
        verified_by_cloud_run: bool = False,
    ) -> None:
        self._audience = audience
        self._verified_by_cloud_run = verified_by_cloud_run
        self._clock = clock
        self._certificates = Certificates(clock) if certificates is None else certificates
        self._setting = setting
        self._verified: OrderedDict[str, tuple[str, float]] = OrderedDict()
        """Of each token the email, and the moment when it expires, in seconds since 1970."""

    async def email(self, authorization: str | None) -> str:
        """The account in whose name an `Authorization` header is. Raises TokenRefused, or Transient when Google cannot be asked."""
        token = _token(authorization)
        known = self._verified.get(token)
        if known is not None and self._clock.now().timestamp() < known[1]:
            return known[0]
        removed = token.endswith(_SIGNATURE_REMOVED)
        if removed and not self._verified_by_cloud_run:
            raise TokenRefused(
                "came without its signature; switch Cloud Run's IAM check of callers off, or say PUSH_VERIFIED_BY=cloud-run"
            )
        claims = self._verified_claims(token) if removed else await self._claims(token)
        if claims.get("iss") not in _ISSUERS:
            raise TokenRefused("was not issued by Google")
        email = claims.get("email")
        if not isinstance(email, str) or claims.get("email_verified") is not True:
            raise TokenRefused("is in no account's name that Google has verified")
        self._verified[token] = email, float(claims["exp"])
        if len(self._verified) > _REMEMBERED_TOKENS:
            self._verified.popitem(last=False)
        return email

    async def _claims(self, token: str) -> Mapping[str, Any]:
        """The claims of a token that Google signed for the audience and that is valid now."""
        from google.auth import exceptions, jwt

        try:
            key_id = jwt.decode_header(token).get("kid")  # type: ignore[no-untyped-call]
        except Exception:  # a forger's bytes come this far: whatever they break, they are refused
            raise TokenRefused("cannot be read") from None
        if not isinstance(key_id, str):
            raise TokenRefused("does not say which key signed it")
        certificate = await self._certificates.of(key_id)
        if certificate is None:
            raise TokenRefused("is signed with a key that is not Google's")
        try:
            # Which algorithms sign is the library's choice, never the token's: public keys only.
            claims: Mapping[str, Any] = jwt.decode(  # type: ignore[no-untyped-call]
                token, certs={key_id: certificate}, audience=self._audience, clock_skew_in_seconds=_SKEW_SECONDS
            )
        except exceptions.InvalidValue:
            raise TokenRefused(
                f"is expired, not yet valid, for another audience than {self._setting}, or of no known algorithm"
            ) from None
        except Exception:
            raise TokenRefused("has no valid signature of Google's") from None
        return claims

    def _verified_claims(self, token: str) -> Mapping[str, Any]:
        """The claims of a token whose signature Cloud Run has verified and removed, for the audience and valid now."""
        from google.auth import jwt

        try:
            claims: Mapping[str, Any] = jwt.decode(token.removesuffix(_SIGNATURE_REMOVED) + ".", verify=False)  # type: ignore[no-untyped-call]
            begins, ends = float(claims["iat"]) - _SKEW_SECONDS, float(claims["exp"]) + _SKEW_SECONDS
        except Exception:
            raise TokenRefused("cannot be read") from None
        if claims.get("aud") != self._audience or not begins <= self._clock.now().timestamp() < ends:
            raise TokenRefused(f"is expired, not yet valid, or for another audience than {self._setting}")
        return claims


class PushTokens:
    """What a push has to show: a token for `audience`, in the name of `service_account`."""

    def __init__(
        self,
        audience: str,
        service_account: str,
        clock: Clock,
        certificates: Certificates | None = None,
        *,
        verified_by_cloud_run: bool = False,
    ) -> None:
        self._service_account = service_account
        self._tokens = IdentityTokens(
            audience, clock, certificates, setting="PUSH_AUDIENCE", verified_by_cloud_run=verified_by_cloud_run
        )

    async def check(self, authorization: str | None) -> None:
        """Return for a right `Authorization` header. Raises EnvelopeRejected (token), or Transient when Google cannot be asked."""
        try:
            email = await self._tokens.email(authorization)
        except TokenRefused as error:
            raise EnvelopeRejected("token", f"the push's token {error}") from error
        if email != self._service_account:
            raise EnvelopeRejected("token", "the push's token is in another name than PUSH_SERVICE_ACCOUNT's")


def _token(authorization: str | None) -> str:
    if authorization is None:
        raise TokenRefused("is missing; have the caller (a push subscription, for instance) show one")
    scheme = _SCHEME.fullmatch(authorization) if len(authorization) <= _LONGEST_TOKEN else None
    if scheme is None:
        raise TokenRefused("is not a bearer token")
    return scheme[1]


def _unavailable() -> Transient:
    return Transient("Google's certificates cannot be fetched, so no token can be believed", retry_after_seconds=_FAILURE_SECONDS)
