"""Identifiers. A message id is derived from what the message means, so that a copy is recognisable as one.

Workflow ids are `wf_` and a ULID (https://github.com/ulid/spec): they sort by the time of the request.
"""

import hashlib
from datetime import datetime

from ulid import ULID


def workflow_id(at: datetime) -> str:
    """A new workflow id for a request made at `at`."""
    return f"wf_{ULID.from_datetime(at)}"


def requested_at(workflow: str) -> datetime:
    """When the workflow of that id was requested."""
    return ULID.from_str(workflow.removeprefix("wf_")).datetime


def workflow_id_for(key: str, at: datetime) -> str:
    """The workflow id of the request known as `key`: the same key and time always give the same id."""
    moment = ULID.from_datetime(at).bytes[:6]
    return f"wf_{ULID.from_bytes(moment + hashlib.sha256(key.encode()).digest()[:10])}"


def dispatch_id(workflow: str, step: str, attempt: int, deferrals: int = 0) -> str:
    """The id of the message that starts an attempt; a deferred attempt is sent again under an id of its own."""
    suffix = f".{deferrals}" if deferrals else ""
    return f"{workflow}/{step}/{attempt}{suffix}"


def finished_id(workflow: str, resumed: int = 0) -> str:
    """The id of the message that a workflow has ended; each time that it was resumed it ends under an id of its own."""
    return f"{workflow}/finished{f'.{resumed}' if resumed else ''}"


def reply_id(dispatch: str, outcome: str) -> str:
    """The id of an agent's answer to the dispatch `dispatch`; outcome is completed, failed or deferred."""
    return f"{dispatch}/{outcome}"
