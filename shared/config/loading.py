"""The environment → settings, or one error that names everything that is wrong."""

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

from pydantic import ValidationError

from shared.config.settings import FIELDS, KEY_PREFIX, SECRETS, Settings, variable_of
from shared.errors import ConfigurationError

_SHOWN_LENGTH = 60
_KEY_VARIABLE = re.compile(rf"{KEY_PREFIX}([A-Z0-9][A-Z0-9_]*)")
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
        known = name in FIELDS or name in _FOREIGN or _KEY_VARIABLE.fullmatch(name) is not None
        if name.startswith(_OWN_PREFIXES) and not known:
            close = difflib.get_close_matches(name, (*FIELDS, f"{KEY_PREFIX}<NAME>"), n=1, cutoff=0.65)
            mistakes[name] = "is not a setting; " + (f"did you mean {close[0]}?" if close else "remove it")


def _by_field(variables: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {field: variables[name] for name, field in FIELDS.items() if name in variables}
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
            name = f"{KEY_PREFIX}{inner[0]}" if field == "comm_hmac_keys" else variable_of(str(field))
            found = "is not usable" if field in SECRETS else f"is {values[str(field)][:_SHOWN_LENGTH]!r}"
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
        field = FIELDS.get(secret, "")
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
