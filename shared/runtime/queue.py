"""How many workflows wait for their turn: the one metric that no process knows from its own work."""

import asyncio
import logging
from typing import Final

from shared.errors import AgentTeamError
from shared.runtime.wiring import Runtime
from shared.telemetry import describe_error, metrics

_log = logging.getLogger(__name__)
_SECONDS: Final = 2.0


async def note_queued(live: Runtime) -> None:
    """Set `workflow.queued` to what the state says. One that does not answer within two seconds leaves it as it was."""
    try:
        async with asyncio.timeout(_SECONDS):
            metrics.gauge("workflow.queued", await live.store.queued())
    except (AgentTeamError, TimeoutError) as error:
        _log.warning("workflow.queued is not known", extra={"error": describe_error(error)})
