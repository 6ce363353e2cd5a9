"""The state over Supabase's HTTP API: PostgREST runs the same SQL functions, as the role that the key stands for.

A call is one POST to `/rest/v1/rpc/<function>` and one transaction. Calls wait for one of a few connections, so that however many
are made at once the project sees no more than those. Nothing is sent twice here: whoever called knows whether to try again.

An error of PostgREST is told by its code (https://docs.postgrest.org/en/stable/references/errors.html), one of what stands in front
of it by the HTTP status (https://supabase.com/docs/guides/platform/http-status-codes). Messages name the project's host, never the
key, and nothing of the answer, which quotes values.
"""

import asyncio
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
from postgrest.exceptions import APIError
from supabase import AsyncClient, AsyncClientOptions, AsyncSupabaseException, acreate_client

from shared.errors import AgentTeamError, ConfigurationError, Permanent, StoreUnavailable
from shared.state.sqlstates import error_for

_CONNECT_SECONDS = 10.0
_CALL_SECONDS = 60.0
_IDLE_SECONDS = 30.0
_SQLSTATE = re.compile(r"[0-9A-Z]{5}")
_JSON = "application/json"


class SupabaseCaller:
    """Calls SQL functions over HTTP; the client is made on first use in the running loop.

    `connections` bounds how many calls are in flight; the others wait, up to the time that a call may take.
    """

    def __init__(self, url: str, key: str, *, connections: int = 8) -> None:
        """Raises ConfigurationError for a key that no header can hold."""
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ConfigurationError("SUPABASE_SERVICE_ROLE_KEY holds characters that no key has; copy it again from the dashboard")
        self._url = url
        self._key = key
        self._connections = connections
        self._opening = asyncio.Lock()
        self._http: httpx.AsyncClient | None = None
        self._client: AsyncClient | None = None

    async def call(self, function: str, arguments: Mapping[str, Any]) -> Any:
        try:
            # With the client's own JSON, other types and depths would pass than over a connection.
            plain = orjson.loads(orjson.dumps(dict(arguments)))
            async with asyncio.timeout(_CALL_SECONDS):
                client = self._client or await self._open()
                answer = await client.rpc(function, plain).execute()
        except Exception as error:
            raise translate(error, host=_host(self._url), function=function) from error
        return answer.data

    async def close(self) -> None:
        http, self._http, self._client = self._http, None, None
        if http is not None:
            await http.aclose()

    async def _open(self) -> AsyncClient:
        async with self._opening:
            if self._client is None:
                self._http = httpx.AsyncClient(
                    timeout=httpx.Timeout(_CALL_SECONDS, connect=_CONNECT_SECONDS),
                    limits=httpx.Limits(max_connections=self._connections, keepalive_expiry=_IDLE_SECONDS),
                    event_hooks={"response": [_refuse_strangers]},
                )
                options = AsyncClientOptions(httpx_client=self._http, auto_refresh_token=False, persist_session=False)
                self._client = await acreate_client(self._url, self._key, options)
        return self._client


async def _refuse_strangers(response: httpx.Response) -> None:
    """Raise HTTPStatusError for what PostgREST did not write: it would pass for an answer, or for an error without a code."""
    content = await response.aread()
    if response.is_success:
        known = bool(content) and response.headers.get("content-type", "").startswith(_JSON)
    else:
        known = _is_known(_code(content))
    if not known:
        raise httpx.HTTPStatusError("not an answer of PostgREST", request=response.request, response=response)


def _code(content: bytes) -> object:
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return body.get("code") if isinstance(body, dict) else None


def _is_known(code: object) -> bool:
    return isinstance(code, str) and (code.startswith("PGRST") or _SQLSTATE.fullmatch(code) is not None)


_MIGRATE = "the database behind {host} does not have the platform's schema; run `agent-team migrate`"
_WRONG_KEY = "{host} refuses the key; set SUPABASE_SERVICE_ROLE_KEY to the project's service role key (dashboard, API keys)"
_EXPIRED = "the key for {host} has expired; set SUPABASE_SERVICE_ROLE_KEY to a new service role key (dashboard, API keys)"
_WRONG_URL = "{host} does not answer like a Supabase project; correct SUPABASE_URL: https://<project>.supabase.co"
_HIDDEN_SCHEMA = "{host} does not expose the schema public; add it in the dashboard's Data API settings"
_PAUSED = "the Supabase project at {host} is paused; resume it in the dashboard"
_UNKNOWN_HOST = "{host} is not known to DNS; correct SUPABASE_URL, or resume the project in the dashboard if it is paused"
_DOWN = "the Supabase project at {host} cannot work now ({name}); if that lasts, see in the dashboard whether it is paused"
_RESTRICTED = "the Supabase project at {host} is restricted ({name}); see its usage and billing in the dashboard"

_FIXES = {
    "28": _WRONG_KEY,
    "3F": _MIGRATE,
    "42": _MIGRATE,
    "42501": "the key for {host} may not call the platform's functions; set SUPABASE_SERVICE_ROLE_KEY to the service role key",
}
_POSTGREST_FIXES = {
    "PGRST106": _HIDDEN_SCHEMA,
    "PGRST202": _MIGRATE,
    "PGRST203": _MIGRATE,
    "PGRST300": "{host} has no JWT secret and so takes no key; give its PostgREST one",
    "PGRST301": _WRONG_KEY,
    "PGRST302": _WRONG_KEY,
    "PGRST303": _WRONG_KEY,
}
_PERMANENT_STATUSES = frozenset({400, 413, 414, 431})
_KEY_STATUSES = frozenset({401, 403})
_BUSY_STATUSES = frozenset({408, 425, 429})


def translate(error: BaseException, *, host: str, function: str) -> AgentTeamError:
    """The platform's error for one of PostgREST's, the gateway's in front of it or the network's, on a call of `function`."""
    name = type(error).__name__
    match error:
        case APIError():
            return _translate_code(error, host, function)
        case httpx.HTTPStatusError():
            return _translate_status(error.response, host)
        case httpx.InvalidURL() | httpx.UnsupportedProtocol() | AsyncSupabaseException() | ValueError():
            return ConfigurationError("SUPABASE_URL is not a project's URL: https://<project>.supabase.co")
        case httpx.ConnectError() if any(isinstance(cause, socket.gaierror) for cause in _causes(error)):
            return StoreUnavailable(_UNKNOWN_HOST.format(host=host))
        case httpx.HTTPError() | TimeoutError() | OSError():
            return StoreUnavailable(_DOWN.format(host=host, name=name))
        case TypeError():  # orjson's only one
            return Permanent("an argument of the database call cannot be written as JSON")
        case _:
            return StoreUnavailable(f"the call of {host} failed ({name})")


def _translate_code(error: APIError, host: str, function: str) -> AgentTeamError:
    code = error.code if error.code is not None else ""
    if not code.startswith("PGRST"):
        fixes = {known: fix.format(host=host) for known, fix in _FIXES.items()}
        return error_for(code, function, fixes=fixes)
    if code in ("PGRST301", "PGRST303") and error.message == "JWT expired":
        return ConfigurationError(f"{_EXPIRED.format(host=host)} ({code})")
    fix = _POSTGREST_FIXES.get(code)
    if fix is not None:
        return ConfigurationError(f"{fix.format(host=host)} ({code}, {function})")
    if code.startswith("PGRST1"):
        return Permanent(f"{host} refuses the call of {function} ({code})")
    return StoreUnavailable(_DOWN.format(host=host, name=code))


def _translate_status(response: httpx.Response, host: str) -> AgentTeamError:
    status = response.status_code
    name = f"HTTP {status}"
    if status == 540:
        return StoreUnavailable(_PAUSED.format(host=host))
    if status == 402:
        return StoreUnavailable(_RESTRICTED.format(host=host, name=name))
    if status >= 500 or status in _BUSY_STATUSES:
        return StoreUnavailable(_DOWN.format(host=host, name=name), retry_after_seconds=_retry_after(response))
    if status in _PERMANENT_STATUSES:
        return Permanent(f"{host} refuses the call ({name})")
    fix = _WRONG_KEY if status in _KEY_STATUSES else _WRONG_URL
    return ConfigurationError(f"{fix.format(host=host)} ({name})")


def _retry_after(response: httpx.Response) -> float | None:
    seconds = response.headers.get("retry-after", "")
    return float(seconds) if seconds.isdecimal() else None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ if cause.__cause__ is not None else cause.__context__


def _host(url: str) -> str:
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    return "SUPABASE_URL" if host is None else host
