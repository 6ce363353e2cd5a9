"""`/approve/<token>`: a page on which a person decides on an approval, without a key.

The link proves what it is good for: one decision on one approval, while that waits. To look at the page decides nothing, because
scanners of mail and chat follow every link; only what its form posts does. The token is taken out of the path before anything else
sees the request, so that no log, trace or error can tell it.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, get_args
from urllib.parse import parse_qsl

import orjson
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from ulid import ULID

from functions.gateway.approval_page import Asked, Refusal, Verdict, form_page, refusal_page, verdict_page
from functions.gateway.strict import MAX_DEPTH, is_deeper
from shared.errors import Conflict, InputError, NotFound
from shared.messages import APPROVE, ApprovalLink, Decision, WorkflowSignalled, approval_links, read_token
from shared.runtime import Runtime
from shared.runtime.signals import send_signal

_log = logging.getLogger(__name__)

Links = Callable[..., dict[str, str]]
"""What makes `links` of a step, of its `workflow`, `step`, `attempt`, what it is `waiting` for, and the time that is `now`."""

_MISTAKES: Final = {
    "value": "say under Change what shall count instead",
    "comment": "the comment is longer than 2,000 characters",
}
_LONGEST_NAME: Final = 100
_MOST_FIELDS: Final = 10
_PAGE: Final = 1000

_FORGED = Refusal(403, "This link is not valid", "It is incomplete or was altered, or the key that made it is no longer trusted.")
_NO_TOKEN = Refusal(404, "There is nothing here", "A link to an approval is longer; copy all of it.")
_UNKNOWN = Refusal(404, "This workflow is no longer here", "It ended long ago, and was cleared away.")
_EXPIRED = Refusal(410, "This link has expired", "Whoever sent it can make a new one while the question is still open.")
_ASKED_ANEW = Refusal(410, "This question was asked anew", "The workflow went on since; ask whoever sent this for the new link.")
_ENDED = Refusal(410, "There is nothing to decide any more", "The workflow went on or ended without an answer.")


class HiddenToken:
    """Takes the token out of the path, also for servers and loggers around this application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path.startswith(f"{APPROVE}/"):
            # In place: what writes access logs holds this very mapping.
            scope.setdefault("state", {})["approval"] = path[len(APPROVE) + 1 :]
            scope.update(path=APPROVE, raw_path=APPROVE.encode())
        await self._app(scope, receive, send)


def add_approvals(app: FastAPI, live: Runtime) -> None:
    """Let links to approvals be opened and decided on."""

    async def show(request: Request) -> Response:
        return await _answered(live, request, decide=False)

    async def decide(request: Request) -> Response:
        return await _answered(live, request, decide=True)

    app.add_api_route(APPROVE, show, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_api_route(APPROVE, decide, methods=["POST"], include_in_schema=False)


async def links_for(request: Request) -> Links | None:
    """What makes the links for whoever sent `request`; None when they may not decide themselves."""
    if request.state.scope == "read":
        return None
    live: Runtime = request.app.state.live
    await live.ring.fresh()
    given = live.settings.public_url
    base = _base(request.scope, live.settings.api_proxy_hops) if given is None else given
    return partial(approval_links, live.ring, base)


def _base(scope: Scope, hops: int) -> str:
    """Scheme and host that a request was sent to; behind proxies it was https where the one that called says so."""
    headers = Headers(scope=scope)
    is_https = hops > 0 and headers.get("x-forwarded-proto", "").rpartition(",")[2].strip() == "https"
    return f"{'https' if is_https else scope['scheme']}://{headers.get('host', 'localhost')}"


async def _answered(live: Runtime, request: Request, *, decide: bool) -> Response:
    token = getattr(request.state, "approval", "")
    if not token:
        return refusal_page(_NO_TOKEN)
    await live.ring.fresh()
    link = read_token(token, live.ring)
    if link is None:
        _log.warning("a link to an approval is not valid", extra={"status": "rejected"})
        return refusal_page(_FORGED)
    if link.expires <= live.clock.now().timestamp():
        return refusal_page(_EXPIRED)
    found = await _asked(live, link)
    if not isinstance(found, Asked):
        return found
    return await _decided(live, request, link, found) if decide else form_page(found)


async def _asked(live: Runtime, link: ApprovalLink) -> Asked | Response:
    """What the link asks; where that is no longer asked, the page that tells why."""
    try:
        document = await live.store.get(link.workflow)
    except NotFound:
        return refusal_page(_UNKNOWN)
    step = next((one for one in document["steps"] if one["id"] == link.step), None)
    if step is None or step["attempt"] != link.attempt:
        return refusal_page(_ASKED_ANEW)
    waiting = step["waiting"]
    if waiting is None or waiting["for"] != "approval":
        return await _told_before(live, link)
    return Asked(
        workflow=f"{document['workflow']} v{document['version']}",
        id=link.workflow,
        step=link.step,
        prompt=waiting["prompt"],
        since=datetime.fromisoformat(waiting["since"]),
        until=datetime.fromtimestamp(link.expires, UTC),
    )


async def _told_before(live: Runtime, link: ApprovalLink) -> Response:
    """Who decided what, which nobody can change any more."""
    after, has_waited = 0, False
    while page := await live.store.history(link.workflow, after=after, limit=_PAGE):
        for entry in page:
            if entry["step"] == link.step and entry["attempt"] == link.attempt and entry["type"] == "step.waiting":
                has_waited = True
            elif has_waited and entry["type"] == "workflow.signalled" and entry["data"]["name"] == link.step:
                return verdict_page(_verdict(entry), status=410)
        after = page[-1]["seq"]
    return refusal_page(_ENDED)


def _verdict(entry: dict[str, Any]) -> Verdict:
    told = entry["data"]
    at = datetime.fromisoformat(entry["at"])
    return Verdict(told["decision"], by=told.get("by", ""), at=at, comment=told.get("comment", ""))


async def _decided(live: Runtime, request: Request, link: ApprovalLink, asked: Asked) -> Response:
    given: dict[str, str] = {}
    try:
        given = await _form(request)
        payload = _payload(link, given)
        _, status = await send_signal(live, payload, source="gateway", signal=f"link/{ULID()}")
    except InputError as error:
        return form_page(asked, problem=str(error), given=given)
    except NotFound:
        return refusal_page(_UNKNOWN)
    except Conflict:
        return await _told_before(live, link)
    _log.info("workflow signalled", extra={"workflowId": link.workflow, "status": status, "reason": "link"})
    return verdict_page(Verdict(given["decision"], by=payload.by, at=live.clock.now(), comment=payload.comment))


async def _form(request: Request) -> dict[str, str]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind != "application/x-www-form-urlencoded":
        raise InputError("this is not what the form sends; use the buttons below")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS))
    except ValueError:
        raise InputError("this is not what the form sends; use the buttons below") from None


def _payload(link: ApprovalLink, given: dict[str, str]) -> WorkflowSignalled:
    """What the form says. Raises InputError."""
    name = " ".join("".join(one if one.isprintable() else " " for one in given.get("name", "")).split())[:_LONGEST_NAME]
    fields = {
        "workflow": link.workflow,
        "name": link.step,
        "decision": given.get("decision"),
        "data": _value(given.get("value", "")) if given.get("decision") == "amend" else None,
        "comment": given.get("comment", "").replace("\r\n", "\n").strip(),
        "by": f"link: {name} (not verified)" if name else "link",
    }
    if fields["decision"] not in get_args(Decision):
        raise InputError("choose one of the buttons below")
    try:
        return WorkflowSignalled.model_validate(fields)
    except ValidationError as error:
        wrong = {str(one["loc"][-1]) if one["loc"] else "value" for one in error.errors()}
        raise InputError("; ".join(_MISTAKES.get(name, f"{name} cannot be taken") for name in sorted(wrong))) from None


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text as it is; None where there is none."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text.replace("\r\n", "\n") if text.strip() else None
    if is_deeper(value, MAX_DEPTH):
        raise InputError(f"what shall count instead has more than {MAX_DEPTH} levels of lists and objects")
    return value
