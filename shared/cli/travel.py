"""Where `agent-team fork`, `rerun` and `diff` find their workflows: in the database of the settings, or behind a gateway's API.

With AGENT_BUS_PROVIDER=memory the bus is inside the running platform: what is started here waits in the queue until that platform's
next sweep, a second later, or until one is started.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

import httpx

from shared.cli.here import open_here
from shared.config import Settings
from shared.errors import BusUnavailable, ConfigurationError, InputError
from shared.runtime import Runtime
from shared.runtime.travel import Fork, fork, rerun

_CALL_SECONDS = 60.0
_FUNCTION = "cli"


class Workflows(Protocol):
    """Workflows, wherever they are."""

    async def get(self, id: str) -> dict[str, Any]:
        """One workflow. Raises NotFound."""
        ...

    async def fork(self, wanted: Fork) -> dict[str, Any]:
        """Start a fork: `{id, status}`."""
        ...

    async def rerun(self, id: str, step: str | None) -> dict[str, Any]:
        """Let a failed workflow go on: `{id, status}`. Raises InputError when it cannot."""
        ...


@asynccontextmanager
async def open_workflows(settings: Settings, url: str | None) -> AsyncIterator[Workflows]:
    """The workflows behind `url` or, without one, in the database of the settings."""
    if url is not None:
        async with httpx.AsyncClient(timeout=_CALL_SECONDS) as client:
            yield _Remote(client, url.rstrip("/"))
        return
    async with open_here(settings) as live:
        yield _Here(live)


def checked_id(id: str) -> str:
    """`id`, fit to be looked up. Raises InputError."""
    if not (id.isascii() and id.replace("_", "").isalnum() and len(id) <= 100):
        raise InputError("that is no workflow's id; give wf_ and 26 letters and digits")
    return id


class _Here:
    def __init__(self, live: Runtime) -> None:
        self._live = live
        self._held = live.settings.agent_bus_provider == "memory"

    async def get(self, id: str) -> dict[str, Any]:
        return await self._live.store.get(id)

    async def fork(self, wanted: Fork) -> dict[str, Any]:
        answer = await fork(self._live, wanted, function=_FUNCTION, held=self._held)
        return {"id": answer["workflow"], "status": answer["status"]}

    async def rerun(self, id: str, step: str | None) -> dict[str, Any]:
        answer = await rerun(self._live, id, function=_FUNCTION, step=step, held=self._held)
        if answer["type"] == "refused":
            raise InputError(f"workflow {id} cannot be rerun: {answer['reason']}")
        return {"id": id, "status": answer["status"]}


class _Remote:
    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def get(self, id: str) -> dict[str, Any]:
        return await self._ask("GET", f"/v1/workflows/{id}")

    async def fork(self, wanted: Fork) -> dict[str, Any]:
        body = {"at": wanted.at, "params": dict(wanted.params)}
        return _head(await self._ask("POST", f"/v1/workflows/{wanted.workflow}/fork", body))

    async def rerun(self, id: str, step: str | None) -> dict[str, Any]:
        return _head(await self._ask("POST", f"/v1/workflows/{id}/rerun", {"step": step}))

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        headers = {} if body is None else {"idempotency-key": f"cli-{uuid4()}"}
        try:
            answer = await self._client.request(method, f"{self._url}{path}", json=body, headers=headers)
            document = answer.json()
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise InputError(f"--url {self._url[:60]!r} is not an address; give for instance http://127.0.0.1:8080") from error
        except httpx.HTTPError as error:
            name = type(error).__name__
            raise BusUnavailable(f"{self._url} cannot be reached ({name}); is `agent-team serve` running there?") from error
        except ValueError as error:
            raise ConfigurationError(f"{self._url} does not answer like a gateway; correct --url") from error
        if not isinstance(document, dict) or not answer.is_success:
            detail = document.get("detail") if isinstance(document, dict) else None
            kind = InputError if answer.is_client_error else BusUnavailable
            raise kind(
                f"{self._url} refuses (HTTP {answer.status_code}): {detail if isinstance(detail, str) else 'no reason given'}"
            )
        return document


def _head(accepted: dict[str, Any]) -> dict[str, Any]:
    return {"id": accepted["id"], "status": accepted["status"]}
