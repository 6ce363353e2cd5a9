"""Who calls the API, and what they may do.

A caller shows `Authorization: Bearer` with an API key or, where `API_AUDIENCE` is given, a Google identity token of one of
`API_CALLERS`. Only the pages and health checks of `OPEN` are for everybody: whatever else there is asks for a caller before
anything of the request is read, and each route says by `allowed` what the caller must be allowed to do.

Outside production the API is open for as long as no key was ever added and no audience is given. Production is closed then: 503.
An answer of the state is believed for up to 30 seconds, so that is how long a revoked key may still be taken.
"""

import asyncio
import hmac
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as Connection

from functions.gateway.problems import UNAUTHENTICATED, UNAVAILABLE, answer_to, problem
from shared.clock import Clock
from shared.errors import AgentTeamError, ConfigurationError, TokenRefused
from shared.messages import APPROVE
from shared.runtime import Runtime
from shared.state import SCOPES, Scope
from shared.state.keys import digest, id_of
from shared.telemetry import describe_error

_log = logging.getLogger(__name__)
_V = TypeVar("_V")

OPEN: Final = frozenset({"/", "/docs", "/openapi.json", "/health", "/health/ready", APPROVE})
"""Paths that need no caller: they tell nothing of what is kept here. A link to an approval proves itself what it is good for."""
KEPT_SECONDS: Final = 30.0
_OPEN_SECONDS: Final = 1.0
"""That there are no keys yet is believed for less: whoever adds the first one means it now."""
_MOST_KEPT: Final = 1000
_DETAILS_SECONDS: Final = 2.0
_CHALLENGE: Final = {"www-authenticate": "Bearer"}
_SAFE: Final = ("GET", "HEAD", "OPTIONS")
_CLOSED: Final = (
    "the API takes no callers: in production it needs keys; make one with `agent-team keys api add NAME`, "
    "or set API_AUDIENCE and API_CALLERS"
)
_BEARER = HTTPBearer(
    scheme_name="bearer",
    description="An API key, as `agent-team keys api add NAME` makes it, or a Google identity token.",
    auto_error=False,
)


class Caller(NamedTuple):
    """Who calls: a key's name or an account's email, None while the API is open; and what they may do."""

    name: str | None
    scope: Scope


class Allowed:
    """What a router or a route asks of its callers: `scope` and, to change anything, at least `submit`.

    `read` is for whatever is read, `submit` is for workflows, `admin` for all the rest.
    """

    def __init__(self, scope: Scope) -> None:
        self._scope: Scope = scope

    def needed(self, method: str) -> Scope:
        """The scope that a request of this method needs."""
        return self._scope if method in _SAFE else max(self._scope, "submit", key=SCOPES.index)

    async def __call__(
        self, request: Request, _documented: Annotated[HTTPAuthorizationCredentials | None, Security(_BEARER)]
    ) -> None:
        """Raise HTTPException (403) when the caller may not do this."""
        needed = self.needed(request.method)
        if SCOPES.index(request.state.scope) < SCOPES.index(needed):
            raise HTTPException(403, f"this needs the scope {needed}")


allowed = Allowed


class Gate:
    """Lets in who may call, and notes `caller` (a name) and `scope` in the request's state. Everybody else gets 401."""

    def __init__(self, app: ASGIApp, *, callers: "Callers") -> None:
        self._app = app
        self._callers = callers

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        app = self._app
        try:
            caller = await self._callers.identify(Headers(scope=scope))
        except ConfigurationError as error:
            _log.error("%s", describe_error(error)["message"], extra={"path": scope["path"], "status": "closed"})
            app = problem(UNAVAILABLE, "this cannot be served now; the operator's log says why")
        except AgentTeamError as error:
            app = answer_to(error, path=scope["path"])
        else:
            if caller is None:
                detail = "show an API key or a Google identity token that is valid here: Authorization: Bearer ..."
                app = problem(UNAUTHENTICATED, detail, headers=_CHALLENGE)
            else:
                scope.setdefault("state", {}).update(caller=caller.name, scope=caller.scope)
        await app(scope, receive, send)


class Callers:
    """Knows who may call."""

    def __init__(self, live: Runtime) -> None:
        self._live = live
        self._keys = _Kept(lambda id: live.store.keys.find(id), live.clock, seconds=KEPT_SECONDS)
        self._any = _Kept(lambda _: live.store.keys.exist(), live.clock, seconds=_OPEN_SECONDS)
        self._noted: OrderedDict[str, float] = OrderedDict()
        self._is_guarded = live.settings.api_audience is not None
        """Whether callers must show something. Once it is known it stays so: keys are never forgotten."""
        self._told = False

    async def identify(self, headers: Headers) -> Caller | None:
        """Who sends these headers; None when that is nobody who may call.

        Raises ConfigurationError while nobody could, and what the state raises, or Transient when Google cannot be asked.
        """
        if not await self._guarded():
            return Caller(None, "admin")
        shown = headers.getlist("authorization")
        scheme, _, token = shown[0].partition(" ") if len(shown) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            return None
        id = id_of(token.strip())
        return await self._of_google(shown[0]) if id is None else await self._of_key(id, token.strip())

    async def may_read(self, headers: Headers) -> bool:
        """Whether to tell more than strangers need to know. Never raises, and does not wait for long."""
        try:
            async with asyncio.timeout(_DETAILS_SECONDS):
                return await self.identify(headers) is not None
        except Exception as error:
            if not isinstance(error, AgentTeamError | TimeoutError):
                _log.error("it cannot be told who asks", extra={"error": describe_error(error)})
            # Who runs the platform at home and has lost the database should learn why.
            return not (self._is_guarded or self._live.settings.is_production)

    async def _guarded(self) -> bool:
        if not self._is_guarded:
            self._is_guarded = await self._any.of("")
        if not self._is_guarded:
            if self._live.settings.is_production:
                raise ConfigurationError(_CLOSED)
            if not self._told:
                self._told = True
                _log.warning("the API is open: there are no API keys, so whoever reaches its port can start and cancel workflows")
        return self._is_guarded

    async def _of_key(self, id: str, key: str) -> Caller | None:
        known = await self._keys.of(id)
        if known is None or not hmac.compare_digest(known["hash"], digest(key)):
            return None
        await self._note_use(id)
        return Caller(known["name"], known["scope"])

    async def _note_use(self, id: str) -> None:
        now = self._live.clock.monotonic()
        if now - self._noted.get(id, float("-inf")) < 2 * KEPT_SECONDS:
            return
        self._noted[id] = now
        self._noted.move_to_end(id)
        if len(self._noted) > _MOST_KEPT:
            self._noted.popitem(last=False)
        try:
            await self._live.store.keys.note_use(id)
        except AgentTeamError as error:  # the caller may call all the same
            _log.warning("the use of an API key cannot be noted", extra={"error": describe_error(error)})

    async def _of_google(self, authorization: str) -> Caller | None:
        tokens = self._live.api_tokens
        if tokens is None:
            return None
        try:
            email = (await tokens.email(authorization)).lower()
        except TokenRefused as error:
            _log.info("a caller was refused: the token %s", error, extra={"status": "rejected"})
            return None
        scope = self._live.settings.api_callers.get(email)
        return None if scope is None else Caller(email, scope)


class _Kept(Generic[_V]):
    """Answers of the state, each kept for a time, negative ones too. Who asks while an answer is on its way waits for that one."""

    def __init__(self, ask: Callable[[str], Awaitable[_V]], clock: Clock, *, seconds: float) -> None:
        self._ask = ask
        self._clock = clock
        self._seconds = seconds
        self._answers: OrderedDict[str, tuple[asyncio.Future[_V], float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    async def of(self, question: str) -> _V:
        """The answer. Raises what asking raises; that is not kept."""
        now = self._clock.monotonic()
        answer, until = self._answers.get(question, (None, 0.0))
        if answer is None or until <= now or _has_failed(answer):
            answer = asyncio.ensure_future(self._ask(question))
            answer.add_done_callback(_has_failed)  # looked at, even when everybody who waited has gone away
            self._answers[question] = answer, now + self._seconds
            if len(self._answers) > _MOST_KEPT:
                self._answers.popitem(last=False)
        self._answers.move_to_end(question)
        return await asyncio.shield(answer)


def _has_failed(answer: asyncio.Future[Any]) -> bool:
    return answer.done() and (answer.cancelled() or answer.exception() is not None)
