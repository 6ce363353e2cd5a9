"""How a function starts: with `SECRETS_FROM=secret-manager`, by fetching the secrets that its function.yaml lists, all at once.

Only what a function lists is fetched and, in production, required. What the environment gives already is not asked for. A secret
that is missing, or that the function's account may not read, is told in one line with the command that mends it; messages wait on
the bus meanwhile, and the next one tries again.
"""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Final

from shared.clock import SystemClock
from shared.config import OPTIONAL_SECRETS, secrets_project
from shared.errors import ConfigurationError
from shared.keys.manager import SECRET as SIGNING_KEYS
from shared.runtime import process
from shared.runtime.spec import FUNCTIONS, FunctionSpec, load_function
from shared.runtime.wiring import Runtime, account
from shared.secrets import SecretManager

_log = logging.getLogger(__name__)
_starting: Final = asyncio.Lock()


async def started(function: str) -> Runtime:
    """The runtime of this process, which serves `function`. Raises ConfigurationError, and StoreUnavailable to try again later."""
    project = secrets_project(os.environ)
    if project is None or process.is_open():
        return process.runtime(function)
    async with _starting:
        if process.is_open():  # whoever was first has opened it
            return process.runtime(function)
        manager = SecretManager(project, SystemClock(), member=account(project))
        try:
            found = await fetch(manager, load_function(FUNCTIONS / function), os.environ)
            return process.runtime(function, found=found, manager=manager)
        except BaseException:
            await manager.close()
            raise


async def fetch(manager: SecretManager, spec: FunctionSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """The secrets of a function by name, without the signing keys, which have a store of their own.

    Raises ConfigurationError with a line for each that is missing, and StoreUnavailable.
    """
    names = [name for name in _listed(spec, environ) if not environ.get(name, "").strip()]
    values = await asyncio.gather(*(manager.value(name) for name in names), return_exceptions=True)
    found: dict[str, str] = {}
    missing: list[str] = []
    for name, value in zip(names, values, strict=True):
        if isinstance(value, ConfigurationError) and name in OPTIONAL_SECRETS:
            _log.warning("%s works without %s: %s", spec.name, name, value)
        elif isinstance(value, ConfigurationError):
            missing.append(str(value))
        elif isinstance(value, BaseException):
            raise value
        else:
            found[name] = value.get_secret_value()
    if missing:
        raise ConfigurationError("\n  ".join(missing))
    return found


def _listed(spec: FunctionSpec, environ: Mapping[str, str]) -> Iterator[str]:
    """Its own secrets and those of every function, as infra/secrets.tf grants them."""
    yield from (name for name in spec.secrets if name != SIGNING_KEYS)
    yield "SENTRY_DSN"
    if "redis" in (environ.get("GUARDS_BACKEND", "").strip().lower(), environ.get("AGENT_BUS_PROVIDER", "").strip().lower()):
        yield "REDIS_URL"
