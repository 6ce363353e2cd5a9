"""Which models the settings open, and what stands in front of each."""

from pathlib import Path
from typing import Any

import pytest

from shared.ai.accounted import AccountedModel
from shared.ai.cached import CachedModel
from shared.ai.catalog import CATALOG, Limit
from shared.ai.fallback import FallbackModel
from shared.ai.gemini import BASE_URL, GeminiModel
from shared.ai.guarded import BreakerModel
from shared.ai.limited import LimitedModel
from shared.ai.offline import OfflineModel
from shared.ai.opening import Gateway
from shared.ai.retrying import RetryingModel
from shared.ai.structured import StructuredModel
from shared.clock import ManualClock
from shared.config import load_settings
from shared.runtime import Runtime
from tests.support.doubles import ScriptedModel

KEY = {"GEMINI_API_KEY": "AIza-a-key"}
ALONE = {"AI_MODEL_FALLBACKS": ","}


def opened(**variables: str) -> Any:
    return Runtime(load_settings(variables)).model


def layers(model: Any) -> list[Any]:
    """The model and all that it wraps, the outermost first."""
    inner = getattr(model, "_inner", None)
    return [model, *(() if inner is None else layers(inner))]


def chain(**variables: str) -> dict[str, list[Any]]:
    """The layers of each model of the chain, by its name."""
    fallback = layers(opened(**KEY, **variables))[-1]
    assert isinstance(fallback, FallbackModel)
    return {name: layers(model) for name, model in fallback._models}


def only(kind: type, found: list[Any]) -> Any:
    (one,) = [layer for layer in found if isinstance(layer, kind)]
    return one


def limits(**variables: str) -> list[Limit]:
    return [only(LimitedModel, found)._limit for found in chain(**variables).values()]


def test_the_offline_model_has_no_quota_and_no_breaker() -> None:
    model = opened()
    assert isinstance(model, OfflineModel)
    assert layers(model) == [model]


def test_the_chain_is_the_default_model_and_its_fallbacks() -> None:
    assert list(chain()) == ["gemini-2.5-pro", "gemini-1.5-pro", "gemini-1.5-flash"]
    assert list(chain(AI_MODEL_DEFAULT="a", AI_MODEL_FALLBACKS="b,a")) == ["a", "b"]


def test_a_call_passes_check_retries_breaker_limit_and_account() -> None:
    expected = [StructuredModel, RetryingModel, BreakerModel, LimitedModel, AccountedModel, GeminiModel]
    assert [[type(layer) for layer in found] for found in chain().values()] == [expected] * 3
    assert [type(layer) for layer in layers(opened(**KEY))] == [Gateway, FallbackModel]


@pytest.mark.parametrize(("flag", "left_out"), [("ENABLE_CIRCUIT_BREAKER", BreakerModel), ("ENABLE_RETRY_LOGIC", RetryingModel)])
def test_breaker_and_retries_can_be_left_out(flag: str, left_out: type) -> None:
    for found in chain(**{flag: "false"}).values():
        kinds = [type(layer) for layer in found]
        assert left_out not in kinds
        assert len(kinds) == 5


def test_the_cache_stands_in_front_of_all_where_it_is_wanted() -> None:
    live = Runtime(load_settings({**KEY, "ENABLE_CACHE": "true"}))
    found = layers(live.model)
    assert [type(layer) for layer in found] == [Gateway, CachedModel, FallbackModel]
    assert found[1]._cache is live.guards.cache
    assert found[1]._models == live.settings.models


def test_all_layers_use_the_guards_and_the_clock_of_the_runtime() -> None:
    live = Runtime(load_settings(KEY), clock=ManualClock())
    fallback = layers(live.model)[-1]
    for _, model in fallback._models:
        found = layers(model)
        assert only(BreakerModel, found)._breaker is live.guards.breaker
        assert only(LimitedModel, found)._limiter is live.guards.limiter
        assert all(layer._clock is live.clock for layer in found)
    assert fallback._clock is live.clock


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
    assert limits(**ALONE, **variables) == [expected]


def test_the_operators_rate_is_the_default_models_and_that_of_models_nobody_knows() -> None:
    found = limits(AI_RATE_QPS="8", AI_MODEL_FALLBACKS="gemini-1.5-flash,gemini-unheard-of")
    assert found == [Limit(8, 8, 10_000, 2_000_000), CATALOG["gemini-1.5-flash"].limit, Limit(8, 8)]


@pytest.mark.parametrize(("model", "usd"), [("gemini-2.5-pro", 10.0), ("gemini-3.5-flash", 9.0), ("gemini-unheard-of", 0.0)])
def test_a_call_costs_what_the_catalog_says(model: str, usd: float) -> None:
    (found,) = chain(AI_MODEL_DEFAULT=model, **ALONE).values()
    assert found[-1]._price.output_usd == only(AccountedModel, found)._price.output_usd == usd


def test_each_model_has_its_own_context() -> None:
    contexts = [only(AccountedModel, found)._context_tokens for found in chain().values()]
    assert contexts == [1_048_576, 2_097_152, 1_048_576]


@pytest.mark.parametrize(("given", "used"), [("", BASE_URL), ("http://127.0.0.1:9/", "http://127.0.0.1:9/")])
def test_the_address_of_the_service_can_be_another(given: str, used: str) -> None:
    assert {found[-1]._base_url for found in chain(GEMINI_BASE_URL=given).values()} == {used}


def test_the_models_that_are_asked_are_the_chain_where_there_is_a_key() -> None:
    assert Runtime(load_settings({})).asked_models == ()
    assert Runtime(load_settings(KEY)).asked_models == ("gemini-2.5-pro", "gemini-1.5-pro", "gemini-1.5-flash")


async def test_closing_the_runtime_closes_the_models_connections() -> None:
    live = Runtime(load_settings(KEY))
    (provider, *_) = [layers(model)[-1] for _, model in layers(live.model)[-1]._models]
    provider.open()
    await live.close()
    assert provider._client is None
    await Runtime(load_settings({}), model=ScriptedModel("answer")).close()


def test_the_example_of_the_settings_leaves_the_rate_to_the_catalog() -> None:
    example = Path(__file__).parents[2] / ".env.example"
    assert "ai_rate_qps" not in load_settings({}, env_file=example).model_fields_set
