"""Settings → the model that agents ask. The one place where a provider gets its guards."""

from shared.ai.base import Model, Price
from shared.ai.catalog import at_rate, find
from shared.ai.guarded import BreakerModel
from shared.ai.limited import LimitedModel
from shared.clock import Clock, SystemClock
from shared.guards import Guards


def open_model(
    *,
    gemini_api_key: str | None,
    model: str,
    guards: Guards,
    clock: Clock | None = None,
    gemini_base_url: str | None = None,
    qps: float = 3.0,
    qps_given: bool = False,
    breaker: bool = True,
) -> Model:
    """The Gemini model called `model` where there is a key, else the offline model. Nothing is connected before the first call.

    `qps` is `AI_RATE_QPS`: the rate of a model that the catalog does not know, and when it was `qps_given`, by an operator who
    wants more or less than the catalog says, of one that it knows too. `breaker` is `ENABLE_CIRCUIT_BREAKER`.
    Raises ConfigurationError when the key cannot be one.
    """
    if gemini_api_key is None:
        from shared.ai.offline import OfflineModel

        return OfflineModel()  # it costs nothing and has no quota
    from shared.ai.gemini import GeminiModel

    clock = SystemClock() if clock is None else clock
    known = find(model, qps=qps)
    limit = at_rate(known.limit, qps) if qps_given else known.limit
    price = Price() if known.price is None else known.price
    opened: Model = GeminiModel(gemini_api_key, model, clock=clock, base_url=gemini_base_url, price=price)
    opened = LimitedModel(opened, guards.limiter, limit, clock, name=model)
    return BreakerModel(opened, guards.breaker, clock, name=model) if breaker else opened
