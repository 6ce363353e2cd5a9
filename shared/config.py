"""Settings: every environment variable of the platform, validated, frozen, and all mistakes reported at once.

`load_settings` is the only place that reads the environment. It lays the environment over a `.env` file; a blank value counts as
unset, and blanks around a value don't belong to it. What it refuses, it refuses together, in one ConfigurationError that names
each variable, what is wrong with it and what is expected. Secrets (URLs with passwords are secrets too) appear in no message,
`repr` or log; `redact_url` and `Settings.redacted` show what may be shown of them.
"""

import base64
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Annotated, Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from shared.errors import ConfigurationError

_HIDDEN = "**********"
_SHOWN_LENGTH = 60


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


def _expect(description: str) -> Any:
    return Field(description=description)


Text = Annotated[str, Field(min_length=1), _expect("text")]
Flag = Annotated[bool, _expect("true, false, 1, 0, yes, no, on or off")]
Count = Annotated[int, Field(gt=0), _expect("a whole number above 0")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _expect("a number from 0.0 to 1.0")]
Names = Annotated[tuple[Text, ...], BeforeValidator(_split), _expect("names separated by commas")]
Email = Annotated[str, Field(pattern=r"^[^\s@=,]+@[^\s@=,]+\z")]
Callers = Annotated[
    Mapping[Email, Literal["read", "submit", "admin"]],
    BeforeValidator(_callers),
    _expect("emails, each with what it may do (read, submit or admin): ci@p.iam.gserviceaccount.com=submit,ann@example.com=read"),
]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+\z"), _expect("letters, digits, dots, underscores and hyphens")]
HmacSecret = Annotated[SecretStr, Field(min_length=32)]
AppEnv = Annotated[
    Literal["development", "test", "staging", "production"],
    BeforeValidator(_lower),
    _expect("development, test, staging or production"),
]
Qos = Annotated[Literal["at-least-once", "at-most-once"], BeforeValidator(_lower), _expect("at-least-once or at-most-once")]
SecretsFrom = Annotated[Literal["environment", "secret-manager"], BeforeValidator(_lower), _expect("environment or secret-manager")]
BusProvider = Annotated[Literal["memory", "redis", "pubsub"], BeforeValidator(_lower), _expect("memory, redis or pubsub")]
GuardsBackend = Annotated[Literal["memory", "redis", "firestore"], BeforeValidator(_lower), _expect("memory, redis or firestore")]
LogLevel = Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_lower), _expect("debug, info, warn or error")]
HttpUrl = Annotated[str | None, _starts_with("https", "http"), _expect("a URL that starts with https:// or http://")]
RedisUrl = Annotated[
    SecretStr | None, _starts_with("redis", "rediss", "unix"), _expect("a URL that starts with redis://, rediss:// or unix://")
]
PostgresUrl = Annotated[SecretStr | None, _starts_with("postgresql", "postgres"), _expect("a URL that starts with postgresql://")]
OutputsUrl = Annotated[
    str | None, _starts_with("file", "gs", "supabase"), _expect("file:///folder, gs://bucket/prefix or supabase://bucket/prefix")
]
SentryDsn = Annotated[SecretStr | None, _starts_with("https", "http"), _expect("a URL that starts with https:// or http://")]

WebhookSecret = Annotated[SecretStr | None, AfterValidator(_webhook_secret), _expect("whsec_ and 24 to 64 bytes in base64")]


def _default_backend(valid: dict[str, Any]) -> Literal["memory", "redis"]:
    return "memory" if valid["redis_url"] is None else "redis"


class Settings(BaseSettings):
    """What the platform was told, by the lower-case name of the variable. None means: not given.

    Made from its arguments alone: the environment, and the rules across variables, belong to `load_settings`.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    app_env: AppEnv = "development"
    """`NODE_ENV`, or its other name `APP_ENV`."""
    port: Annotated[int, Field(ge=0, le=65535), _expect("a port number, 0 for any free one")] = 8080
    host: Text = "0.0.0.0"
    agent_team_home: Annotated[Path, _expect("a folder")] = Path(".agent-team")
    """Where the local platform keeps its data."""

    agent_team_url: HttpUrl = None
    """The gateway that the command line asks."""
    agent_team_api_key: Annotated[SecretStr | None, _expect("an API key of that gateway")] = None
    """Shown to that gateway. Never an option of a command: those are in the list of processes."""

    gemini_api_key: Annotated[SecretStr | None, _expect("a Gemini API key")] = None
    gemini_base_url: HttpUrl = None
    """Another address for the Gemini API: a proxy, or a simulator."""
    ai_model_default: Text = "gemini-2.5-pro"
    ai_model_fallbacks: Names = ("gemini-1.5-pro", "gemini-1.5-flash")
    ai_temperature: Share = 0.2
    ai_max_tokens: Count = 4096
    ai_rate_qps: Annotated[float, Field(gt=0, allow_inf_nan=False), _expect("a number above 0")] = 3.0
    """Requests per second for the default model. Given, it replaces the catalog's; else it is for a model that is not in there."""

    comm_hmac_active_key_id: KeyId = "prod-v1"
    comm_hmac_default_secret: Annotated[HmacSecret | None, _expect("a secret of at least 32 characters")] = None
    comm_hmac_keys: Annotated[Mapping[str, HmacSecret], _expect("a secret of at least 32 characters")] = Field(default_factory=dict)
    """Every `COMM_HMAC_KEY_<NAME>`, by NAME as it is written there."""
    comm_qos: Qos = "at-least-once"
    comm_idempotency_ttl_sec: Count = 86400

    webhook_secret: WebhookSecret = None
    """Signs what is told to `callback_url`, by standardwebhooks.com; in production the function webhook needs it."""

    orch_enabled: Flag = True
    orch_max_retries: Annotated[int, Field(ge=0), _expect("a whole number, 0 or more")] = 3
    max_concurrent_pipelines: Count = 10
    retention_days: Annotated[int, Field(ge=0, le=36_500), _expect("a whole number of days up to 36500, 0 to keep everything")] = 30
    """How long workflows are kept after they ended, and dead letters after they were recorded."""

    outputs_url: OutputsUrl = None
    """Where outputs over 64 KB are kept; without it a folder in `AGENT_TEAM_HOME`, in production in messages and state."""

    agent_bus_provider: BusProvider = "memory"
    redis_url: RedisUrl = None
    guards_backend: GuardsBackend = Field(default_factory=_default_backend)
    """Where it is not given: redis when there is a `REDIS_URL`, else memory."""
    guards_instances: Count = 10
    """Instances that ever run at once: while the guards' store is down, each takes one of so many shares of every rate limit."""
    push_audience: Annotated[Text | None, _expect("the audience that the push subscriptions ask tokens for")] = None
    """When it is given, the push door takes only requests with a token that Google signed for it."""
    push_service_account: Annotated[Text | None, _expect("the email of the service account that pushes")] = None
    push_verified_by: Annotated[Literal["door", "cloud-run"], BeforeValidator(_lower), _expect("door or cloud-run")] = "door"
    """Who verifies the signature of that token. `cloud-run` only where its IAM check of callers is on and nobody gets past it."""
    api_audience: Annotated[Text | None, _expect("the audience of the Google identity tokens that callers of the API show")] = None
    """When it is given, the API also takes tokens that Google signed for it, in the name of one of `API_CALLERS`."""
    api_callers: Callers = Field(default_factory=dict)
    """What each account may do, by email in lower case."""
    api_rate_per_minute: Count = 100
    """Requests of one client address."""
    api_proxy_hops: Annotated[int, Field(ge=0), _expect("a whole number, 0 or more")] = 0
    """Proxies in front of the gateway, each of which appends the address that it was called from to `X-Forwarded-For`."""
    public_url: HttpUrl = None
    """Where people reach the gateway: what links to approvals begin with. Else they begin with what the request was sent to."""
    pubsub_emulator_host: Annotated[Text | None, _expect("host:port of a Pub/Sub emulator")] = None
    database_url: PostgresUrl = None
    supabase_url: HttpUrl = None
    supabase_service_role_key: Annotated[SecretStr | None, _expect("the project's service role key")] = None

    log_level: LogLevel = "info"
    sentry_dsn: SentryDsn = None
    sentry_environment: Text = "production"
    sentry_traces_sample_rate: Share = 0.1

    max_payload_bytes: Count = 524288
    default_tool_timeout_ms: Count = 60000

    gcp_project_id: Annotated[Text | None, _expect("a Google Cloud project id")] = None
    gcp_location: Text = "us-central1"
    secrets_from: SecretsFrom = "environment"
    """`secret-manager`: functions fetch the secrets of their function.yaml as they start, and all keys that sign are kept there."""
    cloudflare_zone_id: Annotated[Text | None, _expect("a Cloudflare zone id")] = None

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
        shown = {variable: _shown(name, getattr(self, name)) for variable, name in _FIELDS.items()}
        return shown | {f"{_KEY_PREFIX}{name}": _HIDDEN for name in self.comm_hmac_keys}

    def secret_values(self) -> tuple[str, ...]:
        """Every text that must not be seen anywhere: the secrets, and the passwords inside URLs as written and as decoded."""
        values = [value for name in _SECRETS if isinstance(value := getattr(self, name), SecretStr)]
        texts = [secret.get_secret_value() for secret in (*values, *self.comm_hmac_keys.values())]
        passwords = [password for text in texts for password in _passwords(text)]
        return tuple(dict.fromkeys((*texts, *passwords)))


def load_settings(
    environ: Mapping[str, str] | None = None,
    *,
    env_file: Path | EllipsisType | None = ...,
    secrets: Collection[str] | None = None,
) -> Settings:
    """Read the settings from `environ` (the process's environment when None) laid over `env_file`.

    When `env_file` is left out, that is `.env` in the working directory for the process's environment and no file otherwise. A file
    that does not exist is an empty one. `secrets` are those of a function, which in production needs them alone; None is for
    whoever needs all. Raises one ConfigurationError that lists every mistake, a line each.
    """
    if isinstance(env_file, EllipsisType):
        env_file = Path(".env") if environ is None else None
    mistakes: dict[str, str] = {}
    file_variables = {} if env_file is None else _one_environment(_read(env_file, mistakes), mistakes)
    variables = file_variables | _one_environment(os.environ if environ is None else environ, mistakes)
    _refuse_unknown(variables, mistakes)
    values = _by_field(variables)
    settings = _validate(values, mistakes)
    for name, mistake in _broken_rules(settings, values, secrets):
        mistakes.setdefault(name, mistake)
    if mistakes:
        lines = [f"{name} {mistake}" for name, mistake in mistakes.items()]
        raise ConfigurationError(lines[0] if len(lines) == 1 else "\n  ".join((f"{len(lines)} settings are wrong:", *lines)))
    return settings


def secrets_project(environ: Mapping[str, str]) -> str | None:
    """The project whose Secret Manager has the secrets of a function that starts; None where its environment has them.

    A value that is wrong is left to `load_settings` to tell.
    """
    wanted = environ.get("SECRETS_FROM", "").strip().lower() == "secret-manager"
    return environ.get("GCP_PROJECT_ID", "").strip() or None if wanted else None


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


_SECRETS = tuple(name for name, field in Settings.model_fields.items() if _holds_secret(field.annotation))
_KEY_PREFIX = "COMM_HMAC_KEY_"
_KEY_VARIABLE = re.compile(rf"{_KEY_PREFIX}([A-Z0-9][A-Z0-9_]*)")
_FIELDS = {variable_of(name): name for name in Settings.model_fields if name != "comm_hmac_keys"}
# Of what begins with API_ alone, much belongs to others.
_OWN_API = ("API_AUDIENCE", "API_CALLER", "API_RATE_", "API_PROXY_")
_OWN_PREFIXES = (*_OWN_API, "AI_", "COMM_", "ORCH_", "ENABLE_", "AGENT_", "GUARDS_", "PUSH_", "SECRETS_", "WEBHOOK_")
# GitHub's hosted runners set it for every job: refusing it would keep the platform from starting there.
_FOREIGN = frozenset({"AGENT_TOOLSDIRECTORY"})
_REQUIRED_IN_PRODUCTION = (
    "gemini_api_key",
    "comm_hmac_default_secret",
    "agent_bus_provider",
    "database_url",
    "supabase_url",
    "supabase_service_role_key",
    "sentry_dsn",
)
_SIGNING_KEYS = "COMM_HMAC_KEYS"
"""In a function's secrets: it signs. Not a variable: the keys are in Secret Manager, or in `COMM_HMAC_*`."""
OPTIONAL_SECRETS = frozenset({"AGENT_TEAM_API_KEY"})
"""Without them a function lacks an ability, and works. (The key of a gateway cannot be made before the gateway is there.)"""
_NEEDS = (
    ("secrets_from", "secret-manager", "gcp_project_id"),
    ("agent_bus_provider", "redis", "redis_url"),
    ("guards_backend", "redis", "redis_url"),
    ("agent_bus_provider", "pubsub", "gcp_project_id"),
    ("guards_backend", "firestore", "gcp_project_id"),
)


def _read(path: Path, mistakes: dict[str, str]) -> dict[str, str]:
    # Imported here because only a machine that has the file needs the parser.
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8-sig") as stream:
            bindings = list(parse_stream(stream))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        mistakes[str(path)] = f"cannot be read ({type(error).__name__}); expected a UTF-8 text file"
        return {}
    for binding in bindings:
        if binding.error or (binding.key is not None and binding.value is None):
            mistakes[f"{path}:{binding.original.line}"] = "is not understood; expected NAME=value"
    return {binding.key: binding.value for binding in bindings if binding.key is not None and binding.value is not None}


def _one_environment(source: Mapping[str, str], mistakes: dict[str, str]) -> dict[str, str]:
    """The values of a source that are not blank, with `APP_ENV` under its other name."""
    variables = {name: value for name, given in source.items() if (value := given.strip())}
    alias = variables.pop("APP_ENV", None)
    if alias is not None and variables.setdefault("NODE_ENV", alias).lower() != alias.lower():
        mistakes["NODE_ENV"] = "and APP_ENV differ; they are two names of one setting, so set one of them"
    return variables


def _refuse_unknown(variables: Mapping[str, str], mistakes: dict[str, str]) -> None:
    for name in sorted(variables):
        known = name in _FIELDS or name in _FOREIGN or _KEY_VARIABLE.fullmatch(name) is not None
        if name.startswith(_OWN_PREFIXES) and not known:
            close = difflib.get_close_matches(name, (*_FIELDS, f"{_KEY_PREFIX}<NAME>"), n=1, cutoff=0.65)
            mistakes[name] = "is not a setting; " + (f"did you mean {close[0]}?" if close else "remove it")


def _by_field(variables: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {field: variables[name] for name, field in _FIELDS.items() if name in variables}
    keys = {match[1]: value for name, value in variables.items() if (match := _KEY_VARIABLE.fullmatch(name))}
    return values | ({"comm_hmac_keys": keys} if keys else {})


def _validate(values: Mapping[str, Any], mistakes: dict[str, str]) -> Settings:
    """The settings; where a value cannot be used it is noted and the default stands in, so that the other rules can be tried."""
    try:
        return Settings(**values)
    except ValidationError as error:
        wrong = [problem["loc"] for problem in error.errors(include_url=False, include_context=False, include_input=False)]
    for field, *inner in wrong:
        if field in values:
            # A default that hangs on a wrong value is reported too, without a value of its own; that is no further mistake.
            name = f"{_KEY_PREFIX}{inner[0]}" if field == "comm_hmac_keys" else variable_of(str(field))
            found = "is not usable" if field in _SECRETS else f"is {values[str(field)][:_SHOWN_LENGTH]!r}"
            mistakes.setdefault(name, f"{found}; expected {Settings.model_fields[str(field)].description}")
    return Settings(**{name: value for name, value in values.items() if name not in {field for field, *_ in wrong}})


def _required(settings: Settings, secrets: Collection[str] | None) -> Iterator[str]:
    """The fields that production has to be given, by a function with these secrets or, for None, by everybody else."""
    for field in _REQUIRED_IN_PRODUCTION:
        if field == "comm_hmac_default_secret":
            signs = secrets is None or _SIGNING_KEYS in secrets
            needed = signs and settings.secrets_from == "environment"
        elif secrets is None or field in ("agent_bus_provider", "sentry_dsn"):
            needed = True
        else:
            needed = variable_of("supabase_service_role_key" if field == "supabase_url" else field) in secrets
        if needed:
            yield field
    for secret in () if secrets is None else secrets:
        field = _FIELDS.get(secret, "")
        if field and field not in _REQUIRED_IN_PRODUCTION and secret not in OPTIONAL_SECRETS:
            yield field


def _broken_rules(settings: Settings, given: Mapping[str, Any], secrets: Collection[str] | None) -> Iterator[tuple[str, str]]:
    """What is wrong across variables, as variable and mistake."""
    if settings.is_production:
        for field in _required(settings, secrets):
            if field not in given:
                yield variable_of(field), f"is required in production; expected {Settings.model_fields[field].description}"
        if settings.agent_bus_provider == "pubsub" and settings.push_audience is None:
            # Without it the push door would believe whoever finds it.
            expected = Settings.model_fields["push_audience"].description
            yield "PUSH_AUDIENCE", f"is required in production with AGENT_BUS_PROVIDER=pubsub; expected {expected}"
    if settings.push_audience is not None and settings.push_service_account is None:
        expected = Settings.model_fields["push_service_account"].description
        yield "PUSH_SERVICE_ACCOUNT", f"is needed because PUSH_AUDIENCE is given; expected {expected}"
    for field, needed in (("api_audience", "api_callers"), ("api_callers", "api_audience")):
        if getattr(settings, field) and not getattr(settings, needed):
            expected = Settings.model_fields[needed].description
            yield variable_of(needed), f"is needed because {variable_of(field)} is given; expected {expected}"
    for field, choice, needed in _NEEDS:
        if getattr(settings, field) == choice and needed not in given:
            description = Settings.model_fields[needed].description
            yield variable_of(needed), f"is needed because {variable_of(field)} is {choice}; expected {description}"


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
