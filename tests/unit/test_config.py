import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from shared.config import Settings, load_settings, redact_url, secrets_project, variable_of
from shared.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[2] / ".env.example"
SECRET = "a-secret-of-at-least-32-characters"
PRODUCTION = {
    "NODE_ENV": "production",
    "GEMINI_API_KEY": "AIza-key",
    "COMM_HMAC_DEFAULT_SECRET": SECRET,
    "AGENT_BUS_PROVIDER": "pubsub",
    "GCP_PROJECT_ID": "acme",
    "PUSH_AUDIENCE": "https://agents.example",
    "PUSH_SERVICE_ACCOUNT": "push@acme.iam.gserviceaccount.com",
    "DATABASE_URL": "postgresql://team:hunter2@db.example:5432/postgres",
    "SUPABASE_URL": "https://acme.supabase.co",
    "SUPABASE_SERVICE_ROLE_KEY": "service-role-key",
    "SENTRY_DSN": "https://publickey@sentry.example/1",
}
NEEDED_BY_CHOICE = {"NODE_ENV", "GCP_PROJECT_ID", "PUSH_AUDIENCE", "PUSH_SERVICE_ACCOUNT"}
"""Of these, those that production itself does not ask for."""
DEFAULTS = {
    "PORT": "8080",
    "HOST": "0.0.0.0",
    "NODE_ENV": "development",
    "AGENT_TEAM_HOME": ".agent-team",
    "AGENT_TEAM_URL": "",
    "AGENT_TEAM_API_KEY": "",
    "GEMINI_API_KEY": "",
    "GEMINI_BASE_URL": "",
    "AI_MODEL_DEFAULT": "gemini-2.5-pro",
    "AI_MODEL_FALLBACKS": "gemini-1.5-pro,gemini-1.5-flash",
    "AI_TEMPERATURE": "0.2",
    "AI_MAX_TOKENS": "4096",
    "AI_RATE_QPS": "3.0",
    "COMM_HMAC_ACTIVE_KEY_ID": "prod-v1",
    "COMM_HMAC_DEFAULT_SECRET": "",
    "COMM_QOS": "at-least-once",
    "COMM_IDEMPOTENCY_TTL_SEC": "86400",
    "WEBHOOK_SECRET": "",
    "ORCH_ENABLED": "true",
    "ORCH_MAX_RETRIES": "3",
    "AGENT_BUS_PROVIDER": "memory",
    "REDIS_URL": "",
    "DATABASE_URL": "",
    "SUPABASE_URL": "",
    "SUPABASE_SERVICE_ROLE_KEY": "",
    "LOG_LEVEL": "info",
    "SENTRY_DSN": "",
    "SENTRY_ENVIRONMENT": "production",
    "SENTRY_TRACES_SAMPLE_RATE": "0.1",
    "MAX_PAYLOAD_BYTES": "524288",
    "DEFAULT_TOOL_TIMEOUT_MS": "60000",
    "MAX_CONCURRENT_PIPELINES": "10",
    "RETENTION_DAYS": "30",
    "OUTPUTS_URL": "",
    "GCP_PROJECT_ID": "",
    "GCP_LOCATION": "us-central1",
    "SECRETS_FROM": "environment",
    "CLOUDFLARE_ZONE_ID": "",
    "PUSH_AUDIENCE": "",
    "PUSH_SERVICE_ACCOUNT": "",
    "PUSH_VERIFIED_BY": "door",
    "API_AUDIENCE": "",
    "API_CALLERS": "",
    "API_RATE_PER_MINUTE": "100",
    "API_PROXY_HOPS": "0",
    "PUBLIC_URL": "",
    "PUBSUB_EMULATOR_HOST": "",
    "ENABLE_DEBATE_MODE": "true",
    "ENABLE_CIRCUIT_BREAKER": "true",
    "ENABLE_RETRY_LOGIC": "true",
    "ENABLE_IDEMPOTENCY": "true",
    "ENABLE_CACHE": "false",
    "GUARDS_BACKEND": "memory",
    "GUARDS_INSTANCES": "10",
}
"""What operators were promised, independent of the code."""


def mistakes(environ: dict[str, str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(environ)
    lines = str(caught.value).splitlines()
    return lines if len(lines) == 1 else [line.strip() for line in lines[1:]]


def test_an_empty_environment_gives_the_promised_defaults() -> None:
    assert load_settings({}).redacted() == DEFAULTS


def test_every_setting_has_a_promised_default_and_says_what_it_expects() -> None:
    assert {variable_of(name) for name in Settings.model_fields} == DEFAULTS.keys() | {"COMM_HMAC_KEYS"}
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_every_value_reaches_its_setting() -> None:
    settings = load_settings(
        PRODUCTION
        | {"PORT": "0", "AI_MODEL_FALLBACKS": "a, b ,", "AI_TEMPERATURE": "1", "ORCH_MAX_RETRIES": "0", "LOG_LEVEL": "WARN"}
    )
    assert settings.is_production
    assert (settings.port, settings.orch_max_retries, settings.ai_temperature) == (0, 0, 1.0)
    assert settings.models == ("gemini-2.5-pro", "a", "b")
    assert settings.log_level == "warn"
    assert settings.agent_bus_provider == "pubsub"
    assert settings.comm_hmac_default_secret == SecretStr(SECRET)
    assert settings.database_url == SecretStr(PRODUCTION["DATABASE_URL"])


def test_the_chain_of_models_names_each_model_once() -> None:
    assert load_settings({"AI_MODEL_DEFAULT": "m", "AI_MODEL_FALLBACKS": "n,m,n"}).models == ("m", "n")
    assert load_settings({"AI_MODEL_DEFAULT": "m", "AI_MODEL_FALLBACKS": ","}).models == ("m",)


def test_further_hmac_keys_are_collected_by_name() -> None:
    settings = load_settings({"COMM_HMAC_KEY_V2": SECRET, "COMM_HMAC_KEY_PROD_V3": SECRET + "3", "COMM_HMAC_KEY_V4": " "})
    assert settings.comm_hmac_keys == {"V2": SecretStr(SECRET), "PROD_V3": SecretStr(SECRET + "3")}


@pytest.mark.parametrize(
    ("text", "flag"),
    [("true", True), ("1", True), ("YES", True), ("on", True), ("false", False), ("0", False), ("no", False), ("Off", False)],
)
def test_a_flag_is_written_in_any_of_the_usual_ways(text: str, flag: bool) -> None:
    assert load_settings({"ENABLE_CACHE": text}).enable_cache is flag


def test_blank_values_count_as_unset_and_blanks_around_a_value_do_not_belong_to_it() -> None:
    settings = load_settings({"AI_TEMPERATURE": "  ", "GEMINI_API_KEY": "", "HOST": " ::1\n", "AI_UNKNOWN": ""})
    assert settings.ai_temperature == 0.2
    assert settings.gemini_api_key is None
    assert settings.host == "::1"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({})
    with pytest.raises(ValidationError):
        setattr(settings, "port", 1)  # noqa: B010


@pytest.mark.parametrize("variable", ["NODE_ENV", "APP_ENV"])
def test_the_environment_has_two_names(variable: str) -> None:
    assert load_settings({variable: "Staging"}).app_env == "staging"


def test_the_two_names_of_the_environment_may_agree_but_not_differ() -> None:
    assert load_settings({"NODE_ENV": "test", "APP_ENV": "Test"}).app_env == "test"
    [mistake] = mistakes({"NODE_ENV": "test", "APP_ENV": "staging"})
    assert mistake.startswith("NODE_ENV and APP_ENV differ")


@pytest.mark.parametrize("variable", sorted(PRODUCTION.keys() - NEEDED_BY_CHOICE))
def test_production_requires(variable: str) -> None:
    load_settings(PRODUCTION)
    [mistake] = mistakes({name: value for name, value in PRODUCTION.items() if name != variable})
    assert mistake.startswith(f"{variable} is required in production; expected ")


AGENT_SECRETS = ("AGENT_TEAM_API_KEY", "COMM_HMAC_KEYS", "GEMINI_API_KEY")
SERVICE = {name: PRODUCTION[name] for name in (*NEEDED_BY_CHOICE, "AGENT_BUS_PROVIDER", "SENTRY_DSN")}


def test_a_function_needs_its_own_secrets_in_production_and_no_others() -> None:
    agent = SERVICE | {"SECRETS_FROM": "secret-manager", "GEMINI_API_KEY": "AIza-key"}
    assert load_settings(agent, secrets=AGENT_SECRETS).database_url is None
    for missing in ("GEMINI_API_KEY", "SENTRY_DSN", "AGENT_BUS_PROVIDER"):
        with pytest.raises(ConfigurationError, match=f"^{missing} is required in production"):
            load_settings({name: value for name, value in agent.items() if name != missing}, secrets=AGENT_SECRETS)
    with pytest.raises(ConfigurationError, match=r"^DATABASE_URL is required in production; expected a URL"):
        load_settings(agent, secrets=("COMM_HMAC_KEYS", "DATABASE_URL"))
    with pytest.raises(ConfigurationError, match=r"^WEBHOOK_SECRET is required in production"):
        load_settings(agent, secrets=("COMM_HMAC_KEYS", "WEBHOOK_SECRET"))


def test_a_function_that_signs_without_secret_manager_needs_the_default_secret() -> None:
    with pytest.raises(ConfigurationError, match=r"^COMM_HMAC_DEFAULT_SECRET is required in production"):
        load_settings(SERVICE, secrets=("COMM_HMAC_KEYS",))
    load_settings(SERVICE, secrets=())
    load_settings({**PRODUCTION, "SECRETS_FROM": "secret-manager", "COMM_HMAC_DEFAULT_SECRET": ""})


def test_the_project_of_the_secrets_is_known_before_they_are() -> None:
    assert secrets_project({"SECRETS_FROM": " Secret-Manager", "GCP_PROJECT_ID": "acme "}) == "acme"
    assert secrets_project({"GCP_PROJECT_ID": "acme"}) is None
    assert secrets_project({"SECRETS_FROM": "secret-manager"}) is None
    [mistake] = mistakes({"SECRETS_FROM": "secret-manager"})
    assert mistake.startswith("GCP_PROJECT_ID is needed because SECRETS_FROM is secret-manager")


def test_a_memory_bus_in_production_must_be_meant() -> None:
    assert load_settings(PRODUCTION | {"AGENT_BUS_PROVIDER": "memory"}).agent_bus_provider == "memory"


@pytest.mark.parametrize("environment", ["development", "test", "staging"])
def test_elsewhere_nothing_is_required(environment: str) -> None:
    assert load_settings({"NODE_ENV": environment}).comm_hmac_default_secret is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("NODE_ENV", "prod"),
        ("AI_TEMPERATURE", "1.01"),
        ("AI_TEMPERATURE", "-0.1"),
        ("AI_TEMPERATURE", "nan"),
        ("AI_MAX_TOKENS", "0"),
        ("AI_MAX_TOKENS", "1.5"),
        ("AI_RATE_QPS", "0"),
        ("AI_RATE_QPS", "inf"),
        ("COMM_HMAC_ACTIVE_KEY_ID", "two words"),
        ("COMM_QOS", "exactly-once"),
        ("COMM_IDEMPOTENCY_TTL_SEC", "0"),
        ("ORCH_ENABLED", "maybe"),
        ("ORCH_MAX_RETRIES", "-1"),
        ("AGENT_BUS_PROVIDER", "kafka"),
        ("GUARDS_BACKEND", "pubsub"),
        ("SUPABASE_URL", "acme.supabase.co"),
        ("SUPABASE_URL", "https://"),
        ("LOG_LEVEL", "loud"),
        ("SENTRY_TRACES_SAMPLE_RATE", "2"),
        ("MAX_PAYLOAD_BYTES", "512KB"),
        ("DEFAULT_TOOL_TIMEOUT_MS", "0"),
        ("MAX_CONCURRENT_PIPELINES", "0"),
        ("RETENTION_DAYS", "-1"),
        ("OUTPUTS_URL", "s3://bucket"),
        ("OUTPUTS_URL", "gs://"),
        ("RETENTION_DAYS", "36501"),
        ("GUARDS_INSTANCES", "0"),
    ],
)
def test_a_value_that_cannot_be_used_is_named_with_what_is_expected(variable: str, value: str) -> None:
    [mistake] = mistakes({variable: value})
    assert mistake.startswith(f"{variable} is {value!r}; expected ")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("COMM_HMAC_DEFAULT_SECRET", "x" * 31),
        ("COMM_HMAC_KEY_V2", "x" * 31),
        ("REDIS_URL", "http://:hunter2@redis"),
        ("DATABASE_URL", "mysql://u:hunter2@db"),
        ("DATABASE_URL", "hunter2"),
        ("SENTRY_DSN", "publickey@sentry"),
        ("WEBHOOK_SECRET", "x" * 40),
        ("WEBHOOK_SECRET", "whsec_A"),
        ("WEBHOOK_SECRET", "whsec-" + "A" * 32),
        ("WEBHOOK_SECRET", "whsec_" + "A" * 31),
        ("WEBHOOK_SECRET", "whsec_" + "A" * 88),
        ("WEBHOOK_SECRET", "whsec_" + "A-_A" * 8),
        ("WEBHOOK_SECRET", "whsec_" + "A" * 33),
    ],
)
def test_a_secret_that_cannot_be_used_is_named_and_not_shown(variable: str, value: str) -> None:
    [mistake] = mistakes({variable: value})
    assert mistake.startswith(f"{variable} is not usable; expected ")
    assert value not in mistake
    assert "hunter2" not in mistake


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WEBHOOK_SECRET", "whsec_" + "A" * 32),
        ("WEBHOOK_SECRET", "whsec_" + "A+/A" * 21 + "AA=="),
        ("WEBHOOK_SECRET", "whsec_" + "A" * 86),
    ],
)
def test_a_webhooks_secret_has_24_to_64_bytes_with_or_without_padding(variable: str, value: str) -> None:
    load_settings({variable: value})


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("REDIS_URL", "rediss://h:1"),
        ("REDIS_URL", "unix:///run/redis.sock"),
        ("DATABASE_URL", "postgres://h"),
        ("SUPABASE_URL", "http://h"),
    ],
)
def test_the_other_forms_of_a_url_are_taken_too(variable: str, value: str) -> None:
    load_settings({variable: value})


@pytest.mark.parametrize(
    ("environ", "needed"),
    [
        ({"AGENT_BUS_PROVIDER": "redis"}, "REDIS_URL is needed because AGENT_BUS_PROVIDER is redis"),
        ({"GUARDS_BACKEND": "redis"}, "REDIS_URL is needed because GUARDS_BACKEND is redis"),
        ({"AGENT_BUS_PROVIDER": "pubsub"}, "GCP_PROJECT_ID is needed because AGENT_BUS_PROVIDER is pubsub"),
        ({"GUARDS_BACKEND": "firestore"}, "GCP_PROJECT_ID is needed because GUARDS_BACKEND is firestore"),
        ({"AGENT_BUS_PROVIDER": "redis", "GUARDS_BACKEND": "redis"}, "REDIS_URL is needed because AGENT_BUS_PROVIDER is redis"),
    ],
)
def test_a_choice_that_needs_another_setting_says_so_once(environ: dict[str, str], needed: str) -> None:
    [mistake] = mistakes(environ)
    assert mistake.startswith(needed)
    load_settings(environ | {"REDIS_URL": "redis://localhost", "GCP_PROJECT_ID": "acme"})


def test_a_pushed_message_must_be_provable_in_production() -> None:
    without = {name: value for name, value in PRODUCTION.items() if not name.startswith("PUSH_")}
    [mistake] = mistakes(without)
    assert mistake.startswith("PUSH_AUDIENCE is required in production with AGENT_BUS_PROVIDER=pubsub; expected ")
    load_settings(without | {"AGENT_BUS_PROVIDER": "redis", "REDIS_URL": "redis://cache"})

    [mistake] = mistakes({"PUSH_AUDIENCE": "https://agents.example"})
    assert mistake.startswith("PUSH_SERVICE_ACCOUNT is needed because PUSH_AUDIENCE is given; expected ")


def test_callers_are_named_with_what_they_may_do() -> None:
    given = {"API_AUDIENCE": "https://api.example", "API_CALLERS": "CI@p.iam.gserviceaccount.com = Submit, ann@example.com=read,"}
    assert load_settings(given).api_callers == {"ci@p.iam.gserviceaccount.com": "submit", "ann@example.com": "read"}


@pytest.mark.parametrize(
    "callers", ["a@b.c", "a@b.c=", "a@b.c=all", "=read", "ab=read", "a@b.c=read,A@B.c=admin", "a@b.c=read=admin"]
)
def test_callers_that_could_be_misread_are_refused(callers: str) -> None:
    [mistake] = mistakes({"API_AUDIENCE": "https://api.example", "API_CALLERS": callers})
    assert mistake.startswith("API_CALLERS is ")
    assert "expected emails, each with what it may do" in mistake


def test_an_audience_without_callers_and_callers_without_an_audience_open_nothing() -> None:
    [mistake] = mistakes({"API_AUDIENCE": "https://api.example"})
    assert mistake.startswith("API_CALLERS is needed because API_AUDIENCE is given; expected ")
    [mistake] = mistakes({"API_CALLERS": "a@b.c=read"})
    assert mistake.startswith("API_AUDIENCE is needed because API_CALLERS is given; expected ")


def test_the_guards_follow_redis_unless_told_otherwise() -> None:
    redis = {"REDIS_URL": "redis://localhost"}
    assert load_settings({}).guards_backend == "memory"
    assert load_settings(redis).guards_backend == "redis"
    assert load_settings(redis | {"GUARDS_BACKEND": "memory"}).guards_backend == "memory"


def test_a_wrong_redis_url_is_one_mistake_and_not_three() -> None:
    [mistake] = mistakes({"REDIS_URL": "localhost", "AGENT_BUS_PROVIDER": "redis", "GUARDS_BACKEND": "redis"})
    assert mistake.startswith("REDIS_URL is not usable")


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("AI_TEMPRATURE", "did you mean AI_TEMPERATURE?"),
        ("ORCH_MAX_RETRY", "did you mean ORCH_MAX_RETRIES?"),
        ("COMM_HMAC_KEYV2", "did you mean COMM_HMAC_KEY_<NAME>?"),
        ("COMM_HMAC_KEY_v2", "did you mean COMM_HMAC_KEY_<NAME>?"),
        ("ENABLE_XYZZY_PLUGH", "remove it"),
        ("AGENT_BUS", "did you mean AGENT_BUS_PROVIDER?"),
        ("WEBHOOK_SECERT", "did you mean WEBHOOK_SECRET?"),
    ],
)
def test_an_unknown_variable_under_one_of_our_prefixes_is_a_misspelling(variable: str, hint: str) -> None:
    assert mistakes({variable: "1"}) == [f"{variable} is not a setting; {hint}"]


def test_variables_of_others_are_left_alone() -> None:
    load_settings({"PATH": "/bin", "AIRFLOW_HOME": "x", "AGENT_TOOLSDIRECTORY": "/opt/hostedtoolcache"})


def test_all_mistakes_are_reported_at_once() -> None:
    found = mistakes(
        {
            "NODE_ENV": "production",
            "PORT": "http",
            "AI_TEMPERATURE": "3",
            "AI_TEMPRATURE": "0.3",
            "COMM_HMAC_KEY_V2": "short",
            "COMM_HMAC_KEY_V3": "shorter",
            "GUARDS_BACKEND": "redis",
        }
    )
    assert {mistake.split()[0] for mistake in found} == {
        *("PORT", "AI_TEMPERATURE", "AI_TEMPRATURE", "COMM_HMAC_KEY_V2", "COMM_HMAC_KEY_V3", "REDIS_URL"),
        *(PRODUCTION.keys() - NEEDED_BY_CHOICE),
    }
    assert len(found) == 13


printable = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=12, max_size=60)


@given(
    secret=printable,
    variable=st.sampled_from(
        ["GEMINI_API_KEY", "COMM_HMAC_DEFAULT_SECRET", "COMM_HMAC_KEY_V2", "REDIS_URL", "DATABASE_URL", "WEBHOOK_SECRET"]
    ),
)
def test_no_secret_is_ever_shown(secret: str, variable: str) -> None:
    secret = f"<{secret}>"  # or it may happen to be a word that is shown anyway
    try:
        settings = load_settings({variable: secret, "PORT": "1"})
    except ConfigurationError as error:
        shown = str(error)
    else:
        assert secret in settings.secret_values()
        shown = f"{settings!r} {settings} {settings.redacted()} {settings.model_dump()} {settings.model_dump_json()}"
    assert secret not in shown


def test_the_librarys_own_errors_show_no_value_either() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"database_url": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_what_may_be_shown_of_the_settings_is_the_host_and_no_password() -> None:
    shown = load_settings(PRODUCTION | {"COMM_HMAC_KEY_V2": SECRET, "REDIS_URL": "redis://:hunter2@cache:6379/0"}).redacted()
    assert shown["DATABASE_URL"] == "postgresql://db.example:5432/postgres"
    assert shown["REDIS_URL"] == "redis://cache:6379/0"
    assert shown["COMM_HMAC_DEFAULT_SECRET"] == shown["COMM_HMAC_KEY_V2"] == shown["SENTRY_DSN"] == "**********"
    assert "hunter2" not in str(shown)
    assert SECRET not in str(shown)


def test_secret_values_are_the_secrets_and_the_passwords_inside_urls() -> None:
    settings = load_settings(PRODUCTION | {"COMM_HMAC_KEY_V2": SECRET + "2", "REDIS_URL": "redis://:p%40ss@cache"})
    assert {SECRET, SECRET + "2", "AIza-key", "service-role-key", "hunter2", "p%40ss", "p@ss"} <= set(settings.secret_values())
    assert load_settings({"REDIS_URL": "redis://[broken"}).secret_values() == ("redis://[broken",)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:pw@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://user:pw@a:1,b:2/db?password=pw#pw", "postgresql://a:1,b:2/db"),
        ("postgresql:///db?host=/run", "postgresql:///db"),
        ("redis://host", "redis://host"),
        ("redis://:p@w@host/0", "redis://host/0"),
        ("redis://host?password=pw", "redis://host"),
        ("postgresql://user:p/w@host/db", "postgresql://**********"),
        ("postgresql://user:p?w@host/db", "postgresql://**********"),
        ("postgresql://user:p#w@host/db", "postgresql://**********"),
        ("postgresql://host/db?password=p@w", "postgresql://**********"),
        ("user:pw@host", "**********"),
    ],
)
def test_a_redacted_url_shows_its_host_and_never_its_password(url: str, shown: str) -> None:
    assert redact_url(url) == redact_url(SecretStr(url)) == shown


@given(password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_no_password_survives_redaction(password: str) -> None:
    password = f"<{password}>"
    assert password not in redact_url(f"postgresql://user:{password}@host/db")


def test_a_file_lies_under_the_environment(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        '\ufeff# a comment\nexport PORT=1\nHOST="file"  # why\nAI_MAX_TOKENS=7\nCOMM_HMAC_KEY_V2=\'' + SECRET + "'\n",
        encoding="utf-8",
    )
    settings = load_settings({"PORT": "2", "HOST": " "}, env_file=file)
    assert (settings.port, settings.host, settings.ai_max_tokens) == (2, "file", 7)
    assert settings.comm_hmac_keys == {"V2": SecretStr(SECRET)}


def test_the_environments_alias_beats_the_files_name(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("NODE_ENV=development\n")
    assert load_settings({"APP_ENV": "test"}, env_file=file).app_env == "test"


def test_a_file_is_taken_literally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "leaked")
    file = tmp_path / ".env"
    file.write_text("HOST=${ELSEWHERE}\n")
    assert load_settings({}, env_file=file).host == "${ELSEWHERE}"


def test_a_line_that_is_no_setting_is_named_by_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("PORT=1\nHOST\nAI_TEMPERATURE=9\n'broken\n")
    with pytest.raises(ConfigurationError) as caught:
        load_settings({}, env_file=file)
    assert f"{file}:2 is not understood; expected NAME=value" in str(caught.value)
    assert f"{file}:4 is not understood" in str(caught.value)
    assert "AI_TEMPERATURE is '9'" in str(caught.value)


def test_a_file_that_cannot_be_read_is_a_mistake_and_a_missing_one_is_not(tmp_path: Path) -> None:
    load_settings({}, env_file=tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings({}, env_file=tmp_path)
    (tmp_path / "binary").write_bytes(b"PORT=\xff")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_settings({}, env_file=tmp_path / "binary")


def test_without_arguments_the_process_environment_and_its_env_file_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"PORT": "1"})
    (tmp_path / ".env").write_text("PORT=2\nHOST=file\n")
    assert (load_settings().port, load_settings().host) == (1, "file")
    assert load_settings(env_file=None).host == "0.0.0.0"
    assert load_settings({}).host == "0.0.0.0"


def test_settings_made_directly_do_not_look_at_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    assert Settings().port == 8080


def test_the_example_names_every_setting_with_its_default_and_a_comment() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    values = dict(line.split("=", 1) for line in lines if re.match(r"[A-Z]", line))
    assert values.keys() == DEFAULTS.keys() | {"APP_ENV", "COMM_HMAC_KEY_V2"}
    assert load_settings(values).redacted() == DEFAULTS
    uncommented = [
        line for above, line in zip(["", *lines], lines, strict=False) if re.match(r"[A-Z]", line) and not above.startswith("# ")
    ]
    assert uncommented == []


def test_the_example_loads_as_a_file() -> None:
    assert load_settings({}, env_file=EXAMPLE).redacted() == DEFAULTS
