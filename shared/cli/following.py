"""Follows a workflow at a gateway until it has ended, through restarts of the gateway and broken connections."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

import orjson
import typer
from rich.console import Console

from shared.cli.client import OPENED, Gateway
from shared.cli.screen import open_screen
from shared.cli.sse import Event
from shared.errors import GatewayUnavailable

_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 15.0
_PATIENCE_SECONDS: Final = 300.0
_LASTING_SECONDS: Final = 30.0
"""A connection that lasted so long was a good one, whatever came over it."""


def command(id: str, url: str | None) -> str:
    """What to type to follow a workflow."""
    return f"agent-team watch {id}" + ("" if url is None else f" --url {url}")


async def events(
    gateway: Gateway, id: str, *, again: str, tell: Callable[[str], None], known: bool = False
) -> AsyncGenerator[Event, None]:
    """Every entry of the history once and in order, what is being written in between, and `end` at last.

    A broken connection is made anew, and goes on after the last entry that came. `known` says that the gateway was there just now;
    without that the first connection must succeed. Raises what `Gateway.events` raises, and GatewayUnavailable when the gateway has
    been away for five minutes: `again` is what it tells to type then.
    """
    outage, after = _Outage(gateway, again, tell, known=known), 0
    while True:
        outage.connecting()
        try:
            async with aclosing(gateway.events(id, after=after)) as stream:
                async for event in stream:
                    if event is OPENED:
                        outage.connected()
                    elif event.id is None:
                        yield event
                        if event.name == "end":
                            return
                    elif event.id > after:
                        after = event.id
                        outage.over()
                        yield event
            raise GatewayUnavailable(f"{gateway.url} closed the connection")
        except GatewayUnavailable as error:
            pause = outage.pause(error)
        await gateway.clock.sleep(pause)


class _Outage:
    """How long a gateway has been away, and what is told of it."""

    def __init__(self, gateway: Gateway, again: str, tell: Callable[[str], None], *, known: bool) -> None:
        self._gateway = gateway
        self._again = again
        self._tell = tell
        self._known = known
        self._connecting_at = 0.0
        self._began_at: float | None = None
        self._tries = 0

    def connecting(self) -> None:
        """A connection is begun."""
        self._connecting_at = self._gateway.clock.monotonic()

    def connected(self) -> None:
        """The gateway has answered."""
        self._known = True
        if self._began_at is not None:
            self._tell(f"{self._gateway.url} is there again")

    def over(self) -> None:
        """Something new has come."""
        self._began_at = None

    def pause(self, error: GatewayUnavailable) -> float:
        """Seconds until the next try. Raises GatewayUnavailable when there shall be none."""
        if not self._known:
            raise error
        now, minutes = self._gateway.clock.monotonic(), f"{_PATIENCE_SECONDS / 60:g} minutes"
        if self._began_at is None or now - self._connecting_at >= _LASTING_SECONDS:
            self._began_at, self._tries = now, 0
            self._tell(f"{error}; trying again for {minutes}")
        pause = _pause(error, self._tries)
        self._tries += 1
        if now + pause - self._began_at > _PATIENCE_SECONDS:
            away = f"{self._gateway.url} has not come back within {minutes}"
            raise GatewayUnavailable(f"{away}; what it has goes on there. Come back to it with: {self._again}") from error
        return pause


async def follow(gateway: Gateway, id: str, *, again: str, known: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Show a workflow's progress, on standard error or on `console`, until it has ended, and return it. Errors as `events`."""
    async with (
        open_screen(gateway.clock, live=True, workflow=id, console=console) as screen,
        aclosing(events(gateway, id, again=again, tell=screen.notice, known=known)) as happening,
    ):
        async for event in happening:
            with gateway.understood():
                if event.name == "progress":
                    screen.write(event.data)
                elif event.name == "queue":
                    screen.queue(event.data)
                elif event.id is not None:
                    screen.show(event.data)
    return await gateway.workflow(id)


async def follow_as_json(gateway: Gateway, id: str, *, again: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Write `{event, id, data}` on standard output, a line each, until the workflow has ended; return it. Errors as `events`."""
    async with aclosing(events(gateway, id, again=again, tell=tell)) as happening:
        async for event in happening:
            typer.echo(orjson.dumps({"event": event.name, "id": event.id, "data": event.data}))  # which flushes
    return await gateway.workflow(id)


def _pause(error: GatewayUnavailable, tries: int) -> float:
    seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10))
    return seconds if error.retry_after_seconds is None else max(seconds, min(error.retry_after_seconds, _LONGEST_PAUSE_SECONDS))
