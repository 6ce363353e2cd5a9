"""What the platform was told: every setting with its default, and what of it may be shown."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.config.values import (
    AppEnv,
    BusProvider,
    Callers,
    Count,
    Flag,
    GuardsBackend,
    HmacSecret,
    HttpUrl,
    KeyId,
    LogLevel,
    Names,
    OutputsUrl,
    PostgresUrl,
    PushVerifier,
    Qos,
    RedisUrl,
    SecretsFrom,
    SentryDsn,
    Share,
    Text,
    WebhookSecret,
    expect,
)

KEY_PREFIX = "COMM_HMAC_KEY_"
_HIDDEN = "**********"


def _default_backend(valid: dict[str, Any]) -> Literal["memory", "redis"]:
    return "memory" if valid["redis_url"] is None else "redis"


class Settings(BaseSettings):
    """What the platform was told, by the lower-case name of the variable. None means: not given.

    Made from its arguments alone: the environment, and the rules across variables, belong to `load_settings`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    app_env: AppEnv = "development"
    """`NODE_ENV`, or its other name `APP_ENV`."""
    port: Annotated[int, Field(ge=0, le=65535), expect("a port number, 0 for any free one")] = 8080
    host: Text = "0.0.0.0"
    agent_team_home: Annotated[Path, expect("a folder")] = Path(".agent-team")
    """Where the local platform keeps its data."""

    agent_team_url: HttpUrl = None
    """The gateway that the command line asks."""
    agent_team_api_key: Annotated[SecretStr | None, expect("an API key of that gateway")] = None
    """Shown to that gateway. Never an option of a command: those are in the list of processes."""

    gemini_api_key: Annotated[SecretStr | None, expect("a Gemini API key")] = None
    gemini_base_url: HttpUrl = None
    """Another address for the Gemini API: a proxy, or a simulator."""
    ai_model_default: Text = "gemini-2.5-pro"
    ai_model_fallbacks: Names = ("gemini-1.5-pro", "gemini-1.5-flash")
    ai_temperature: Share = 0.2
    ai_max_tokens: Count = 4096
    ai_rate_qps: Annotated[float, Field(gt=0, allow_inf_nan=False), expect("a number above 0")] = 3.0
    """Requests per second for the default model. Given, it replaces the catalog's; else it is for a model that is not in there."""

    comm_hmac_active_key_id: KeyId = "prod-v1"
    comm_hmac_default_secret: Annotated[HmacSecret | None, expect("a secret of at least 32 characters")] = None
    comm_hmac_keys: Annotated[Mapping[str, HmacSecret], expect("a secret of at least 32 characters")] = Field(default_factory=dict)
    """Every `COMM_HMAC_KEY_<NAME>`, by NAME as it is written there."""
    comm_qos: Qos = "at-least-once"
    comm_idempotency_ttl_sec: Count = 86400

    webhook_secret: WebhookSecret = None
    """Signs what is told to `callback_url`, by standardwebhooks.com; in production the function webhook needs it."""

    orch_enabled: Flag = True
    orch_max_retries: Annotated[int, Field(ge=0), expect("a whole number, 0 or more")] = 3
    max_concurrent_pipelines: Count = 10
    retention_days: Annotated[int, Field(ge=0, le=36_500), expect("a whole number of days up to 36500, 0 to keep everything")] = 30
    """How long workflows are kept after they ended, and dead letters after they were recorded."""

    outputs_url: OutputsUrl = None
    """Where outputs over 64 KB are kept; without it a folder in `AGENT_TEAM_HOME`, in production in messages and state."""

    agent_bus_provider: BusProvider = "memory"
    redis_url: RedisUrl = None
    guards_backend: GuardsBackend = Field(default_factory=_default_backend)
    """Where it is not given: redis when there is a `REDIS_URL`, else memory."""
    guards_instances: Count = 10
    """Instances that ever run at once: while the guards' store is down, each takes one of so many shares of every rate limit."""
    push_audience: Annotated[Text | None, expect("the audience that the push subscriptions ask tokens for")] = None
    """When it is given, the push door takes only requests with a token that Google signed for it."""
    push_service_account: Annotated[Text | None, expect("the email of the service account that pushes")] = None
    push_verified_by: PushVerifier = "door"
    """Who verifies the signature of that token. `cloud-run` only where its IAM check of callers is on and nobody gets past it."""
    api_audience: Annotated[Text | None, expect("the audience of the Google identity tokens that callers of the API show")] = None
    """When it is given, the API also takes tokens that Google signed for it, in the name of one of `API_CALLERS`."""
    api_callers: Callers = Field(default_factory=dict)
    """What each account may do, by email in lower case."""
    api_rate_per_minute: Count = 100
    """Requests of one client address."""
    api_proxy_hops: Annotated[int, Field(ge=0), expect("a whole number, 0 or more")] = 0
    """Proxies in front of the gateway, each of which appends the address that it was called from to `X-Forwarded-For`."""
    public_url: HttpUrl = None
    """Where people reach the gateway: what links to approvals begin with. Else they begin with what the request was sent to."""
    pubsub_emulator_host: Annotated[Text | None, expect("host:port of a Pub/Sub emulator")] = None
    database_url: PostgresUrl = None
    supabase_url: HttpUrl = None
    supabase_service_role_key: Annotated[SecretStr | None, expect("the project's service role key")] = None

    log_level: LogLevel = "info"
    sentry_dsn: SentryDsn = None
    sentry_environment: Text = "production"
    sentry_traces_sample_rate: Share = 0.1

    max_payload_bytes: Count = 524288
    default_tool_timeout_ms: Count = 60000

    gcp_project_id: Annotated[Text | None, expect("a Google Cloud project id")] = None
    gcp_location: Text = "us-central1"
    secrets_from: SecretsFrom = "environment"
    """`secret-manager`: functions fetch the secrets of their function.yaml as they start, and all keys that sign are kept there."""
    cloudflare_zone_id: Annotated[Text | None, expect("a Cloudflare zone id")] = None

    enable_debate_mode: Flag = True
    enable_circuit_breaker: Flag = True
    enable_retry_logic: Flag = True
    enable_idempotency: Flag = True
    enable_cache: Flag = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments only: the library's own sources stop at the first kind of mistake and know no rules across variables."""
        return (init_settings,)

    @property
    def is_production(self) -> bool:
        """Whether everything that production requires must be there."""
        return self.app_env == "production"

    @property
    def models(self) -> tuple[str, ...]:
        """The chain of models in the order in which they are asked, each once."""
        return tuple(dict.fromkeys((self.ai_model_default, *self.ai_model_fallbacks)))

    def redacted(self) -> dict[str, str]:
        """Every setting by its variable's name, fit to be shown: of URLs the host, of other secrets only that they are set."""
        shown = {variable: _shown(name, getattr(self, name)) for variable, name in FIELDS.items()}
        return shown | {f"{KEY_PREFIX}{name}": _HIDDEN for name in self.comm_hmac_keys}

    def secret_values(self) -> tuple[str, ...]:
        """Every text that must not be seen anywhere: the secrets, and the passwords inside URLs as written and as decoded."""
        values = [value for name in SECRETS if isinstance(value := getattr(self, name), SecretStr)]
        texts = [secret.get_secret_value() for secret in (*values, *self.comm_hmac_keys.values())]
        passwords = [password for text in texts for password in _passwords(text)]
        return tuple(dict.fromkeys((*texts, *passwords)))


def redact_url(url: str | SecretStr) -> str:
    """Scheme, host and path of a URL: enough to recognise a server, never the user, the password or the query."""
    text = url.get_secret_value() if isinstance(url, SecretStr) else url
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _HIDDEN
    authority, slash, tail = rest.partition("/")
    # A password with a bare slash, question mark or hash moves the "@" out of the authority: then nobody can say where the host is.
    if "@" in tail or re.search(r"[?#].*@", authority):
        return f"{scheme}://{_HIDDEN}"
    return re.split(r"[?#]", f"{scheme}://{authority.rpartition('@')[2]}{slash}{tail}")[0]


def variable_of(field: str) -> str:
    """The environment variable that a field of Settings is read from."""
    return "NODE_ENV" if field == "app_env" else field.upper()


def _holds_secret(annotation: object) -> bool:
    return annotation is SecretStr or any(_holds_secret(part) for part in get_args(annotation))


SECRETS = tuple(name for name, field in Settings.model_fields.items() if _holds_secret(field.annotation))
FIELDS = {variable_of(name): name for name in Settings.model_fields if name != "comm_hmac_keys"}
"""Of every variable but the keys'."""


def _shown(field: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return redact_url(value) if field.endswith("_url") else _HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text}" for name, text in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _passwords(text: str) -> Iterator[str]:
    try:
        password = urlsplit(text).password
    except ValueError:
        return
    if password:
        yield from (password, unquote(password))
