"""The kinds of values that settings have: what each takes, and how that is told to whoever gave something else."""

import base64
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _split_text(value: str) -> tuple[str, ...]:
    return tuple(name for part in value.split(",") if (name := part.strip()))


def _split(value: object) -> object:
    return _split_text(value) if isinstance(value, str) else value


def _callers(value: object) -> object:
    """`a@example.com=read, b@example.com=submit` as a mapping. A caller who is named twice is a mistake, not a choice."""
    if not isinstance(value, str):
        return value
    parts = [one.partition("=") for one in _split_text(value.lower())]
    pairs = [(email.strip(), scope.strip()) for email, _, scope in parts]
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a caller is named twice")
    return dict(pairs)


def _starts_with(*schemes: str) -> AfterValidator:
    def check(value: str | SecretStr | None) -> str | SecretStr | None:
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        if text is not None:
            scheme, separator, rest = text.partition("://")
            if not (scheme in schemes and separator and rest):
                raise ValueError("not such a URL")
        return value

    return AfterValidator(check)


def _webhook_secret(value: SecretStr | None) -> SecretStr | None:
    if value is not None:
        prefix, _, text = value.get_secret_value().partition("_")
        if prefix != "whsec" or not 24 <= len(base64.b64decode(text + "=" * (-len(text) % 4), validate=True)) <= 64:
            raise ValueError("not such a secret")
    return value


def expect(description: str) -> Any:
    """What a mistake says should have been given."""
    return Field(description=description)


Text = Annotated[str, Field(min_length=1), expect("text")]
Flag = Annotated[bool, expect("true, false, 1, 0, yes, no, on or off")]
Count = Annotated[int, Field(gt=0), expect("a whole number above 0")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), expect("a number from 0.0 to 1.0")]
Names = Annotated[tuple[Text, ...], BeforeValidator(_split), expect("names separated by commas")]
Email = Annotated[str, Field(pattern=r"^[^\s@=,]+@[^\s@=,]+\z")]
Callers = Annotated[
    Mapping[Email, Literal["read", "submit", "admin"]],
    BeforeValidator(_callers),
    expect("emails, each with what it may do (read, submit or admin): ci@p.iam.gserviceaccount.com=submit,ann@example.com=read"),
]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\z"), expect("letters, digits, dots, underscores and hyphens")]
HmacSecret = Annotated[SecretStr, Field(min_length=32)]
AppEnv = Annotated[
    Literal["development", "test", "staging", "production"],
    BeforeValidator(_lower),
    expect("development, test, staging or production"),
]
Qos = Annotated[Literal["at-least-once", "at-most-once"], BeforeValidator(_lower), expect("at-least-once or at-most-once")]
SecretsFrom = Annotated[Literal["environment", "secret-manager"], BeforeValidator(_lower), expect("environment or secret-manager")]
BusProvider = Annotated[Literal["memory", "redis", "pubsub"], BeforeValidator(_lower), expect("memory, redis or pubsub")]
GuardsBackend = Annotated[Literal["memory", "redis", "firestore"], BeforeValidator(_lower), expect("memory, redis or firestore")]
PushVerifier = Annotated[Literal["door", "cloud-run"], BeforeValidator(_lower), expect("door or cloud-run")]
LogLevel = Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_lower), expect("debug, info, warn or error")]
HttpUrl = Annotated[str | None, _starts_with("https", "http"), expect("a URL that starts with https:// or http://")]
RedisUrl = Annotated[
    SecretStr | None, _starts_with("redis", "rediss", "unix"), expect("a URL that starts with redis://, rediss:// or unix://")
]
PostgresUrl = Annotated[SecretStr | None, _starts_with("postgresql", "postgres"), expect("a URL that starts with postgresql://")]
OutputsUrl = Annotated[
    str | None, _starts_with("file", "gs", "supabase"), expect("file:///folder, gs://bucket/prefix or supabase://bucket/prefix")
]
SentryDsn = Annotated[SecretStr | None, _starts_with("https", "http"), expect("a URL that starts with https:// or http://")]

WebhookSecret = Annotated[SecretStr | None, AfterValidator(_webhook_secret), expect("whsec_ and 24 to 64 bytes in base64")]
