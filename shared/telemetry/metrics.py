"""Metrics: every one that the platform has, declared in one table, counted in this process and shown in Prometheus form.

Names have dots here and underscores in Prometheus (https://prometheus.io/docs/concepts/data_model/), where counters also end in
`_total`. A name, kind or label that the table does not know is an error at once, so that no dashboard waits for a series that never
comes. A function that scales to zero cannot be scraped: in the cloud its changes are also logged, see metric_log.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from shared.telemetry.metric_log import MetricLog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

METRICS_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What `Metrics.text` is."""

_MILLISECONDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000)

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of one metric. A series exists per combination of label values, so labels have few values."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    description: str

    @property
    def prometheus_name(self) -> str:
        """The name as Prometheus wants it."""
        return self.name.replace(".", "_")


DECLARED = (
    Metric("task.success", "counter", ("task",), "Tasks that gave a result."),
    Metric("task.failure", "counter", ("task", "error"), "Tasks that gave an error."),
    Metric("task.duration_ms", "histogram", ("task",), "Time that an agent worked on a task."),
    Metric("workflow.started", "counter", ("workflow",), "Workflows that began."),
    Metric("workflow.succeeded", "counter", ("workflow",), "Workflows that ended with SUCCESS."),
    Metric("workflow.failed", "counter", ("workflow",), "Workflows that ended with FAILED."),
    Metric("workflow.cancelled", "counter", ("workflow",), "Workflows that ended with CANCELLED."),
    Metric("workflow.execution_ms", "gauge", ("workflow",), "Time that the last finished workflow took from start to end."),
    Metric("workflow.queued", "gauge", (), "Workflows that wait for their turn."),
    Metric("step.retried", "counter", (), "Attempts after the first."),
    Metric("step.deferred", "counter", (), "Attempts put off because a quota was used up."),
    Metric("step.lease_expired", "counter", (), "Attempts given up because nothing was heard of them."),
    Metric("envelope.rejected", "counter", ("reason",), "Messages that were not trusted or not understood."),
    Metric("delivery.duplicate", "counter", (), "Copies of messages that were done or being worked on."),
    Metric("dead_letter.count", "counter", (), "Messages that used up their delivery attempts."),
    Metric("webhook.sent", "counter", ("outcome",), "Calls of callback_url: accepted, refused for good, or failed for now."),
    Metric("bus.backlog", "gauge", ("subscription",), "Messages of the subscription's topic that are not settled."),
    Metric("bus.oldest_unacked_seconds", "gauge", ("subscription",), "Age of its oldest unsettled message."),
    Metric("dead_letter.redriven", "counter", (), "Dead letters that were sent again."),
    Metric("retention.purged", "counter", ("kind",), "Workflows and dead letters that were deleted because of their age."),
    Metric("guards.outage", "counter", ("guard",), "Times that a guard lost its store and fell back."),
    Metric("ai.requests", "counter", ("model", "outcome"), "Calls to models."),
    Metric("ai.requests_per_second", "gauge", ("model",), "Calls to a model that this instance made in the last second."),
    Metric("ai.rate_limit.denied", "counter", ("model",), "Calls that a rate limit put off for longer than is waited out."),
    Metric("ai.rate_limit.wait_ms", "histogram", ("model",), "Time that calls waited for a rate limit."),
    Metric("ai.fallback", "counter", ("from", "to", "reason"), "Calls that went on to the next model of the chain."),
    Metric("ai.breaker.state", "gauge", ("model",), "Circuit breaker: 0 closed, 1 half-open, 2 open."),
    Metric("ai.tokens", "counter", ("model", "type"), "Tokens sent to and received from models."),
    Metric("ai.cost_microdollars", "counter", ("model",), "Price of the calls, in millionths of a dollar."),
    Metric("ai.cache.hit", "counter", (), "Calls answered from the cache."),
)
"""Every metric there is."""

_BY_NAME = {metric.name: metric for metric in DECLARED}


class Metrics:
    """The metrics of one process. Noting a value takes about a microsecond and never waits."""

    def __init__(self) -> None:
        self._registry: CollectorRegistry | None = None
        self._families: dict[str, Counter | Gauge | Histogram] = {}
        # What takes a value, found by kind, name and labels as the caller gives them: the checks are made once per series.
        self._series: dict[tuple[object, ...], Callable[[float], None]] = {}
        self._log: MetricLog | None = None

    def count(self, name: str, amount: float = 1, /, **labels: str) -> None:
        """Add `amount`, 0 or more, to a counter. Raises KeyError for an unknown name, ValueError for wrong labels or kind."""
        self._note("counter", name, amount, labels)

    def gauge(self, name: str, value: float, /, **labels: str) -> None:
        """Set a gauge. Raises like `count`."""
        self._note("gauge", name, value, labels)

    def watch(self, name: str, read: Callable[[], float], /, **labels: str) -> None:
        """From now on show a gauge as `read` returns it then. What `gauge` sets is only logged. Raises like `count`."""
        child = self._child("gauge", name, labels)
        child.set_function(read)  # type: ignore[union-attr]  # the kind is checked

    def observe(self, name: str, value: float, /, **labels: str) -> None:
        """Add one observation to a histogram. Raises like `count`."""
        self._note("histogram", name, value, labels)

    def value(self, name: str, /, **labels: str) -> float:
        """A counter's or gauge's value, a histogram's number of observations; 0 where nothing was noted. Raises like `count`."""
        metric = _declared(name, labels)
        suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}[metric.kind]
        found = self._open().get_sample_value(f"{metric.prometheus_name}{suffix}", labels)
        return 0.0 if found is None else found

    def text(self) -> bytes:
        """Every metric in Prometheus' text format, see `METRICS_CONTENT_TYPE`."""
        from prometheus_client import generate_latest

        return generate_latest(self._open())

    def serve(self, host: str, port: int) -> Callable[[], None]:
        """Answer HTTP requests with `text`, from a thread, until the returned function is called. Raises OSError."""
        from prometheus_client import start_http_server

        server, _ = start_http_server(port, addr=host, registry=self._open())

        def stop() -> None:
            server.shutdown()
            server.server_close()

        return stop

    def log_changes(self, log: MetricLog | None) -> None:
        """From now on note each change in `log` too; None ends that and logs what is left."""
        if self._log is not None:
            self._log.close()
        self._log = log

    def _note(self, kind: Kind, name: str, value: float, labels: dict[str, str]) -> None:
        key = (kind, name, *labels.items())
        note = self._series.get(key)
        if note is None:
            note = self._series[key] = self._open_series(kind, name, labels)
        note(value)
        if self._log is not None:
            self._log.note(kind, name, value, labels)

    def _open_series(self, kind: Kind, name: str, labels: dict[str, str]) -> Callable[[float], None]:
        from prometheus_client import Counter, Gauge

        child = self._child(kind, name, labels)
        if isinstance(child, Counter):
            return child.inc
        return child.set if isinstance(child, Gauge) else child.observe

    def _child(self, kind: Kind, name: str, labels: dict[str, str]) -> "Counter | Gauge | Histogram":
        metric = _declared(name, labels)
        if metric.kind != kind:
            raise ValueError(f"metric {name!r} is a {metric.kind}, not a {kind}")
        self._open()
        family = self._families[name]
        return family.labels(*(labels[label] for label in metric.labels)) if labels else family

    def _open(self) -> "CollectorRegistry":
        # Imported on first use: a process that counts nothing does not pay for it.
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

        if self._registry is None:
            # Or every series would come twice, once as the time of its creation.
            disable_created_metrics()  # type: ignore[no-untyped-call]
            self._registry = CollectorRegistry()
            for metric in DECLARED:
                declaration = (metric.prometheus_name, metric.description, metric.labels)
                if metric.kind == "histogram":
                    self._families[metric.name] = Histogram(*declaration, registry=self._registry, buckets=_MILLISECONDS)
                else:
                    kind = Counter if metric.kind == "counter" else Gauge
                    self._families[metric.name] = kind(*declaration, registry=self._registry)
        return self._registry


def _declared(name: str, labels: Mapping[str, str]) -> Metric:
    metric = _BY_NAME.get(name)
    if metric is None:
        raise KeyError(f"metric {name!r} is not declared; add it to the table in shared/telemetry/metrics.py")
    if labels.keys() != set(metric.labels):
        raise ValueError(f"metric {name!r} has the labels {sorted(metric.labels)}, not {sorted(labels)}")
    return metric


metrics = Metrics()
"""This process's metrics."""
