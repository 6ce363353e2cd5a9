"""A chain of models: when one fails, the next is asked.

What goes on to the next model is what another one may do better: a transient error, and a model that does not exist (any more). A
refused key, a blocked prompt, a spent budget and an answer that is of no use would be the same there, and are raised at once.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from shared.ai.base import Model, Reply, Request
from shared.ai.retrying import time_for_one
from shared.clock import Clock
from shared.errors import AgentTeamError, CircuitOpen, ModelUnavailable, ModelUnknown, RateLimited, Transient
from shared.telemetry import metrics

_log = logging.getLogger(__name__)
_FORGOTTEN_AFTER_SECONDS: Final = 600.0
"""A model that does not exist is not asked for so long. It may be a proxy's mistake, or a model about to be released."""
_LEAST_SECONDS: Final = 1.0
"""Below that no answer can be expected, and asking would count against the next model."""
_LONGEST_REASON: Final = 200

_Failures = Sequence[tuple[str, AgentTeamError]]


class FallbackModel:
    """`models`, by name, in the order in which they are asked; at least one."""

    def __init__(self, models: Sequence[tuple[str, Model]], clock: Clock) -> None:
        self._models = tuple(models)
        self._clock = clock
        self._unknown: dict[str, tuple[float, str]] = {}
        """By name of a model that does not exist: until when that is believed, and what was said."""

    async def generate(self, request: Request) -> Reply:
        """Raises a lone model's own error; of several, one that names each and why (see `_all_failed`)."""
        deadline = self._clock.monotonic() + request.timeout_seconds
        failures: list[tuple[str, AgentTeamError]] = []
        for index, (name, model) in enumerate(self._models):
            left = deadline - self._clock.monotonic()
            if failures and left < _LEAST_SECONDS:
                break
            known = self._known_as_unknown(name)
            if failures:
                self._note_change(*failures[-1], to=name)
            if known is not None:
                failures.append((name, known))
                continue
            others = sum(self._known_as_unknown(other) is None for other, _ in self._models[index + 1 :])
            try:
                return await model.generate(replace(request, timeout_seconds=time_for_one(left, 1 + others)))
            except ModelUnknown as error:
                self._remember(name, error)
                failures.append((name, error))
            except Transient as error:
                failures.append((name, error))
        if len(self._models) == 1:
            raise failures[0][1]
        raise _all_failed(failures, unasked=[name for name, _ in self._models[len(failures) :]])

    def _known_as_unknown(self, name: str) -> ModelUnknown | None:
        until, said = self._unknown.get(name, (0.0, ""))
        return ModelUnknown(said) if self._clock.monotonic() < until else None

    def _remember(self, name: str, error: ModelUnknown) -> None:
        if self._known_as_unknown(name) is None:
            _log.error(
                "model %s does not exist and is not asked for %g s; take it out of AI_MODEL_DEFAULT and AI_MODEL_FALLBACKS: %s",
                name,
                _FORGOTTEN_AFTER_SECONDS,
                error,
                extra={"model": name},
            )
        self._unknown[name] = (self._clock.monotonic() + _FORGOTTEN_AFTER_SECONDS, str(error))

    def _note_change(self, name: str, error: AgentTeamError, *, to: str) -> None:
        metrics.count("ai.fallback", **{"from": name, "to": to, "reason": error.code})
        if not isinstance(error, ModelUnknown):  # that was said when it was found
            _log.warning("model %s failed, %s is asked: %s", name, to, error, extra={"model": name, "reason": error.code})


def _all_failed(failures: _Failures, *, unasked: Sequence[str]) -> AgentTeamError:
    """One error for all. It is of the kind that says best what to do: mend the names, wait for the quota, or try again."""
    said = [f"{name} ({error.code}: {_shortened(str(error))})" for name, error in failures]
    message = "; ".join(["no model of the chain answered", *said, *(f"{name} (not asked: the time is up)" for name in unasked)])
    passing = [error for _, error in failures if isinstance(error, Transient)]
    if not passing:
        return ModelUnknown(message)
    known = [error.retry_after_seconds for error in passing if error.retry_after_seconds is not None]
    return _kind(passing)(message, retry_after_seconds=min(known, default=None))


def _kind(errors: Sequence[Transient]) -> type[Transient]:
    if all(isinstance(error, CircuitOpen) for error in errors):
        return CircuitOpen
    return RateLimited if all(isinstance(error, RateLimited | CircuitOpen) for error in errors) else ModelUnavailable


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 1]}…"
