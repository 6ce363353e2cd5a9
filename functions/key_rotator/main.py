"""Secret Manager's notice (topic key-rotation, unsigned: IAM lets only Secret Manager publish) → a rotation of the signing keys.

It begins with the notice and goes on with every call of the scheduler, so nobody waits in between: `shared.keys.rotation` has the
steps. A notice that comes again while a rotation is in progress begins none.
"""

import logging
from typing import Final

from shared.bus import Delivery, Outcome
from shared.errors import ConfigurationError, Permanent
from shared.keys.rotation import carry_on
from shared.runtime import Handlers, Runtime, on_messages
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
_DUE: Final = "SECRET_ROTATE"
"""What Secret Manager's notices say that a rotation is due; it sends others of every change."""


def _handlers(live: Runtime) -> Handlers:
    async def noticed(delivery: Delivery) -> Outcome:
        if delivery.attributes.get("eventType") != _DUE:
            return Outcome.ACK
        try:
            await _rotate(live, begins=True)
        except ConfigurationError:
            raise  # somebody will put it right; until then the notice waits on the bus
        except Permanent as error:
            # Somebody changed the keys meanwhile. What is due is seen again within the hour.
            _log.warning("the rotation goes on later", extra={"error": describe_error(error)})
        return Outcome.ACK

    return {"key-rotation": noticed}


async def _due(live: Runtime) -> None:
    await _rotate(live, begins=False)


async def _rotate(live: Runtime, *, begins: bool) -> None:
    step = await carry_on(live.keys, live.clock, rotate=begins)
    if step is not None:
        _log.info("the rotation goes on at %s", step.due.isoformat(timespec="seconds"), extra={"step": step.action.name.lower()})
    keys = await live.keys.read()
    active = next((key for key in keys.keys if key.id == keys.active), None)
    if active is not None:
        since = active.created_at if active.activated_at is None else active.activated_at
        _log.info(
            "signing key", extra={"keyId": active.id, "ageDays": round((live.clock.now() - since).total_seconds() / 86_400, 2)}
        )


key_rotator = on_messages(__file__, _handlers, timer=_due)
