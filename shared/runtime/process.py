"""The runtime of a process of production: from the environment, made once, with its logs, metrics and Sentry set up."""

import logging
import os
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from shared.config import Settings, load_settings
from shared.runtime.wiring import Runtime
from shared.telemetry import MetricLog, configure_logging, metrics, open_sentry, redact_values

if TYPE_CHECKING:
    from shared.secrets import SecretManager

_runtime: Runtime | None = None


def runtime(
    function: str | None = None, *, found: Mapping[str, str] | None = None, manager: "SecretManager | None" = None
) -> Runtime:
    """The runtime of this process, from the environment; it is made for `function`, which the process serves.

    `found` are secrets that were fetched for it through `manager`. Raises ConfigurationError that lists every mistake.
    """
    global _runtime
    if _runtime is None:
        _runtime = open_runtime(serves=None if function is None else (function,), function=function, found=found, manager=manager)
    return _runtime


def is_open() -> bool:
    """Whether this process has its runtime."""
    return _runtime is not None


def open_runtime(
    *,
    serves: Collection[str] | None,
    function: str | None = None,
    found: Mapping[str, str] | None = None,
    manager: "SecretManager | None" = None,
) -> Runtime:
    """A runtime from the environment for a process of production, whose logs are JSON on standard error.

    The process of a single `function` needs that one's secrets and no others. Raises ConfigurationError that lists every mistake.
    """
    secrets = None if function is None else _secrets_of(function)
    settings = load_settings(secrets=secrets) if found is None else load_settings({**os.environ, **found}, secrets=secrets)
    redact_values(*settings.secret_values())
    cloud = "K_SERVICE" in os.environ
    configure_logging(settings.log_level, cloud=cloud, project=settings.gcp_project_id)
    metrics.log_changes(MetricLog(logging.getLogger("metrics")) if cloud else None)
    tell_sentry(settings, server_name="platform" if serves is None else ",".join(serves))
    return Runtime(settings, serves=serves, manager=manager)


def _secrets_of(function: str) -> Collection[str]:
    from shared.runtime.spec import FUNCTIONS, load_function

    return load_function(FUNCTIONS / function).secrets


def tell_sentry(settings: Settings, *, server_name: str) -> None:
    """Where `SENTRY_DSN` is set, tell Sentry of errors and of a share of the traces until the process ends."""
    dsn = settings.sentry_dsn
    if dsn is not None:
        open_sentry(
            dsn.get_secret_value(),
            environment=settings.sentry_environment,
            release=_release(),
            server_name=server_name,
            traces_sample_rate=settings.sentry_traces_sample_rate,
        )


def _release() -> str:
    """The package with its version; where it runs from its source alone, the cloud's name for what was deployed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"agent-team@{version('agent-team')}"
    except PackageNotFoundError:
        return os.environ.get("K_REVISION", "agent-team")
