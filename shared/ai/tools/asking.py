"""The platform's documents through its gateway, for agents: their accounts have no database."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import httpx

from shared.errors import ConfigurationError, HostUnavailable

_SECONDS: Final = 10.0


class GatewayDocuments:
    """Asks the gateway at `url` (`GET /v1/documents/search`), with an API key of scope read where it wants one."""

    def __init__(self, url: str, key: str | None) -> None:
        self._url = url
        self._key = key

    async def search(self, query: str, limit: int) -> Sequence[Mapping[str, Any]]:
        """The passages that fit best. Raises ConfigurationError for a refused key, and HostUnavailable without an answer."""
        try:
            answer = await self._client.get("/v1/documents/search", params={"query": query, "limit": limit})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HostUnavailable(
                f"the documents cannot be searched now: the gateway does not answer ({type(error).__name__})"
            ) from error
        if answer.status_code in (401, 403):
            raise ConfigurationError(
                f"the gateway lets nobody search documents with this key (HTTP {answer.status_code}); "
                "make one with `agent-team keys api add NAME --scope read` and set AGENT_TEAM_API_KEY to it"
            )
        if not answer.is_success:
            raise HostUnavailable(f"the documents cannot be searched now: the gateway answered with HTTP {answer.status_code}")
        try:
            found: Any = answer.json()["items"]
            return [{name: one[name] for name in ("document", "position", "text")} for one in found]
        except (ValueError, KeyError, TypeError) as error:
            raise HostUnavailable(
                "the documents cannot be searched now: AGENT_TEAM_URL does not answer as the gateway does"
            ) from error

    async def close(self) -> None:
        """Let go of the connections, if there are any."""
        if "_client" in self.__dict__:
            await self._client.aclose()

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        headers = {} if self._key is None else {"authorization": f"Bearer {self._key}"}
        return httpx.AsyncClient(base_url=self._url, headers=headers, timeout=_SECONDS, trust_env=False)
