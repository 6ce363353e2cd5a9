"""Settings → the model that agents ask. The one place where providers get what stands in front of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shared.ai.accounted import AccountedModel
from shared.ai.base import Model, Reply, Request
from shared.ai.cached import CachedModel
from shared.ai.catalog import at_rate, find
from shared.ai.fallback import FallbackModel
from shared.ai.guarded import BreakerModel
from shared.ai.limited import LimitedModel
from shared.ai.retrying import RetryingModel
from shared.ai.structured import StructuredModel
from shared.clock import Clock, SystemClock
from shared.guards import Guards

if TYPE_CHECKING:
    from shared.ai.gemini import GeminiModel


class Gateway:
    """A model, and what frees the connections of the providers behind it."""

    def __init__(self, model: Model, providers: "Sequence[GeminiModel]") -> None:
        self._inner = model
        self._providers = providers

    async def generate(self, request: Request) -> Reply:
        """Raises what a model may raise; of several that failed, one error that names each and why."""
        return await self._inner.generate(request)

    async def close(self) -> None:
        """Close the connections. A later call opens new ones."""
        for provider in self._providers:
            await provider.close()


def open_model(
    *,
    gemini_api_key: str | None,
    models: Sequence[str],
    guards: Guards,
    clock: Clock | None = None,
    gemini_base_url: str | None = None,
    qps: float = 3.0,
    qps_given: bool = False,
    breaker: bool = True,
    retries: bool = True,
    cache: bool = False,
) -> Model:
    """The chain of Gemini models where there is a key, else the offline model. Nothing is connected before the first call.

    `qps` is `AI_RATE_QPS`: the rate of models that the catalog does not know, and when it was `qps_given`, by an operator who wants
    more or less than the catalog says, of the first one whether it is known or not. `breaker`, `retries` and `cache` are
    `ENABLE_CIRCUIT_BREAKER`, `ENABLE_RETRY_LOGIC` and `ENABLE_CACHE`. What is returned may have connections: see `Gateway.close`.
    Raises ConfigurationError when the key cannot be one.
    """
    if gemini_api_key is None:
        from shared.ai.offline import OfflineModel

        return OfflineModel()  # it costs nothing and has no quota
    from shared.ai.gemini import GeminiModel

    clock = SystemClock() if clock is None else clock

    def guarded(name: str, provider: GeminiModel) -> Model:
        entry = find(name, qps=qps)
        limit = at_rate(entry.limit, qps) if qps_given and name == models[0] else entry.limit
        model: Model = AccountedModel(
            provider,
            name=name,
            price=entry.price,
            context_tokens=entry.context_tokens,
            clock=clock,
            count=provider.count,
        )
        model = LimitedModel(model, guards.limiter, limit, clock, name=name, prepare=provider.open)
        if breaker:
            model = BreakerModel(model, guards.breaker, clock, name=name)
        if retries:
            model = RetryingModel(model, clock)
        return StructuredModel(model, clock)

    providers = {
        name: GeminiModel(gemini_api_key, name, clock=clock, base_url=gemini_base_url, price=find(name, qps=qps).price)
        for name in models
    }
    chain: Model = FallbackModel([(name, guarded(name, provider)) for name, provider in providers.items()], clock)
    if cache:
        chain = CachedModel(chain, guards.cache, models=models)
    return Gateway(chain, list(providers.values()))
