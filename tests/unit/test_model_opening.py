"""Which model the settings open, and what stands in front of it."""

from pathlib import Path
from typing import Any

import pytest

from shared.ai import Model
from shared.ai.catalog import CATALOG, Limit
from shared.ai.gemini import GeminiModel
from shared.ai.guarded import BreakerModel
from shared.ai.limited import LimitedModel
from shared.ai.offline import OfflineModel
from shared.config import load_settings
from shared.runtime import Runtime

KEY = {"GEMINI_API_KEY": "AIza-a-key"}


def opened(**variables: str) -> Any:
    return Runtime(load_settings(variables)).model


def layers(model: Any) -> list[Any]:
    """The model and all that it wraps, the outermost first."""
    inner = getattr(model, "_inner", None)
    return [model, *(() if inner is None else layers(inner))]


def limit(model: Model) -> Limit:
    (limited,) = [layer for layer in layers(model) if isinstance(layer, LimitedModel)]
    return limited._limit


def test_the_offline_model_has_no_quota_and_no_breaker() -> None:
    model = opened()
    assert isinstance(model, OfflineModel)
    assert layers(model) == [model]


def test_a_call_passes_the_breaker_and_then_the_limit() -> None:
    assert [type(layer) for layer in layers(opened(**KEY))] == [BreakerModel, LimitedModel, GeminiModel]


def test_the_provider_asks_where_the_settings_say() -> None:
    address = "http://127.0.0.1:9/"
    (provider,) = [layer for layer in layers(opened(**KEY, GEMINI_BASE_URL=address)) if isinstance(layer, GeminiModel)]
    assert provider._base_url == address


def test_the_breaker_can_be_left_out() -> None:
    assert [type(layer) for layer in layers(opened(**KEY, ENABLE_CIRCUIT_BREAKER="false"))] == [LimitedModel, GeminiModel]


def test_all_layers_use_the_guards_of_the_runtime() -> None:
    live = Runtime(load_settings(KEY))
    breaker, limited, _ = layers(live.model)
    assert breaker._breaker is live.guards.breaker
    assert limited._limiter is live.guards.limiter


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, CATALOG["gemini-2.5-pro"].limit),
        ({"AI_RATE_QPS": "8"}, Limit(8, 8, 10_000, 2_000_000)),
        ({"AI_RATE_QPS": "1"}, Limit(1, 5, 10_000, 2_000_000)),
        ({"AI_MODEL_DEFAULT": "gemini-2.5-flash"}, CATALOG["gemini-2.5-flash"].limit),
        ({"AI_MODEL_DEFAULT": "gemini-2.5-flash", "AI_RATE_QPS": "3"}, Limit(3, 20, 10_000, 1_000_000)),
        ({"AI_MODEL_DEFAULT": "gemini-unheard-of"}, Limit(3, 3)),
        ({"AI_MODEL_DEFAULT": "gemini-unheard-of", "AI_RATE_QPS": "9"}, Limit(9, 9)),
    ],
)
def test_the_catalog_decides_unless_the_operator_says_otherwise(variables: dict[str, str], expected: Limit) -> None:
    assert limit(opened(**KEY, **variables)) == expected


@pytest.mark.parametrize(("model", "usd"), [("gemini-2.5-pro", 10.0), ("gemini-3.5-flash", 9.0), ("gemini-unheard-of", 0.0)])
def test_a_call_costs_what_the_catalog_says(model: str, usd: float) -> None:
    assert layers(opened(**KEY, AI_MODEL_DEFAULT=model))[-1]._price.output_usd == usd


def test_the_example_of_the_settings_leaves_the_rate_to_the_catalog() -> None:
    example = Path(__file__).parents[2] / ".env.example"
    assert "ai_rate_qps" not in load_settings({}, env_file=example).model_fields_set
