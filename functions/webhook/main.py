"""workflow-results → a signed POST to the workflow's `callback_url`, until it is accepted.

Body and headers are those of Standard Webhooks:
https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. A 2xx accepts. 408, 425, 429, 5xx and no
answer mean later; the bus then delivers again. Everything else, redirects too, means never. What was accepted is not sent again, as
far as anybody can know: where the answer was lost, it is, under the same `webhook-id`.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import orjson
from standardwebhooks import Webhook

from shared.bus import Message
from shared.errors import EnvelopeRejected, HostUnavailable, InputError
from shared.http.addresses import parse
from shared.http.calling import header, open_call
from shared.messages import Envelope, WorkflowFinished
from shared.runtime import Handlers, Runtime, on_messages, worker
from shared.telemetry import metrics

_log = logging.getLogger(__name__)
_SECONDS: Final = 15.0
"""For all of a call."""
_LONGEST_WAIT_SECONDS: Final = 60.0
"""What a receiver may ask for and gets, beyond the bus's own pause, which nobody can lengthen."""
_LATER: Final = frozenset({408, 425, 429})


def _handlers(live: Runtime) -> Handlers:
    async def tell(envelope: Envelope) -> Sequence[Message]:
        finished = envelope.data
        if not isinstance(finished, WorkflowFinished):
            raise EnvelopeRejected("type", f"{envelope.type} is not for workflow-results")
        if finished.callback_url is not None:
            await _tell(live, envelope, finished, finished.callback_url)
        return ()

    return {"workflow-results": worker(live, "webhook", tell)}


async def _tell(live: Runtime, envelope: Envelope, finished: WorkflowFinished, url: str) -> None:
    """Raises HostUnavailable when it has to be told again."""
    content = body_of(envelope, finished)
    headers = _headers(live.webhook_secret, envelope.id, content, now=live.clock.now())
    try:
        status, wait = await _answer(live, url, content, headers)
    except InputError as refusal:  # its name leads to where nothing may be called
        _note("refused", logging.ERROR, finished, reason=str(refusal))
        return
    except HostUnavailable as exc:
        _note("failed", logging.WARNING, finished, reason=str(exc))
        raise HostUnavailable(f"the webhook is not accepted: {exc}; mend its receiver") from exc
    if 200 <= status < 300:
        _note("accepted", logging.INFO, finished, answer=status)
    elif status in _LATER or status >= 500:
        _note("failed", logging.WARNING, finished, answer=status)
        if wait is not None:
            await live.clock.sleep(min(wait, _LONGEST_WAIT_SECONDS))
        said = f"the webhook is not accepted: its receiver answered {status}; mend it"
        raise HostUnavailable(said, retry_after_seconds=wait)
    else:
        _note("refused", logging.ERROR, finished, answer=status)


async def _answer(live: Runtime, url: str, content: bytes, headers: Sequence[tuple[str, str]]) -> tuple[int, float | None]:
    """The status, and how many seconds the receiver asks to wait. Its body is not read."""
    gate = live.callback_gate
    try:
        async with (
            asyncio.timeout(_SECONDS),
            open_call("POST", parse(url, gate), gate, headers=headers, content=content) as response,
        ):
            return response.status, wait_seconds(header(response, b"retry-after"), now=live.clock.now())
    except TimeoutError as exc:
        raise HostUnavailable(f"it took longer than {_SECONDS:g} s") from exc


def body_of(envelope: Envelope, finished: WorkflowFinished) -> bytes:
    """What is sent, the same at each attempt.

    `{"type": "workflow.finished", "timestamp": …, "data": {id, workflow, status, output, output_omitted, error, usage}}`. An output
    that is too large for a message is omitted; `GET /v1/workflows/{id}` has it.
    """
    data: dict[str, Any] = {
        "id": finished.workflow,
        "workflow": finished.name,
        **finished.model_dump(mode="json", include={"status", "output", "output_omitted", "error", "usage"}),
    }
    return orjson.dumps({"type": "workflow.finished", "timestamp": envelope.time, "data": data}, option=orjson.OPT_UTC_Z)


def wait_seconds(retry_after: str | None, *, now: datetime) -> float | None:
    """How long `Retry-After` (seconds or a date) asks to wait; None when it says nothing that can be understood."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _headers(secret: str, id: str, content: bytes, *, now: datetime) -> list[tuple[str, str]]:
    moment = now.astimezone(UTC)
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(content))),
        ("User-Agent", "agent-team/0.1 (webhook)"),
        ("Connection", "close"),
        ("webhook-id", id),
        ("webhook-timestamp", str(int(moment.timestamp()))),
        ("webhook-signature", Webhook(secret).sign(id, moment, content.decode())),
    ]


def _note(outcome: str, level: int, finished: WorkflowFinished, **said: Any) -> None:
    # The address is left out: what stands in its path or query may be a secret of the receiver's.
    metrics.count("webhook.sent", outcome=outcome)
    _log.log(level, "webhook %s", outcome, extra={"workflowId": finished.workflow, "status": outcome, **said})


webhook = on_messages(__file__, _handlers)
