"""What the platform tells about itself: logs, metrics and traces."""

from shared.telemetry.logs import bind_task, configure_logging, describe_error
from shared.telemetry.metric_log import MetricLog
from shared.telemetry.metrics import METRICS_CONTENT_TYPE, Metrics, metrics
from shared.telemetry.redaction import redact_text, redact_values
from shared.telemetry.sentry import open_sentry
from shared.telemetry.traces import Span, TraceContext, current_trace, record_spans, span, use_trace

__all__ = [
    "METRICS_CONTENT_TYPE",
    "MetricLog",
    "Metrics",
    "Span",
    "TraceContext",
    "bind_task",
    "configure_logging",
    "current_trace",
    "describe_error",
    "metrics",
    "open_sentry",
    "record_spans",
    "redact_text",
    "redact_values",
    "span",
    "use_trace",
]
