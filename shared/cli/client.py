"""A gateway's API, as the verbs ask it over HTTP.

Every wait ends. What a person can put right is told in one line: nobody there, a key that is missing, an address where something
else answers. What passes (429 and 503 with `Retry-After`, an answer that got lost) is tried again a few times, where that cannot do
anything twice. Redirects are not followed: the API key is for the address that was given and for no other.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Final

import httpx
import orjson

from shared.cli.output import one_line, say
from shared.cli.sse import Event, EventReader
from shared.clock import Clock, SystemClock
from shared.config import Settings, redact_url
from shared.errors import AgentTeamError, ConfigurationError, GatewayUnavailable, InputError, NotFound
from shared.references import references

DEFAULT_URL: Final = "http://127.0.0.1:8080"
OPENED: Final = Event("", None, {})
"""What a stream of events begins with: it is there."""
_CALL_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 45.0
"""A stream says every 15 seconds that it is still there; after three that are missing it is not."""
_PAUSES_SECONDS: Final = (0.5, 1.0, 2.0, 4.0)
"""Before each further attempt, unless the gateway says how long."""
_LONGEST_PAUSE_SECONDS: Final = 60.0
_MAX_ANSWER_BYTES: Final = 128 * 1024 * 1024
_MAX_REFUSAL_BYTES: Final = 64 * 1024


class Unanswered(GatewayUnavailable):
    """The request was sent and no answer came: it may have been carried out."""


class Unreachable(GatewayUnavailable):
    """No connection: nothing was carried out."""


class TooMany(GatewayUnavailable):
    """Too many requests at once: this one was not begun."""


class Gateway:
    """The API behind one address. `url` is the address as it may be shown."""

    def __init__(self, http: httpx.AsyncClient, url: str, clock: Clock, tell: Callable[[str], None]) -> None:
        self.url = url
        self.clock = clock
        self._http = http
        self._tell = tell

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        """The object that the gateway answers with.

        What is not `repeatable` is sent again only when it was not carried out for sure. Raises NotFound, InputError for what the
        gateway refuses, ConfigurationError for a key or an address that is not right, GatewayUnavailable.
        """
        reached = False
        for pause in _PAUSES_SECONDS:
            try:
                return await self._once(method, path, params=params, json=body, headers=headers)
            except GatewayUnavailable as error:
                reached = reached or not isinstance(error, Unreachable)
                seconds = _pause(error, pause, reached=reached, repeatable=repeatable)
                if seconds is None:
                    raise
                self._tell(f"{error}; trying again in {seconds:g} s")
            await self.clock.sleep(seconds)
        return await self._once(method, path, params=params, json=body, headers=headers)

    async def workflow(self, id: str, *, steps: bool = False) -> dict[str, Any]:
        """A workflow with its output whole, however large, and with `steps` those of its steps, too. Errors as `ask`."""
        path = f"/v1/workflows/{id}"
        document = await self.ask("GET", path)
        with self.understood():
            # Not where their links lead, which may be to somebody else: the key is for this gateway alone.
            parts = [(document, path), *((step, f"{path}/steps/{step['id']}") for step in (document["steps"] if steps else ()))]
            stored = [(part, place) for part, place in parts if references(part["output"])]
        for part, place in stored:
            part["output"] = await self._whole(f"{place}/output")
        return document

    async def _whole(self, path: str) -> Any:
        with self._translated():
            async with asyncio.timeout(_CALL_SECONDS), self._http.stream("GET", path) as answer:
                data = await _read(answer, _MAX_ANSWER_BYTES if answer.is_success else _MAX_REFUSAL_BYTES)
                if not answer.is_success:
                    raise self._refusal(answer, data)
        with self.understood():
            return orjson.loads(data)

    async def events(self, id: str, *, after: int) -> AsyncGenerator[Event, None]:
        """OPENED, then what happens to a workflow after entry `after`, until the connection ends. Errors as `ask`, which see."""
        limits = httpx.Timeout(_CONNECT_SECONDS, read=_SILENCE_SECONDS)
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        with self._translated():
            async with self._http.stream("GET", f"/v1/workflows/{id}/events", headers=headers, timeout=limits) as answer:
                if answer.status_code != 200:
                    raise self._refusal(answer, await _read(answer, _MAX_REFUSAL_BYTES))
                if not answer.headers.get("content-type", "").startswith("text/event-stream"):
                    raise self._something_else(answer)
                yield OPENED
                reader = EventReader()
                async for chunk in answer.aiter_bytes():
                    for event in self._events(reader, chunk):
                        yield event

    def _events(self, reader: EventReader, chunk: bytes) -> list[Event]:
        with self.understood():
            return list(reader.feed(chunk))

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Whatever cannot be made out of an answer meanwhile is a ConfigurationError: a gateway of another version, or none."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ConfigurationError(
                f"{self.url} answers otherwise than a gateway of this version; is it one? Correct --url or AGENT_TEAM_URL"
            ) from error

    async def _once(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        with self._translated():
            async with asyncio.timeout(_CALL_SECONDS), self._http.stream(method, path, **more) as answer:
                if not answer.is_success:
                    raise self._refusal(answer, await _read(answer, _MAX_REFUSAL_BYTES))
                data = await _read(answer, _MAX_ANSWER_BYTES)
        document = _object(data)
        if document is None:
            raise self._something_else(answer)
        return document

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of httpx as ours."""
        try:
            yield
        except UnicodeEncodeError as error:
            raise InputError("what is to be sent is not UTF-8 text; check the arguments") from error
        except httpx.ConnectTimeout as error:
            raise Unreachable(self._nobody(f"no connection within {_CONNECT_SECONDS:g} s")) from error
        except (httpx.ConnectError, httpx.ProxyError) as error:
            if "SSL" in str(error):
                why = "its certificate is not trusted here" if "CERTIFICATE" in str(error) else "there is no TLS"
                raise ConfigurationError(f"{self.url} cannot be spoken to: {why}; correct --url or AGENT_TEAM_URL") from error
            raise Unreachable(self._nobody(_cause(error))) from error
        except (httpx.HTTPError, httpx.StreamError, TimeoutError) as error:
            raise Unanswered(f"{self.url} gives no answer ({type(error).__name__})") from error

    def _nobody(self, why: str) -> str:
        return f"{self.url} cannot be reached ({why}); start `agent-team serve` there, or set --url or AGENT_TEAM_URL"

    def _refusal(self, answer: httpx.Response, data: bytes) -> AgentTeamError:
        """What an answer that is no success means to whoever asked."""
        status = answer.status_code
        document = _object(data)
        detail = None if document is None else document.get("detail")
        why = f": {one_line(detail, longest=600)}" if isinstance(detail, str) else ""
        if status == 401:
            wrong = "does not take the key in AGENT_TEAM_API_KEY" if _shows_key(self._http) else "wants an API key"
            return ConfigurationError(f"{self.url} {wrong} (HTTP 401){why}; set AGENT_TEAM_API_KEY to one of its keys")
        if status == 403:
            key = "set AGENT_TEAM_API_KEY to a key that may" if _shows_key(self._http) else "set AGENT_TEAM_API_KEY"
            return ConfigurationError(f"{self.url} does not allow this (HTTP 403){why}; {key}")
        if status in (429, 502, 503, 504):
            seconds = _retry_after(answer.headers.get("retry-after"), self.clock.now())
            passing = TooMany if status == 429 else GatewayUnavailable
            return passing(f"{self.url} cannot do this now (HTTP {status}){why}", retry_after_seconds=seconds)
        if document is None:
            return self._something_else(answer)
        if status == 404:
            return NotFound(f"{self.url} refuses{why}")
        kind = InputError if answer.is_client_error else GatewayUnavailable
        return kind(f"{self.url} refuses (HTTP {status}){why}")

    def _something_else(self, answer: httpx.Response) -> ConfigurationError:
        what = one_line(answer.headers.get("content-type", "no content type"), longest=60)
        if answer.is_redirect:
            what = f"it points to {redact_url(one_line(answer.headers.get('location', 'nowhere'), longest=200))}"
        return ConfigurationError(
            f"{self.url} does not answer like a gateway (HTTP {answer.status_code}, {what}); correct --url or AGENT_TEAM_URL"
        )


@asynccontextmanager
async def open_gateway(
    settings: Settings, url: str | None, *, clock: Clock | None = None, tell: Callable[[str], None] | None = None
) -> AsyncIterator[Gateway]:
    """The gateway at `url` or, without one, at AGENT_TEAM_URL or here. `tell` gets a line when something is tried again.

    Raises InputError for an address that is none, ConfigurationError for a key that cannot be one.
    """
    address = _address(settings, url)
    headers = {"user-agent": "agent-team", **_authorization(settings)}
    limits = httpx.Timeout(_CALL_SECONDS, connect=_CONNECT_SECONDS)
    # A proxy that the environment names is for the world outside.
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=limits, trust_env=not _is_here(address)) as http:
        shown = redact_url(str(address)).rstrip("/")
        yield Gateway(http, shown, SystemClock() if clock is None else clock, _say if tell is None else tell)


def _say(text: str) -> None:
    say(text, style="yellow")


def _address(settings: Settings, url: str | None) -> httpx.URL:
    name = "AGENT_TEAM_URL" if url is None else "--url"
    given = url if url is not None else (settings.agent_team_url if settings.agent_team_url is not None else DEFAULT_URL)
    try:
        address = httpx.URL(given)
    except (httpx.InvalidURL, TypeError, ValueError):
        address = httpx.URL("")
    if address.scheme not in ("http", "https") or not address.host or (address.port is not None and not 0 < address.port < 65536):
        shown = redact_url(given) if "://" in given or "@" in given else given
        raise InputError(f"{name} {one_line(shown, longest=60)!r} is not an address; give for instance {DEFAULT_URL}")
    if address.userinfo or address.query or address.fragment:
        raise InputError(f"{name} holds more than an address; give scheme, host, port and path, and the key in AGENT_TEAM_API_KEY")
    return address


def _authorization(settings: Settings) -> dict[str, str]:
    if settings.agent_team_api_key is None:
        return {}
    key = settings.agent_team_api_key.get_secret_value()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigurationError("AGENT_TEAM_API_KEY holds characters that no key has; copy the key again")
    return {"authorization": f"Bearer {key}"}


def _shows_key(http: httpx.AsyncClient) -> bool:
    return "authorization" in http.headers


def _is_here(address: httpx.URL) -> bool:
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def _pause(error: GatewayUnavailable, pause: float, *, reached: bool, repeatable: bool) -> float | None:
    """The seconds until it is worth another try; None when it is not, or could be done twice."""
    if isinstance(error, Unreachable):
        return pause if reached else None
    if isinstance(error, Unanswered):
        return pause if repeatable else None
    seconds = error.retry_after_seconds
    if seconds is None or seconds > _LONGEST_PAUSE_SECONDS or not (repeatable or isinstance(error, TooMany)):
        return None
    return max(seconds, pause)


def _retry_after(header: str | None, now: datetime) -> float | None:
    """Seconds or a date (https://www.rfc-editor.org/rfc/rfc9110#field.retry-after)."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header[:9])
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo is not None else at.replace(tzinfo=UTC)) - now).total_seconds())


async def _read(answer: httpx.Response, most: int) -> bytes:
    data = bytearray()
    async for chunk in answer.aiter_bytes():
        data += chunk
        if len(data) > most:
            break  # whatever it is, it is not what was asked for
    return bytes(data)


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError:
        return None
    return document if isinstance(document, dict) else None


def _cause(error: BaseException) -> str:
    """The innermost reason that has words of its own."""
    reasons: list[str] = []
    known: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in known:
        known.add(id(link))
        if isinstance(link, OSError) and link.strerror:
            reasons.append(link.strerror)
        link = link.__cause__ if link.__cause__ is not None else link.__context__
    return one_line(reasons[-1], longest=80).lower() if reasons else "nobody answers there"
