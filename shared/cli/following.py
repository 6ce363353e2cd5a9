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
    clock, after, tries = gateway.clock, 0, 0
    broken_at: float | None = None
    while True:
        opened_at = clock.monotonic()
        try:
            async with aclosing(gateway.events(id, after=after)) as stream:
                async for event in stream:
                    if event is OPENED:
                        known = True
                        if broken_at is not None:
                            tell(f"{gateway.url} is there again")
                        continue
                    if event.name == "end":
                        yield event
                        return
                    if event.id is not None:
                        if event.id <= after:
                            continue
                        after, tries, broken_at = event.id, 0, None
                    yield event
            error = GatewayUnavailable(f"{gateway.url} closed the connection")
        except GatewayUnavailable as caught:
            if not known:
                raise
            error = caught
        now = clock.monotonic()
        if broken_at is None or now - opened_at >= _LASTING_SECONDS:
            broken_at, tries = now, 0
            tell(f"{error}; trying again for {_PATIENCE_SECONDS / 60:g} minutes")
        pause = _pause(error, tries)
        if now + pause - broken_at > _PATIENCE_SECONDS:
            raise GatewayUnavailable(
                f"{gateway.url} has not come back within {_PATIENCE_SECONDS / 60:g} minutes; the workflow goes on with it: {again}"
            )
        tries += 1
        await clock.sleep(pause)


async def follow(gateway: Gateway, id: str, *, again: str, known: bool = False, console: Console | None = None) -> dict[str, Any]:
    """Show a workflow's progress, on standard error or on `console`, until it has ended, and return it. Errors as `events`."""
    async with open_screen(gateway.clock, live=True, console=console) as screen:
        async with aclosing(events(gateway, id, again=again, tell=screen.notice, known=known)) as happening:
            async for event in happening:
                with gateway.understood():
                    if event.name == "progress":
                        screen.write(event.data)
                    elif event.id is not None:
                        screen.show(event.data)
    return await gateway.ask("GET", f"/v1/workflows/{id}")


async def follow_as_json(gateway: Gateway, id: str, *, again: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Write `{event, id, data}` on standard output, a line each, until the workflow has ended; return it. Errors as `events`."""
    async with aclosing(events(gateway, id, again=again, tell=tell)) as happening:
        async for event in happening:
            typer.echo(orjson.dumps({"event": event.name, "id": event.id, "data": event.data}))  # which flushes
    return await gateway.ask("GET", f"/v1/workflows/{id}")


def _pause(error: GatewayUnavailable, tries: int) -> float:
    seconds = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(tries, 10))
    return seconds if error.retry_after_seconds is None else max(seconds, min(error.retry_after_seconds, _LONGEST_PAUSE_SECONDS))
