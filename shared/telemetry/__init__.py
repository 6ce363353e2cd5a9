"""What the platform tells about itself: logs, metrics and traces."""

from shared.telemetry.logs import bind, bind_task, configure_logging, current, describe_error
from shared.telemetry.metrics import METRICS_CONTENT_TYPE, Metrics, metrics
from shared.telemetry.redaction import redact_text, redact_values
from shared.telemetry.traces import TraceContext, current_trace, follow_trace, use_trace

__all__ = [
    "METRICS_CONTENT_TYPE",
    "Metrics",
    "TraceContext",
    "bind",
    "bind_task",
    "configure_logging",
    "current",
    "current_trace",
    "describe_error",
    "follow_trace",
    "metrics",
    "redact_text",
    "redact_values",
    "use_trace",
]
