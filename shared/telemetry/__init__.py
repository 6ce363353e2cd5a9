"""What the platform tells about itself: logs, metrics and traces."""

from shared.telemetry.logs import bind, configure_logging, current, describe_error
from shared.telemetry.metrics import METRICS_CONTENT_TYPE, Metrics, metrics
from shared.telemetry.redaction import redact_text, redact_values
from shared.telemetry.traces import TraceContext, current_trace, use_trace

__all__ = [
    "METRICS_CONTENT_TYPE",
    "Metrics",
    "TraceContext",
    "bind",
    "configure_logging",
    "current",
    "current_trace",
    "describe_error",
    "metrics",
    "redact_text",
    "redact_values",
    "use_trace",
]
