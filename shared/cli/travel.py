"""Where `agent-team fork`, `rerun` and `diff` find their workflows: in the database of the settings, or behind a gateway's API.

With AGENT_BUS_PROVIDER=memory the bus is inside the running platform: what is started here waits in the queue until that platform's
next sweep, a second later, or until one is started.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import uuid4

from shared.cli.client import Gateway, open_gateway
from shared.cli.here import open_here
from shared.cli.options import asks_gateway
from shared.config import Settings
from shared.errors import InputError
from shared.runtime import Runtime
from shared.runtime.travel import Fork, fork, rerun

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
    """The workflows behind `url`, else behind `AGENT_TEAM_URL`, else in the database of the settings."""
    if asks_gateway(settings, url):
        async with open_gateway(settings, url) as gateway:
            yield _Remote(gateway)
        return
    async with open_here(settings) as live:
        yield _Here(live)


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
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def get(self, id: str) -> dict[str, Any]:
        return await self._gateway.ask("GET", f"/v1/workflows/{id}")

    async def fork(self, wanted: Fork) -> dict[str, Any]:
        body = {"at": wanted.at, "params": dict(wanted.params)}
        return await self._started(f"/v1/workflows/{wanted.workflow}/fork", body)

    async def rerun(self, id: str, step: str | None) -> dict[str, Any]:
        return await self._started(f"/v1/workflows/{id}/rerun", {"step": step})

    async def _started(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        # The key makes it one, however often it is sent.
        answer = await self._gateway.ask("POST", path, body=body, headers={"idempotency-key": f"cli-{uuid4()}"})
        with self._gateway.understood():
            return {"id": answer["id"], "status": answer["status"]}
