"""What is known of models, and what one that nobody knows gets."""

import logging

import pytest

from shared.ai.catalog import CATALOG, Limit, at_rate, find


@pytest.mark.parametrize(
    ("model", "qps", "per_day", "burst"),
    [("gemini-2.5-pro", 3, 10_000, 5), ("gemini-1.5-pro", 5, 15_000, 10), ("gemini-1.5-flash", 10, 50_000, 20)],
)
def test_the_operators_limits_are_those_that_they_were_promised(model: str, qps: float, per_day: int, burst: float) -> None:
    limit = find(model, qps=77).limit
    assert (limit.qps, limit.per_day, limit.burst) == (qps, per_day, burst)


@pytest.mark.parametrize("model", CATALOG)
def test_every_entry_has_a_price_with_its_source_and_date_and_a_limit_of_tokens(model: str) -> None:
    entry = CATALOG[model]
    assert entry.price is not None
    assert 0 < entry.price.input_usd < entry.price.output_usd
    assert entry.price.cached_input_usd is None or 0 < entry.price.cached_input_usd < entry.price.input_usd
    assert entry.source.startswith("https://ai.google.dev/")
    assert entry.as_of is not None
    assert entry.limit.tokens_per_minute is not None
    assert entry.context_tokens is not None
    assert entry.context_tokens >= 1_000_000
    assert entry.limit.burst >= entry.limit.qps > 0


def test_a_model_that_nobody_knows_gets_the_rate_of_the_settings_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    entries = [find("gemini-of-tomorrow", qps=7) for _ in range(3)]
    assert [entry.limit for entry in entries] == [Limit(qps=7, burst=7, per_day=None, tokens_per_minute=None)] * 3
    assert (entries[0].price, entries[0].context_tokens) == (None, None)
    (record,) = caplog.records
    assert (record.levelno, "gemini-of-tomorrow" in record.getMessage()) == (logging.WARNING, True)


def test_a_rate_below_one_a_second_still_has_room_for_one_request() -> None:
    assert find("gemini-of-the-slow", qps=0.2).limit == Limit(qps=0.2, burst=1)


@pytest.mark.parametrize(("qps", "burst"), [(1, 5), (20, 20)])
def test_another_rate_leaves_the_other_limits_and_never_a_burst_below_a_seconds_worth(qps: float, burst: float) -> None:
    assert at_rate(CATALOG["gemini-2.5-pro"].limit, qps) == Limit(qps, burst, 10_000, 2_000_000)
