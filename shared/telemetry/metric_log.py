"""Metrics as lines of the log, for instances that nobody can scrape: they come and go, and their counts go with them.

A line per series that changed, at most every ten seconds and at the process's end, however often it changed:
`{"msg": "metric", "metric": NAME, "kind": KIND, "labels": {…}, "value": …}`. Of a counter `value` is what was added, of a gauge the
last value, of a histogram the mean of `count` observations, whose largest is `max`. So the log costs what there are series, not
what there is to do. Log-based metrics are made from these lines: docs/metrics.md.
"""

import atexit
import logging
import threading
from typing import Any, Final

SECONDS: Final = 10.0
_Series = tuple[str, str, tuple[tuple[str, str], ...]]


class MetricLog:
    """Gathers changes and logs them. Noting one never waits for a write."""

    def __init__(self, logger: logging.Logger, *, seconds: float = SECONDS) -> None:
        # Its own level, so that a quieter log does not blind the alerts.
        logger.setLevel(logging.INFO)
        self._logger = logger
        self._seconds = seconds
        self._changes: dict[_Series, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def note(self, kind: str, name: str, value: float, labels: dict[str, str]) -> None:
        """One change."""
        series = (kind, name, tuple(sorted(labels.items())))
        with self._lock:
            known = self._changes.get(series)
            self._changes[series] = _added(kind, known, value)
            if self._timer is None:
                # A thread and no task: it belongs to no workflow and to no event loop, and the process ends without it.
                self._timer = threading.Timer(self._seconds, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Log what has changed since the last time."""
        with self._lock:
            changes, self._changes = self._changes, {}
            timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        for (kind, name, labels), change in changes.items():
            fields: dict[str, Any] = {"metric": name, "kind": kind, "labels": dict(labels), **change}
            self._logger.info("metric", extra=fields)

    def close(self) -> None:
        """Log what is left, and nothing at the process's end."""
        atexit.unregister(self.flush)
        self.flush()


def _added(kind: str, known: dict[str, float] | None, value: float) -> dict[str, float]:
    if kind == "gauge":
        return {"value": value}
    if kind == "counter":
        return {"value": value if known is None else known["value"] + value}
    if known is None:
        return {"value": value, "count": 1, "max": value}
    count = known["count"] + 1
    return {"value": known["value"] + (value - known["value"]) / count, "count": count, "max": max(known["max"], value)}
