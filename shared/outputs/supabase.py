"""Outputs in a private bucket of Supabase Storage (https://supabase.com/docs/guides/storage), over its HTTP API.

An object is made where there is none and never written again. An error is told by the `statusCode` in the answer's body where there
is one: the service sends 400 for most. Nothing there deletes what is old. Messages name the project's host and the bucket, never
the key, and nothing of the answer.
"""

import asyncio
from collections.abc import Collection
from datetime import timedelta
from typing import Final
from urllib.parse import quote, urlsplit

import httpx
import orjson

from shared.errors import AgentTeamError, ConfigurationError, InputError, StoreUnavailable

_CONNECT_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 30.0
_BUSY: Final = frozenset({408, 423, 425, 429, 544})
"""544 is Storage's own: its database did not answer in time."""


class SupabaseStore:
    """Objects `<prefix>/<hash>` of a bucket. The client is made on first use in the running loop."""

    def __init__(self, url: str, key: str, *, bucket: str, prefix: str = "") -> None:
        self._base = f"{url.rstrip('/')}/storage/v1/object"
        self._headers = {"authorization": f"Bearer {key}", "apikey": key}
        self._bucket = bucket
        self._prefix = prefix
        self._where = f"the bucket {bucket} at {urlsplit(url).hostname}"
        self._http: httpx.AsyncClient | None = None

    async def put(self, id: str, data: bytes) -> None:
        headers = {"content-type": "application/json", "x-upsert": "false"}
        status = await self._asked("POST", self._path(id), content=data, headers=headers)
        if isinstance(status, int) and status != 409:  # it is there
            raise self._refusal(status)

    async def get(self, id: str) -> bytes | None:
        answer = await self._asked("GET", f"authenticated/{self._path(id)}")
        if answer == 404:
            return None
        if isinstance(answer, int):
            raise self._refusal(answer)
        return answer

    async def stale(self, older_than: timedelta) -> list[str]:
        return []

    async def remove(self, ids: Collection[str], older_than: timedelta) -> int:
        return 0

    async def close(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            await http.aclose()

    def _path(self, id: str) -> str:
        return quote("/".join(part for part in (self._bucket, self._prefix, id) if part))

    async def _asked(self, method: str, path: str, **more: object) -> bytes | int:
        """The body of a success, else the status that the service means."""
        if self._http is None:
            self._http = httpx.AsyncClient(
                headers=self._headers,
                timeout=httpx.Timeout(_CALL_SECONDS, connect=_CONNECT_SECONDS),
                limits=httpx.Limits(max_connections=8, keepalive_expiry=_IDLE_SECONDS),
            )
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                answer = await self._http.request(method, f"{self._base}/{path}", **more)  # type: ignore[arg-type]
        except (httpx.InvalidURL, httpx.UnsupportedProtocol, ValueError) as error:
            raise ConfigurationError("SUPABASE_URL is not a project's URL: https://<project>.supabase.co") from error
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            raise StoreUnavailable(f"{self._where} cannot be reached or gives no answer ({type(error).__name__})") from error
        return answer.content if answer.is_success else _meant(answer)

    def _refusal(self, status: int) -> AgentTeamError:
        if status >= 500 or status in _BUSY:
            return StoreUnavailable(f"{self._where} cannot work now (HTTP {status})")
        if status in (401, 403):
            return ConfigurationError(
                f"{self._where} refuses the key (HTTP {status}); set SUPABASE_SERVICE_ROLE_KEY to the service role key"
            )
        if status == 413:
            return InputError(f"{self._where} takes no output as large (HTTP 413); raise its limit of a file's size to 64 MB")
        return ConfigurationError(
            f"{self._where} does not exist or refuses the request (HTTP {status}); create it, or correct OUTPUTS_URL"
        )


def _meant(answer: httpx.Response) -> int:
    try:
        body = orjson.loads(answer.content)
        if body.get("error") == "Bucket not found" or body.get("message") == "Bucket not found":
            return 400
        return int(body["statusCode"])
    except (orjson.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError):
        return answer.status_code
