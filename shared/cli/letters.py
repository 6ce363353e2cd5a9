"""Where `agent-team dead-letters` finds its letters: in the database of the settings, or behind a gateway's API.

Both give and take the JSON of the API, so that the verbs need not know which it is.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from shared.cli.client import Gateway, open_gateway
from shared.cli.here import open_here
from shared.cli.options import asks_gateway
from shared.config import Settings
from shared.errors import ConfigurationError, NotFound
from shared.runtime import Runtime
from shared.runtime.redrive import PAGE, Wanted, redrive_page

_PAGE_SECONDS = 10.0
"""How long the gateway may take for one page of a redrive: no proxy in between should lose patience."""


class Letters(Protocol):
    """Dead letters, wherever they are."""

    async def listed(self, wanted: dict[str, Any], *, cursor: int | None, limit: int) -> dict[str, Any]:
        """One page: `{items, next_cursor}`."""
        ...

    async def one(self, id: int, *, data: bool) -> dict[str, Any]:
        """One letter. Raises NotFound."""
        ...

    async def redrive(self, wanted: Wanted, *, dry_run: bool, rate: float, cursor: int | None) -> dict[str, Any]:
        """Redrive one page: `{matched, redriven, ids, refused, next_cursor}`."""
        ...


@asynccontextmanager
async def open_letters(settings: Settings, url: str | None) -> AsyncIterator[Letters]:
    """The letters behind `url` or AGENT_TEAM_URL or, where neither is given, in the database of the settings."""
    if asks_gateway(settings, url):
        async with open_gateway(settings, url) as gateway:
            yield _Remote(gateway)
        return
    async with open_here(settings) as live:
        yield _Here(live)


async def redrive_all(letters: Letters, wanted: Wanted, *, dry_run: bool, rate: float) -> dict[str, Any]:
    """Every page, as one: `{matched, redriven, ids, refused, dry_run}`."""
    cursor: int | None = None
    ids: list[int] = []
    refused: list[dict[str, Any]] = []
    matched: int | None = None
    while True:
        page = await letters.redrive(wanted, dry_run=dry_run, rate=rate, cursor=cursor)
        # What is redriven does not match any more, so only the first page knows how many there were.
        matched = page["matched"] if matched is None else matched
        ids += page["ids"]
        refused += page["refused"]
        cursor = page["next_cursor"]
        if cursor is None:
            return {"matched": matched, "redriven": len(ids), "ids": ids, "refused": refused, "dry_run": dry_run}


class _Here:
    def __init__(self, live: Runtime) -> None:
        self._live = live

    async def listed(self, wanted: dict[str, Any], *, cursor: int | None, limit: int) -> dict[str, Any]:
        state = wanted.pop("state", None)
        wanted |= {} if state is None else {"states": [state]}
        found = await self._live.store.letters.listed(wanted, before=cursor, limit=limit + 1)
        items = found[:limit]
        return {"items": items, "next_cursor": items[-1]["id"] if len(found) > limit else None}

    async def one(self, id: int, *, data: bool) -> dict[str, Any]:
        for letter in await self._live.store.letters.read([id]):
            return letter if data else {**letter, "data": None}
        raise NotFound(f"there is no dead letter {id}; `agent-team dead-letters list` shows those that there are")

    async def redrive(self, wanted: Wanted, *, dry_run: bool, rate: float, cursor: int | None) -> dict[str, Any]:
        if not dry_run and self._live.settings.agent_bus_provider == "memory":
            raise ConfigurationError(
                "AGENT_BUS_PROVIDER is memory, and that bus is inside the running platform; redrive there: --url http://127.0.0.1:8080"
            )
        outcome = await redrive_page(self._live, wanted, dry_run=dry_run, rate=rate, cursor=cursor, limit=PAGE)
        return outcome.as_dict()


class _Remote:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def listed(self, wanted: dict[str, Any], *, cursor: int | None, limit: int) -> dict[str, Any]:
        parameters = {**wanted, "limit": limit, **({} if cursor is None else {"cursor": cursor})}
        texts = {name: value if isinstance(value, str | int) else value.isoformat() for name, value in parameters.items()}
        return await self._gateway.ask("GET", "/v1/dead-letters", params=texts)

    async def one(self, id: int, *, data: bool) -> dict[str, Any]:
        return await self._gateway.ask("GET", f"/v1/dead-letters/{id}", params={"data": data})

    async def redrive(self, wanted: Wanted, *, dry_run: bool, rate: float, cursor: int | None) -> dict[str, Any]:
        limit = PAGE if dry_run else max(1, min(PAGE, int(rate * _PAGE_SECONDS)))
        body: dict[str, Any] = {
            "ids": list(wanted.ids),
            "cause": wanted.cause,
            "function": wanted.function,
            "since": None if wanted.since is None else wanted.since.isoformat(),
            "until": None if wanted.until is None else wanted.until.isoformat(),
            "again": wanted.again,
            "rate": rate,
            "dry_run": dry_run,
            "cursor": cursor,
            "limit": limit,
        }
        return await self._gateway.ask("POST", "/v1/dead-letters/redrive", body=body, repeatable=dry_run)
