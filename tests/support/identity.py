"""An issuer of identity tokens: its keys and certificates are real, and made here."""

from datetime import UTC, datetime, timedelta
from functools import cache

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from shared.runtime.oidc import Fetched

ISSUER = "https://accounts.google.com"


class Key:
    """A key of an issuer's, and its certificate."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self.private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "federated-signon.system.gserviceaccount.com")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.private.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=14))
            .sign(self.private, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.public = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )


@cache
def key(key_id: str) -> Key:
    return Key(key_id)


class Google:
    """Hands out certificates as Google does, and counts how often it is asked."""

    def __init__(self, *keys: Key) -> None:
        self.certificates = {one.key_id: one.certificate for one in keys}
        self.max_age_seconds = 3600.0
        self.asked = 0
        self.down = False

    async def __call__(self) -> Fetched:
        self.asked += 1
        if self.down:
            raise httpx.ConnectError("no route")
        return Fetched(dict(self.certificates), self.max_age_seconds)
