import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.telemetry import redact_text, redact_values
from shared.telemetry.redaction import REDACTED, RedactingFilter, names_a_secret, redact_fields


def record(message: str, *args: Any, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("tests").makeRecord("tests", logging.INFO, __file__, 1, message, args, None, extra=extra)


@pytest.mark.parametrize(
    "key",
    [
        *(
            "password",
            "PASSWORD",
            "dbPassword",
            "db_password",
            "passwd",
            "pwd",
            "secret",
            "client-secret",
            "clientSecret",
            "secrets",
        ),
        *(
            "token",
            "access_token",
            "idToken",
            "authorization",
            "Authorization",
            "Proxy-Authorization",
            "api_key",
            "apiKey",
            "apikey",
        ),
        *(
            "API_KEY",
            "x-goog-api-key",
            "GEMINI_API_KEY",
            "private_key",
            "service_role_key",
            "cookie",
            "Set-Cookie",
            "credentials",
            "SENTRY_DSN",
        ),
    ],
)
def test_a_key_that_names_a_secret(key: str) -> None:
    assert names_a_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "tokens",
        "inputTokens",
        "max_tokens",
        "key",
        "hmac-key-id",
        "idempotency_key",
        "author",
        "step",
        "status",
        "secretary",
        "",
        "1",
    ],
)
def test_a_key_that_names_no_secret(key: str) -> None:
    assert not names_a_secret(key)


def test_secrets_are_taken_out_at_every_depth_and_counts_stay() -> None:
    fields = {
        "request": {"headers": [{"Authorization": "Basic abc"}, ("x", {"apiKey": ["a", "b"]})], 1: "one"},
        "token": 4096,
        "password": None,
        "secret": False,
        "tokens": 12,
        "path": b"bytes",
    }
    assert redact_fields(fields) == {
        "request": {"headers": [{"Authorization": REDACTED}, ["x", {"apiKey": REDACTED}]], 1: "one"},
        "token": 4096,
        "password": None,
        "secret": False,
        "tokens": 12,
        "path": b"bytes",
    }
    assert fields["token"] == 4096


def test_a_value_that_contains_itself_ends() -> None:
    endless: dict[str, Any] = {}
    endless["again"] = [endless]
    assert "<" in str(redact_fields(endless))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer eyJ.abc-_~+/==, then", f"Authorization: Bearer {REDACTED}, then"),
        ("bearer abc", f"bearer {REDACTED}"),
        ("the forebearer came", "the forebearer came"),
        ("at postgresql://user:pw@host:5432/db now", f"at postgresql://{REDACTED}@host:5432/db now"),
        ("redis://:pw@h and https://example.com/a@b", f"redis://{REDACTED}@h and https://example.com/a@b"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_bearer_tokens_and_passwords_in_urls_are_known_by_their_shape(text: str, shown: str) -> None:
    assert redact_text(text) == shown


def test_a_long_text_of_urls_is_redacted_in_no_time() -> None:
    text = "a-" * 100_000 + "://" + "x" * 100_000
    assert redact_text(text) == text


@given(st.text(), st.text())
def test_a_registered_value_is_cut_out_of_every_text(before: str, after: str) -> None:
    redact_values("registered-value-1", "registered-value-1-longer")
    assert "registered-value-1" not in redact_text(f"{before}registered-value-1{after}registered-value-1-longer")
    assert redact_text("registered-value-1-longer") == REDACTED


def test_short_values_are_not_registered() -> None:
    redact_values("", "step", "1234567")
    assert redact_text("step 1234567") == "step 1234567"


def test_the_filter_takes_secrets_out_of_message_and_extra_fields() -> None:
    redact_values("registered-value-2")
    changed = record("call with %s", "registered-value-2", api_key="k", detail={"note": "registered-value-2", "n": 1})
    assert RedactingFilter().filter(changed)
    assert changed.getMessage() == f"call with {REDACTED}"
    assert changed.__dict__["api_key"] == REDACTED
    assert changed.__dict__["detail"] == {"note": REDACTED, "n": 1}


def test_the_filter_leaves_other_records_as_they_were() -> None:
    kept = record("step %s done in %d ms", "plan", 5, workflowId="wf_1", duration=5.0)
    before = dict(kept.__dict__)
    assert RedactingFilter().filter(kept)
    assert kept.__dict__ == before


def test_arguments_that_do_not_fit_are_no_error() -> None:
    kept = record("%d steps", "registered-value-2")
    assert RedactingFilter().filter(kept)


def test_what_opens_an_approval_is_known_by_the_path_that_it_stands_in() -> None:
    line = 'GET "/approve/WyJ3Zl8w-x_.qJmt6wzV" 200, https://team.example.com/approve/abc.d%2Fef) and /approve alone'
    assert redact_text(line) == f'GET "/approve/{REDACTED}" 200, https://team.example.com/approve/{REDACTED}) and /approve alone'
