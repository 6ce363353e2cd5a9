"""What a link to an approval holds: which question it decides and until when, sealed with the keys that messages are signed with.

    token = base64url(JSON [workflow, step, attempt, expires, key id]) "." base64url(seal)

Nothing in it is secret, but whoever has it may decide: it is kept out of logs, and the path that it stands in is never told. It is
good for as long as its key is trusted; one text alone says the same thing, so a token that was altered in any way is no token.
"""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import orjson
from pydantic import TypeAdapter, ValidationError

from shared.messages.payloads import Attempt, StepId, WorkflowId
from shared.messages.signing import Ring

APPROVAL_SECONDS: Final = 7 * 86_400
"""How long a link to an approval lasts that waits for ever."""
APPROVE: Final = "/approve"
"""The gateway's path before the token."""
_PURPOSE: Final = "approval-link"
_LONGEST: Final = 1000


class ApprovalLink(NamedTuple):
    """The right to decide on one approval: `attempt` of `step`, until `expires`, in seconds of Unix time."""

    workflow: WorkflowId
    step: StepId
    attempt: Attempt
    expires: int

    def token(self, ring: Ring) -> str:
        """The text that proves it, fit for a URL's path."""
        body = _encoded(orjson.dumps([*self, ring.active]))
        return f"{body}.{_encoded(ring.seal(_PURPOSE, body.encode()))}"


_Fields = TypeAdapter(tuple[WorkflowId, StepId, Attempt, int, str])


def approval_links(
    ring: Ring, base: str, *, workflow: str, step: str, attempt: int, waiting: Mapping[str, Any], now: datetime
) -> dict[str, str]:
    """`links` of a step that waits for an approval, at the gateway at `base`; `waiting` is as the state shows it."""
    until = waiting["until"]
    expires = now + timedelta(seconds=APPROVAL_SECONDS) if until is None else datetime.fromisoformat(until)
    token = ApprovalLink(workflow, step, attempt, int(expires.timestamp())).token(ring)
    return {"approve": f"{base.rstrip('/')}{APPROVE}/{token}"}


def read_token(token: str, ring: Ring) -> ApprovalLink | None:
    """What `token` proves; None when no key that is trusted here has made it. Whether it has expired is for the caller to see."""
    body, _, seal = token.partition(".")
    if len(token) > _LONGEST or not token.isascii():
        return None
    try:
        workflow, step, attempt, expires, key_id = _Fields.validate_json(_decoded(body), strict=True)
        given = _decoded(seal)
    except (NotBase64, ValidationError):
        return None
    # Of the texts that decode to the same bytes one alone is taken.
    if _encoded(given) != seal or not ring.is_sealed(_PURPOSE, body.encode(), key_id=key_id, seal=given):
        return None
    return ApprovalLink(workflow, step, attempt, expires)


def _encoded(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))
